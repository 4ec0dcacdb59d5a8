"""What goes wrong must leave everything as it was: models side by side, exceptions, interrupts, loading again and again."""

import gc
import weakref

import pytest
import tiny
import torch


@pytest.fixture
def files(comfy):
    weights, folder = tiny.digits(), comfy.models / "diffusion_models"
    tiny.save(weights, folder / "fault_plain.safetensors")
    tiny.save(weights | tiny.second_embedder(weights, 1), folder / "fault_a.safetensors")
    tiny.save(weights | tiny.second_embedder(weights, 2), folder / "fault_b.safetensors")


@pytest.fixture
def load(run, files):
    def load(name):
        if name == "plain":
            return run("UNETLoader", unet_name="fault_plain.safetensors", weight_dtype="default")[0]
        return run("TwinFlowModelLoader", model_name=f"fault_{name}.safetensors")[0]

    return load


@pytest.fixture
def sample(run):
    def sample(model, preset="8 steps"):
        conditioning = [[torch.linspace(-1, 1, 128).reshape(1, 2, 64), {}]]
        inputs = dict(positive=conditioning, latent_image={"samples": torch.zeros(1, 3, 1, 8, 8)}, seed=3, cfg=1.0, denoise=1.0)
        return run("TwinFlowSampleLatent", model=model, preset=preset, **inputs)[0]["samples"]

    return sample


def state(model) -> str:
    """All that a run could leave behind on a patcher or on the live model."""
    modules = {name: sorted(vars(m)) for name, m in model.model.diffusion_model.named_modules()}
    hooks = {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.model.diffusion_model.named_modules()}
    return repr((model.model_options, model.wrappers, model.object_patches, model.patches, modules, hooks))


def test_models_in_one_graph_do_not_disturb_each_other(load, sample):
    alone = {name: sample(load(name)) for name in ("a", "b", "plain")}
    models = {name: load(name) for name in alone}
    for name in ("a", "plain", "b", "a", "plain", "b"):
        assert torch.equal(sample(models[name]), alone[name]), name
    assert not torch.allclose(alone["a"], alone["b"]) and not torch.allclose(alone["a"], alone["plain"])


def test_clones_keep_their_own_rule(load, sample, run):
    model = load("a")
    off = run("TwinFlowModelPatch", model=model, times="off", branch="real")[0]
    twin = run("TwinFlowModelPatch", model=model, times="auto", branch="twin")[0]
    first = [sample(m) for m in (model, off, twin)]
    assert all(torch.equal(sample(m), x) for m, x in zip((model, off, twin), first, strict=True))
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first[0], first[2])
    assert torch.equal(sample(load("plain")), first[1])


@pytest.mark.parametrize("fault", ["exception", "interrupt"])
@pytest.mark.parametrize("rule", ["two embedders", "folded (t - r/2)"])
def test_a_fault_in_the_middle_leaves_the_model_as_it_was(load, sample, run, fault, rule):
    import comfy.model_management

    model = run("TwinFlowModelPatch", model=load("a"), times=rule, branch="real")[0]
    before, untouched = sample(model), state(model)
    calls = []

    def third_call_fails(apply, args):
        calls.append(1)
        if len(calls) == 3:
            if fault == "exception":
                raise RuntimeError("out of luck")
            comfy.model_management.interrupt_current_processing()
        return apply(args["input"], args["timestep"], **args["c"])

    broken = model.clone()
    broken.set_model_unet_function_wrapper(third_call_fails)
    wanted = RuntimeError if fault == "exception" else comfy.model_management.InterruptProcessingException
    with pytest.raises(wanted):
        sample(broken)
    assert len(calls) == 3, "went on after the fault"
    assert state(model) == untouched
    assert torch.equal(sample(model), before)


def test_loading_20_times_leaks_nothing(load, sample):
    import comfy.model_management

    def once():
        model = load("a")
        sample(model, "2 steps")
        gone = weakref.ref(model.model)
        comfy.model_management.unload_all_models()
        del model
        return gone

    for _ in range(3):
        once()
    gc.collect()
    before = len(gc.get_objects())
    models = [once() for _ in range(20)]
    gc.collect()
    comfy.model_management.cleanup_models()
    assert [m for m in models if m() is not None] == []
    assert len(gc.get_objects()) - before < 200


def test_low_vram_load_equals_full_load(load, sample):
    """Weights that stay outside the device until they are needed, the second embedder's among them."""
    import comfy.model_management

    model = load("a")
    full = sample(model)
    comfy.model_management.unload_all_models()
    model.load(model.load_device, lowvram_model_memory=1)
    assert torch.equal(sample(model), full)


def test_save_and_load_again(load, sample, run, comfy):
    """Core's ModelSave writes the second embedder; the file loads again and samples alike."""
    import folder_paths

    folder_paths.set_output_directory(str(comfy.models / "diffusion_models"))
    node = comfy.nodes["ModelSave"]
    inputs = dict(model=load("a"), filename_prefix="saved")
    if hasattr(node, "define_schema"):
        node.execute(**inputs)
    else:
        node().save(**inputs)
    assert torch.allclose(
        sample(run("TwinFlowModelLoader", model_name="saved_00001_.safetensors")[0]), sample(load("a")), atol=1e-5
    )
