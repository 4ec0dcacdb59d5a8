"""The samplers in core's graphs: guiders, masks, areas, batches, guidance, image to image; errors and warnings."""

import logging

import pytest
import tiny
import torch


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def model(golden, comfy, run):
    return run(
        "TwinFlowModelLoader",
        model_name=golden.write(comfy.models / "diffusion_models", golden.weights, name="two"),
        weight_dtype="float32",
    )[0]


@pytest.fixture
def sample(run, model, golden):
    def sample(latent=None, *, model=model, seed=3, cfg=1.0, preset="4 steps", denoise=1.0, positive=None, **more):
        latent = latent or empty(golden)
        positive = positive or golden.conditioning()
        inputs = dict(
            model=model, positive=positive, latent_image=latent, preset=preset, seed=seed, cfg=cfg, denoise=denoise, **more
        )
        return run("TwinFlowSampleLatent", **inputs)[0]["samples"]

    return sample


def empty(golden, batch=1, height=8, width=8):
    return {"samples": torch.zeros(batch, 16, height, width)}


def image(golden, batch=1):
    return {"samples": golden.tensors["x"][:batch] * 0.3}


def custom_parts(run, style="few", stochasticity=1.0, preset="4 steps", denoise=1.0, order="1", extrapolation=0.0):
    sigmas = run(
        "TwinFlowSchedule",
        preset=preset,
        steps=1,
        start_gap=0.0,
        end_gap=0.0,
        warp_a=1.0,
        warp_b=1.0,
        warp_c=1.0,
        denoise=denoise,
    )[0]
    sampler = run(
        "TwinFlowUnifiedSampler",
        style=style,
        order=order,
        noise="constant",
        stochasticity=stochasticity,
        extrapolation=extrapolation,
    )[0]
    return {"sampler": sampler, "sigmas": sigmas}


def close(a, b, tolerance=1e-4):
    return ((a - b).abs().max() / b.abs().max()).item() < tolerance


def test_one_node_equals_the_custom_graph(run, model, golden, sample):
    """TwinFlow Sampler, SamplerCustom and SamplerCustomAdvanced: the same latent."""
    parts, prompt, latent = custom_parts(run), golden.conditioning(), empty(golden)
    custom = run(
        "SamplerCustom",
        model=model,
        add_noise=True,
        noise_seed=3,
        cfg=1.0,
        positive=prompt,
        negative=prompt,
        latent_image=latent,
        **parts,
    )[0]
    guider = run("CFGGuider", model=model, positive=prompt, negative=prompt, cfg=1.0)[0]
    noise = run("RandomNoise", noise_seed=3)[0]
    advanced = run("SamplerCustomAdvanced", noise=noise, guider=guider, latent_image=latent, **parts)[0]
    one = sample()
    assert torch.equal(custom["samples"], one) and torch.equal(advanced["samples"], one)


def test_seeds(sample):
    assert torch.equal(sample(seed=3), sample(seed=3))
    assert not close(sample(seed=4), sample(seed=3), 0.05)


def test_fresh_noise_ignores_the_neighbours(sample, golden, comfy):
    """Row 0 of a batch of two is what it is alone, with all noise drawn afresh at every step."""
    alone, both = sample(empty(golden)), sample(empty(golden, batch=2))
    assert close(both[:1], alone)
    assert not close(both[1:], both[:1], 0.05)


def test_global_random_state_does_not_matter(sample):
    torch.manual_seed(1)
    first = sample()
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(sample(), first)


def count_calls(model, rows):
    """A clone whose calls note how many rows they had."""
    model = model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, a: rows.append(len(a["input"])) or apply(a["input"], a["timestep"], **a["c"])
    )
    return model


def test_cfg_1_does_not_evaluate_the_negative(model, golden, sample):
    rows = []
    sample(model=count_calls(model, rows), negative=golden.conditioning(slice(1, 2)))
    assert rows == [1, 1, 1, 1]


