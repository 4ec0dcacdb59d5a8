"""Whole checkpoints from twinflow.layouts against ComfyUI's own converter."""

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.parametrize("file, scale", [("zimage", 1), ("sd3", 4)])  # ComfyUI takes SD3's depth for its width / 64
def test_native_tensors_are_those_of_comfyui_s_converter(comfy, goldens, file, scale):
    from comfy import model_detection

    if file == "zimage" and comfy.version < (0, 18):
        pytest.skip("this ComfyUI does not convert Z-Image")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        key: torch.randn([n * scale if n > 1 else n for n in t.shape], generator=generator)
        for key, t in load_file(goldens / f"{file}_weights.safetensors").items()
    }
    backbone = comfy.part("twinflow.backbones").find(tensors)
    native = backbone.layout.to_native(tensors)
    theirs = model_detection.convert_diffusers_mmdit(dict(tensors))
    own = set(backbone.second)  # ComfyUI knows no second embedder
    assert set(native) - own == set(theirs) - own
    for key in set(native) - own:
        assert torch.equal(native[key], theirs[key]), key
    assert own <= set(native)
