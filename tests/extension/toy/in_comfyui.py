"""Run by ../test_toy.py inside a copy of the repository that has the toy: what the trainer wrote, in a real ComfyUI."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

MADE = Path(os.environ["TOY_RUNS"])


def test_the_toy(comfy, run):
    for name in ("base", "toy-full"):
        shutil.copy(next(MADE.rglob(f"{name}.safetensors")), comfy.models / "diffusion_models")
    shutil.copy(next(MADE.rglob("toy-lora.safetensors")), comfy.models / "loras")
    reference = load_file(MADE / "reference.safetensors")
    steps = dict(preset="2 steps", seed=7, cfg=1.0, denoise=1.0, latent_image={"samples": torch.zeros(1, 4, 4, 4)})
    (sampler,) = run("TwinFlowUnifiedSampler", style="any", order="1", noise="constant", stochasticity=0.0, extrapolation=0.0)
    loaded = {
        "full": run("TwinFlowModelLoader", model_name="toy-full.safetensors")[0],
        "stock": run("UNETLoader", unet_name="toy-full.safetensors", weight_dtype="default")[0],
        "lora": run("TwinFlowModelLoader", model_name="base.safetensors", adapter="toy-lora.safetensors")[0],
    }
    for name, model in loaded.items():
        made = run("TwinFlowSampleLatent", model=model, positive=[[reference["embeds"], {}]], sampler=sampler, **steps)[0][
            "samples"
        ]
        wanted = reference["lora" if name == "lora" else "full"]
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())
    save_file({"a.weight": torch.zeros(1, 1)}, comfy.models / "diffusion_models" / "other.safetensors")
    with pytest.raises(ValueError, match="Choose the diffusion model of .*Toy"):
        run("TwinFlowModelLoader", model_name="other.safetensors")
    help_pages = comfy.part("nodes.help_pages")
    assert "Toy" in help_pages.page(help_pages.PACK / "web" / "docs" / "TwinFlowModelLoader" / "en.md")
    inputs = comfy.nodes["TwinFlowModelLoader"].GET_NODE_INFO_V1()["input"]["required"]
    assert "Toy" in inputs["model_name"][1]["tooltip"]
