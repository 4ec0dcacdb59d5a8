"""TwinFlow Save: what it writes is loaded again by our loader and samples as the model that was saved."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_node_saved import METADATA

WHOLE, ADAPTER = "one file", "base + adapter"


def written(comfy, run, model, name, save_as=WHOLE, dtype="float32"):
    """The new files, where the loaders look: [the whole], or [base, adapter]."""
    import folder_paths

    (report,) = run("TwinFlowSave", model=model, filename_prefix=name, save_as=save_as, dtype=dtype)
    paths = sorted(
        Path(folder_paths.get_output_directory()).glob(f"{name}_*.safetensors"), key=lambda path: "adapter" in path.name
    )
    assert all(path.name in report for path in paths)
    out = []
    for path in paths:
        target = comfy.models / ("loras" if "adapter" in path.name else "diffusion_models") / path.name
        path.rename(target)
        out.append(target)
    return out


def again(run, files):
    adapter = files[1].name if len(files) > 1 else "none"
    return run("TwinFlowModelLoader", model_name=files[0].name, adapter=adapter, weight_dtype="float32")[0]


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def with_lora(comfy, run, golden, strength=0.7):
    """A TwinFlow model of the goldens, float32, with a LoRA of two layers of ComfyUI's own naming."""
    weights = tiny.native(golden, comfy)
    metadata = METADATA | {"twinflow.base_model": comfy.part("twinflow.backbones").find(weights).name}
    file = golden.write(comfy.models / "diffusion_models", weights, name="to_save", metadata=metadata)
    model = run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]
    diffusers = comfy.part("twinflow.backbones").find(golden.weights).layout.to_diffusers(weights)
    parts = tiny.lora(diffusers, ("to_q", "to_v", "to_out.0", "attn.to_out", "norm_out.linear", "norm1_context.linear"))
    prefix = "transformer." if golden.name == "sd3" else "diffusion_model."
    halves = {f"{prefix}{m}.lora_{h}.weight": t * 0.3 for m, ab in parts.items() for h, t in zip("AB", ab)}
    lora = golden.write(comfy.models / "loras", halves, name="to_save_lora")
    return model, run("TwinFlowLoraLoader", model=model, lora_name=lora, strength=strength)[0]


@pytest.mark.parametrize("save_as", [WHOLE, ADAPTER])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_saved_model_samples_as_it_did(comfy, goldens, run, name, save_as):
    tiny.need_backbone(name, comfy.version)
    golden = tiny.read(goldens, name)
    plain, model = with_lora(comfy, run, golden)
    wanted = tiny.sampled(run, model, golden)
    assert tiny.rms(tiny.sampled(run, plain, golden), wanted) > 0.01
    files = written(comfy, run, model, f"{name}_{save_as[:3]}", save_as)
    assert len(files) == (1 if save_as == WHOLE else 2)
    back = again(run, files)
    assert tiny.rms(tiny.sampled(run, back, golden), wanted) < 2e-3
    assert tiny.rms(tiny.sampled(run, model, golden), wanted) < 1e-6  # the model itself was left alone
    found = metadata_of(files[-1])
    assert found["twinflow.time"] == "two" and found["twinflow.step"] == "700"
    assert comfy.part("nodes.sampler").recommended(back).steps == comfy.part("nodes.sampler").recommended(model).steps
    record = comfy.part("twinflow.backbones").find(golden.weights)
    second = [key for key in load_file(files[0]) if comfy.part("twinflow.backbones").is_second_embedder(key)]
    assert bool(second) == (save_as == WHOLE) and (not second or set(second) == set(record.second))
    if save_as == ADAPTER:
        lora = [key for key in load_file(files[1]) if ".lora_" in key]
        assert lora and not [key for key in load_file(files[1]) if key.endswith(".diff")]
        assert found["twinflow.rank"].isdecimal()


def test_other_patches_are_saved_as_differences(comfy, goldens, run):
    """Two LoRAs on one layer, and a change of a bias and of a weight that is no LoRA."""
    golden = tiny.read(goldens, "qwen")
    _, model = with_lora(comfy, run, golden)
    model = model.clone()
    keys = [key for key in model.model.state_dict() if key.endswith(("img_in.weight", "img_in.bias"))]
    g = torch.Generator().manual_seed(4)
    model.add_patches({k: ("diff", (torch.randn(model.model.state_dict()[k].shape, generator=g) * 0.05,)) for k in keys}, 0.5)
    files = written(comfy, run, model, "odd", ADAPTER)
    assert {"diffusion_model.img_in.diff", "diffusion_model.img_in.diff_b"} <= load_file(files[1]).keys()
    assert tiny.rms(tiny.sampled(run, again(run, files), golden), tiny.sampled(run, model, golden)) < 2e-3


def test_a_folded_model_stays_folded(comfy, goldens, run):
    golden = tiny.read(goldens, "qwen")
    base = golden.write(comfy.models / "diffusion_models", golden.plain, name="fold_to_save")
    model = run("UNETLoader", unet_name=base, weight_dtype="default")[0]
    model = run("TwinFlowModelPatch", model=model, times="folded (t - r/2)", branch="real")[0]
    (file,) = written(comfy, run, model, "folded")
    assert metadata_of(file)["twinflow.time"] == "fold"
    assert tiny.rms(tiny.sampled(run, again(run, [file]), golden), tiny.sampled(run, model, golden)) < 0.02
    with pytest.raises(ValueError, match="has neither LoRA nor second time embedder"):
        written(comfy, run, model, "nothing", ADAPTER)


def test_nothing_is_overwritten_and_nothing_is_left_half(comfy, goldens, run):
    import folder_paths

    golden = tiny.read(goldens, "qwen")
    _, model = with_lora(comfy, run, golden)
    for _ in range(2):
        run("TwinFlowSave", model=model, filename_prefix="twice", save_as=WHOLE, dtype="bfloat16")
    out = Path(folder_paths.get_output_directory())
    assert len(list(out.glob("twice_*.safetensors"))) == 2
    assert {t.dtype for t in load_file(next(out.glob("twice_*.safetensors"))).values()} == {torch.bfloat16}
    model = model.clone()
    key = next(key for key in model.model.state_dict() if key.endswith("img_in.weight"))
    model.add_patches({key: ("diff", (torch.full(model.model.state_dict()[key].shape, float("nan")),))})
    with pytest.raises(ValueError, match="not numbers"):
        run("TwinFlowSave", model=model, filename_prefix="broken", save_as=WHOLE, dtype="as it is")
    assert not [path for path in out.rglob("*broken*")]
    with pytest.raises(Exception, match="(?i)outside"):
        run("TwinFlowSave", model=model, filename_prefix="../../out", save_as=WHOLE, dtype="as it is")


def test_gguf_that_is_unpacked_is_saved(comfy, run):
    from test_node_gguf import WIDE, gguf, write

    if gguf is None:
        return
    plain = tiny.digits(**WIDE)
    weights = plain | tiny.second_embedder(plain)
    file = write(comfy.models / "diffusion_models" / "to_save.gguf", weights, gguf.GGMLQuantizationType.Q8_0)
    (path,) = written(comfy, run, run("TwinFlowModelLoader", model_name=file)[0], "unpacked", dtype="as it is")
    found = load_file(path)
    assert all(tiny.rms(found[key], t) < 0.02 for key, t in weights.items() if t.ndim == 2)
