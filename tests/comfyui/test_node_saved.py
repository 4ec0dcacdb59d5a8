"""The `twinflow.*` metadata travel with the model: after core's own loader, and through core's ModelSave."""

import inspect
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open

METADATA = {
    "twinflow.time": "two",
    "twinflow.base_model": "z-image",
    "twinflow.sampler": '[{"steps": 4, "style": "any", "stochasticity": 0.0, "gaps": [0.001, 0.5], "warp": [1, 1, 1]}]',
    "twinflow.step": "700",
    "modelspec.trigger_phrase": "sks",
}


def need_metadata(loader):
    import comfy.sd

    if loader == "UNETLoader" and "metadata" not in inspect.signature(comfy.sd.load_diffusion_model_state_dict).parameters:
        pytest.skip("this ComfyUI's own loader does not read metadata")


def saved(comfy, run, model, name):
    """The path of the file that core's ModelSave writes."""
    import folder_paths

    run("ModelSave", model=model, filename_prefix=name)
    (path,) = Path(folder_paths.get_output_directory()).glob(f"{name}_*.safetensors")
    target = comfy.models / "diffusion_models" / f"{name}.safetensors"
    path.rename(target)
    return target


@pytest.mark.parametrize("loader", ["TwinFlowModelLoader", "UNETLoader"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_model_save_keeps_what_the_file_says(comfy, goldens, run, name, loader):
    tiny.need_backbone(name, comfy.version)
    need_metadata(loader)
    golden = tiny.read(goldens, name)
    # core misreads a small SD3.5 in diffusers' names, and others
    weights = tiny.native(golden, comfy) if name in ("sd3", "flux2", "krea2", "qwen21") else golden.weights
    file = golden.write(comfy.models / "diffusion_models", weights, name="with_metadata", metadata=METADATA)
    inputs = dict(model_name=file) if loader == "TwinFlowModelLoader" else dict(unet_name=file, weight_dtype="default")
    model = run(loader, **inputs)[0]
    assert comfy.part("nodes.sampler").recommended(model).style == "any"
    path = saved(comfy, run, model, f"{name}_{loader}")
    with safe_open(path, "pt") as written:
        found = written.metadata()
    assert found["twinflow.step"] == "700" and found["twinflow.time"] == "two" and found["modelspec.trigger_phrase"] == "sks"
    again = run("TwinFlowModelLoader", model_name=path.name)[0]
    assert comfy.part("nodes.sampler").recommended(again).steps == 4
    torch.testing.assert_close(tiny.sampled(run, again, golden), tiny.sampled(run, model, golden), rtol=0.02, atol=0.02)


def test_a_folded_lora_stays_folded_once_it_is_saved(comfy, goldens, run):
    """Merged by ModelSave, the LoRA is part of the weights, and the model must still be asked at the folded time."""
    golden = tiny.read(goldens, "qwen")
    base = golden.write(comfy.models / "diffusion_models", golden.plain, name="fold_base")
    parts = tiny.lora(golden.plain, ("attn.to_q",))
    halves = {f"diffusion_model.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab)}
    metadata = METADATA | {"twinflow.time": "fold", "twinflow.base_model": "qwen-image", "twinflow.rank": "2"}
    lora = golden.write(comfy.models / "loras", halves, name="fold", metadata=metadata)
    model = run("TwinFlowLoraLoader", model=run("UNETLoader", unet_name=base, weight_dtype="default")[0], lora_name=lora)[0]
    path = saved(comfy, run, model, "folded")
    with safe_open(path, "pt") as written:
        assert written.metadata()["twinflow.time"] == "fold" and "twinflow.rank" not in written.metadata()
    again = run("TwinFlowModelLoader", model_name=path.name)[0]
    torch.testing.assert_close(tiny.sampled(run, again, golden), tiny.sampled(run, model, golden), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("signed", ["true", "false"])
@pytest.mark.parametrize("loader", ["TwinFlowModelLoader", "UNETLoader"])
def test_signed_time_is_read_from_the_file(comfy, goldens, run, signed, loader):
    tiny.need_backbone("zimage", comfy.version)
    need_metadata(loader)
    golden = tiny.read(goldens, "zimage")
    metadata = METADATA | {"twinflow.signed_time": signed}
    file = golden.write(comfy.models / "diffusion_models", golden.weights, name=f"signed_{signed}", metadata=metadata)
    inputs = dict(model_name=file) if loader == "TwinFlowModelLoader" else dict(unet_name=file, weight_dtype="default")
    network = run(loader, **inputs)[0].model.diffusion_model
    assert comfy.part("twinflow.backbones.z_image").BACKBONE.native_time.of(network).signed == (signed == "true")
