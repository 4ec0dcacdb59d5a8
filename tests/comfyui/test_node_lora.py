"""LoRAs of every layout that is met: rewritten, applied to the right slices, reported; zero applied is an error."""

import pytest
import tiny
import torch

LAYOUTS = {
    "transformer": "transformer.{}.lora_{}.weight",
    "diffusion_model": "diffusion_model.{}.lora_{}.weight",
    "bare": "{}.lora_{}.weight",
    "peft": "base_model.model.{}.lora_{}.weight",
    "released trainer": "base_model.model.transformer.{}.lora_{}.default.weight",
    "kohya": "lora_unet_{}.lora_{}.weight",
}
MODULES = {
    "qwen": (
        "attn.to_q",
        "attn.add_v_proj",
        "attn.to_out.0",
        "img_mlp.net.0.proj",
        "img_mod.1",
        "timestep_embedder.linear_1",
        "img_in",
    ),
    "zimage": (
        "attention.to_q",
        "attention.to_k",
        "attention.to_v",
        "attention.to_out.0",
        "feed_forward.w1",
        "t_embedder.mlp.0",
        "all_x_embedder.2-1",
    ),
    "sd3": (
        "attn.to_q",
        "attn.add_k_proj",
        "attn2.to_v",
        "attn.to_out.0",
        "ff.net.2",
        "norm1_context.linear",
        "norm_out.linear",
        "text_embedder.linear_2",
    ),
}


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def base(golden, comfy, run):
    """Plain, as core's loader gives it."""
    weights = {k: v.float() for k, v in native(golden, comfy, golden.plain).items()}
    return run(
        "UNETLoader",
        unet_name=golden.write(comfy.models / "diffusion_models", weights, name="lora_base"),
        weight_dtype="default",
    )[0]


def native(golden, comfy, tensors):
    return comfy.part("twinflow.backbones").find(golden.weights).layout.to_native(tensors)


def written(golden, comfy, parts, layout, *, alpha=None, extra=None, metadata=None) -> str:
    tensors = {}
    for module, (a, b) in parts.items():
        name = module.replace(".", "_") if layout == "kohya" else module
        down, up = ("down", "up") if layout == "kohya" else ("A", "B")
        tensors[LAYOUTS[layout].format(name, down)], tensors[LAYOUTS[layout].format(name, up)] = a, b
        if alpha:
            tensors[LAYOUTS[layout].split("{}.lora")[0] + name + ".alpha"] = torch.tensor(alpha)
    return golden.write(
        comfy.models / "loras", tensors | (extra or {}), name=f"lora_{layout.replace(' ', '_')}", metadata=metadata
    )


def patched(patcher):
    """The weights as ComfyUI's memory management patches them when it loads the model."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    weights = {k: v.clone() for k, v in patcher.model.diffusion_model.state_dict().items()}
    patcher.detach()
    return weights


def expected(golden, comfy, parts, strength, scale=1.0):
    """Merged in the file's own layout, then converted: the LoRA's slices are judged by the converter."""
    weights = {k: v.float() for k, v in golden.plain.items()}
    for module, (a, b) in parts.items():
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + strength * scale * (b @ a).reshape(
            weights[f"{module}.weight"].shape
        )
    return native(golden, comfy, weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_applied_whole(golden, base, comfy, run, layout):
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    assert len(parts) > len(MODULES[golden.name]) - 1
    alpha = 1.0 if layout == "kohya" else None
    before = patched(base)
    model, report = run(
        "TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, parts, layout, alpha=alpha), strength=0.7
    )
    assert f"applied: {len(parts)}, dropped: 0" in report
    wanted, got = expected(golden, comfy, parts, 0.7, 0.5 if alpha else 1.0), patched(model)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key].float(), value, rtol=1e-4, atol=1e-5, msg=key)
    after = patched(base)
    assert all(torch.equal(before[k], after[k]) for k in before), "the model that came in was changed"


def test_native_names(golden, base, comfy, run):
    weights = native(golden, comfy, {k: v.float() for k, v in golden.plain.items()})
    parts = {k: v for k, v in tiny.lora(weights, ("qkv", "to_q", "out", "fc1", "w1")).items()}
    model, report = run("TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, parts, "diffusion_model"))
    assert f"applied: {len(parts)}, dropped: 0" in report


def test_dropped_modules_are_named(golden, base, comfy, run):
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    stray = {
        "transformer.no_such_module.lora_A.weight": torch.zeros(2, 4),
        "transformer.no_such_module.lora_B.weight": torch.zeros(4, 2),
    }
    _, report = run("TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, parts, "transformer", extra=stray))
    assert "dropped: 1" in report and "no_such_module" in report


def test_zero_applied_is_an_error(golden, base, comfy, run):
    stray = {
        "transformer.no_such_module.lora_A.weight": torch.zeros(2, 4),
        "transformer.no_such_module.lora_B.weight": torch.zeros(4, 2),
    }
    file = golden.write(comfy.models / "loras", stray, name="stray")
    with pytest.raises(ValueError, match=f"{file}: none of its 1 modules fits.*no_such_module"):
        run("TwinFlowLoraLoader", model=base, lora_name=file)


def test_loras_stack_with_each_other_and_with_the_stock_loader(golden, base, comfy, run):
    ours, theirs = tiny.lora(golden.plain, MODULES[golden.name][:2]), tiny.lora(golden.plain, MODULES[golden.name][:3], seed=9)
    first = run("TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, ours, "peft"), strength=0.5)[0]
    file = written(golden, comfy, theirs, "transformer")
    ours_twice = patched(run("TwinFlowLoraLoader", model=first, lora_name=file, strength=0.25)[0])
    if golden.name == "zimage" and comfy.version < (0, 8):
        return  # the stock loader does not know these names
    with_stock = patched(run("LoraLoaderModelOnly", model=first, lora_name=file, strength_model=0.25)[0])
    assert all(torch.equal(ours_twice[k], with_stock[k]) for k in ours_twice)


def test_lora_on_the_second_embedder(golden, comfy, run):
    file = golden.write(comfy.models / "diffusion_models", golden.weights, name="two")
    model = run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]
    parts = tiny.lora(golden.second, ("linear_1", "mlp.0"))
    assert parts
    before = patched(model)
    after = patched(run("TwinFlowLoraLoader", model=model, lora_name=written(golden, comfy, parts, "transformer"))[0])
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert len(changed) == len(parts) and all("_2." in k for k in changed)


@pytest.mark.parametrize("rule", ["fold", "two"])
def test_time_rule_of_the_metadata(golden, base, comfy, run, rule):
    metadata = {"twinflow.time": rule, "twinflow.base_model": golden.name, "twinflow.sampler": '[{"steps": 8, "style": "any"}]'}
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    file = written(golden, comfy, parts, "transformer", metadata=metadata)
    if rule == "two":
        with pytest.raises(ValueError, match="second time embedder"):
            run("TwinFlowLoraLoader", model=base, lora_name=file)
        return
    model, report = run("TwinFlowLoraLoader", model=base, lora_name=file)
    assert "time conditioning: fold" in report
    assert comfy.part("nodes.sampler").recommended(model).style == "any"
    assert run("TwinFlowModelPatch", model=model, times="auto", branch="real")[1].find("t - r/2") > 0