@pytest.mark.parametrize("tokens", [7, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_guidance(run, model, golden, sample, tokens, batch):
    """data = uncond + cfg (cond - uncond) at every step, with a negative prompt of the same length and of another."""
    negative = [[c[:, :tokens], extra] for c, extra in golden.conditioning(slice(1, 2))]
    rows = []
    got = sample(empty(golden, batch), model=count_calls(model, rows), cfg=3.0, preset="1 step", negative=negative)
    assert sum(rows) == 2 * batch
    cond, uncond = (
        sample(empty(golden, batch), preset="1 step"),
        sample(empty(golden, batch), preset="1 step", positive=negative),
    )
    assert close(got, uncond + 3 * (cond - uncond), 1e-3)


def test_guidance_without_a_negative_is_refused(sample):
    with pytest.raises(ValueError, match="cfg is 3.0, which needs a negative prompt"):
        sample(cfg=3.0)


def test_inpaint_keeps_what_is_masked(golden, sample):
    latent, mask = image(golden), torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    half = latent["samples"].shape[-1] // 2
    out = sample({**latent, "noise_mask": mask})
    keep = out.reshape(latent["samples"].shape)[..., : half - 1] - latent["samples"][..., : half - 1]
    assert keep.abs().max() < 1e-4
    assert (out.reshape(latent["samples"].shape) - latent["samples"])[..., half + 1 :].abs().max() > 0.1


def test_area_conditioning(run, golden, sample, model):
    """Two prompts, each for half of a picture of 16 x 16 latents."""
    a, b = golden.conditioning(slice(0, 1)), golden.conditioning(slice(1, 2))
    left = run("ConditioningSetArea", conditioning=a, width=64, height=128, x=0, y=0, strength=1.0)[0]
    right = run("ConditioningSetArea", conditioning=b, width=64, height=128, x=64, y=0, strength=1.0)[0]
    whole, halves = sample(empty(golden, 1, 16, 16), positive=a), sample(empty(golden, 1, 16, 16), positive=left + right)
    assert halves.shape == whole.shape and halves.isfinite().all() and not close(halves, whole, 1e-3)


@pytest.mark.parametrize("size", [(8, 8), (10, 6), (7, 9)])
def test_shapes(golden, sample, size):
    assert sample(empty(golden, 2, *size), preset="2 steps").shape[-2:] == size


def test_image_to_image_stays_near(golden, sample):
    """The lower the denoise, the nearer the image; none at all returns it."""
    latent = image(golden)
    away = [
        (sample(latent, denoise=d, preset="8 steps").reshape(latent["samples"].shape) - latent["samples"]).pow(2).mean()
        for d in (0.0, 0.05, 0.9)
    ]
    assert away[0] == 0 and away[0] < away[1] < away[2]


def test_split_schedule_equals_the_whole(run, model, golden):
    """Two nodes, the second without noise, in place of one (no fresh noise, so nothing is drawn twice)."""
    parts = custom_parts(run, "any", 0.0, "8 steps")
    high, low = run("SplitSigmas", sigmas=parts["sigmas"], step=3)
    common = dict(
        model=model,
        noise_seed=3,
        cfg=1.0,
        positive=golden.conditioning(),
        negative=golden.conditioning(),
        sampler=parts["sampler"],
    )
    whole = run("SamplerCustom", add_noise=True, latent_image=empty(golden), sigmas=parts["sigmas"], **common)[0]
    first = run("SamplerCustom", add_noise=True, latent_image=empty(golden), sigmas=high, **common)[0]
    second = run("SamplerCustom", add_noise=False, latent_image=first, sigmas=low, **common)[0]
    assert close(second["samples"], whole["samples"], 1e-3)


@pytest.mark.parametrize("style", ["few", "any", "multi"])
@pytest.mark.parametrize("order", ["1", "2"])
def test_every_option_runs(run, golden, sample, style, order):
    for noise, share in (("constant", 0.0), ("constant", 0.5), ("sde", 0.0), ("sde, first step kept", 0.0)):
        parts = custom_parts(run, style, share, "4 steps", 1.0, order, 0.3)
        parts["sampler"] = run(
            "TwinFlowUnifiedSampler", style=style, order=order, noise=noise, stochasticity=share, extrapolation=0.3
        )[0]
        assert sample(**parts).isfinite().all()


def test_multi_equals_core_euler(run, model, golden):
    """Style multi without fresh noise is the Euler method."""
    parts = custom_parts(run, "multi", 0.0, "30 steps")
    common = dict(
        model=model, add_noise=True, noise_seed=3, cfg=1.0, positive=golden.conditioning(), negative=golden.conditioning()
    )
    latent = image(golden)  # not empty: both then start from the same scaled noise
    ours = run("SamplerCustom", latent_image=latent, **common, **parts)[0]["samples"]
    euler = run("KSamplerSelect", sampler_name="euler")[0]
    core = run("SamplerCustom", latent_image=latent, **common, sampler=euler, sigmas=parts["sigmas"])[0]["samples"]
    assert close(ours, core, 1e-3)


def test_controlnet_residuals_reach_the_model(golden, sample, comfy):
    """A control's residuals, as core hands them to the model, change the picture; zero residuals do not."""
    import comfy.controlnet

    class Residuals(comfy.controlnet.ControlBase):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def get_control(self, x, t, cond, batched_number, *args):
            side = {"qwen": "input", "sd3": "output", "flux2": "input"}[golden.name]
            tokens = x.shape[-1] * x.shape[-2] // (1 if golden.name == "flux2" else 4)
            ramp = torch.linspace(-1, 1, 32).expand(x.shape[0], tokens, 32)  # a constant would vanish in the layer norm
            return {"input": [], "output": [], side: [ramp * self.scale]}

        def copy(self):
            return self.copy_to(Residuals(self.scale)) or self

        def get_models(self):
            return []

    if golden.name in ("zimage", "krea2", "qwen21"):
        pytest.skip("core's class takes no residuals; Z-Image takes its ControlNet as a model patch")

    def controlled(scale):
        (c, extra), *_ = golden.conditioning()
        return sample(positive=[[c, {**extra, "control": Residuals(scale), "control_apply_to_uncond": True}]])

    assert close(controlled(0.0), sample()) and not close(controlled(2.0), sample(), 0.01)


def test_previews_and_progress(model, golden, run, monkeypatch):
    """One callback a step, the last one with the picture that comes out; also for a single step."""
    import comfy.samplers

    for preset, steps in (("1 step", 1), ("8 steps", 8)):
        parts, seen = custom_parts(run, "any", 0.0, preset), []
        prompt, noise = golden.conditioning(), torch.randn(1, *golden.tensors["x"].shape[1:])
        latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(noise.shape))
        out = comfy.samplers.sample(
            model,
            noise.reshape(latent.shape),
            prompt,
            prompt,
            1.0,
            model.load_device,
            parts["sampler"],
            parts["sigmas"],
            model.model_options,
            latent_image=latent,
            callback=lambda i, data, x, total, seen=seen: seen.append((i, total, data)),
            disable_pbar=True,
            seed=1,
        )
        assert [(i, n) for i, n, _ in seen] == [(i, steps) for i in range(steps)]
        assert close(model.model.process_latent_out(seen[-1][2]), out)


@pytest.mark.parametrize("node", ["ModelSamplingSD3", "ModelSamplingAuraFlow"])
def test_nodes_that_change_the_times_are_refused(run, golden, model, sample, node):
    shifted = run(node, model=model, shift=3.0)[0]
    euler = run("KSamplerSelect", sampler_name="euler")[0]
    if (golden.name == "sd3") == (node == "ModelSamplingAuraFlow"):
        for sampler in (None, euler):
            with pytest.raises(ValueError, match="it was trained with"):
                sample(model=shifted, sampler=sampler)
    else:
        sample(model=shifted)


def test_other_kinds_of_models_and_sigmas_are_refused(run, model, sample):
    eps = run("ModelSamplingDiscrete", model=model, sampling="eps", zsnr=False)[0]
    with pytest.raises(ValueError, match="does not predict a flow-matching velocity"):
        sample(model=eps)
    with pytest.raises(ValueError, match="sigmas start at 14.6"):
        sample(sigmas=torch.tensor([14.6, 3.0, 0.0]))


def test_a_model_without_the_target_time_is_met_with_a_warning(run, golden, comfy, sample, caplog):
    backbone = comfy.part("twinflow.backbones").find(golden.weights)
    file = golden.write(comfy.models / "diffusion_models", backbone.layout.to_native(golden.plain), name="without_target")
    plain = run("UNETLoader", unet_name=file, weight_dtype="default")[0]
    with caplog.at_level(logging.WARNING):
        sample(model=plain, preset="30 steps")
        assert "is a plain model" not in caplog.text
        sample(model=plain, preset="8 steps")
        assert "is a plain model" in caplog.text


def test_twin_answers_differently(run, model, golden, sample):
    twin, report = run("TwinFlowModelPatch", model=model, times="auto", branch="twin")
    assert "branch twin" in report
    same = close(sample(model=twin, preset="30 steps"), sample(preset="30 steps"), 1e-3)
    assert same == (golden.name == "zimage")  # the released Z-Image is asked at |u|: its twin is itself


def test_patch_off_is_the_plain_model(run, golden, comfy, model, sample):
    off = run("TwinFlowModelPatch", model=model, times="off", branch="real")[0]
    backbone = comfy.part("twinflow.backbones").find(golden.weights)
    weights = {k: v.float() for k, v in backbone.layout.to_native(golden.plain).items()}
    plain = run(
        "UNETLoader", unet_name=golden.write(comfy.models / "diffusion_models", weights, name="off"), weight_dtype="default"
    )[0]
    assert torch.equal(sample(model=off, preset="8 steps"), sample(model=plain, preset="8 steps"))
    assert not close(sample(preset="8 steps"), sample(model=plain, preset="8 steps"), 1e-3)
    with pytest.raises(ValueError, match="no second time embedder"):
        run("TwinFlowModelPatch", model=plain, times="two embedders", branch="real")
