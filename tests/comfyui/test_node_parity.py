"""Inside a real ComfyUI the forward and the whole sampler equal what the paper's own code recorded."""

import pytest
import tiny
import torch

TOLERANCE = 1e-4


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def two_times(golden, comfy, run):
    file = golden.write(comfy.models / "diffusion_models", golden.weights, name="two")
    return run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]


@pytest.fixture
def folded(golden, comfy, run):
    file = golden.write(comfy.models / "diffusion_models", native(golden, comfy, golden.plain), name="plain")
    model = run("UNETLoader", unet_name=file, weight_dtype="default")[0]
    return run("TwinFlowModelPatch", model=model, times="folded (t - r/2)", branch="real")[0]


def native(golden, comfy, tensors):
    backbone = comfy.part("twinflow.backbones").find(tensors)
    return {k: v.float() for k, v in backbone.layout.to_native(tensors).items()}


def velocity(golden, comfy, patcher, case):
    """The model's velocity at the case's times, as ComfyUI's apply_model gives it."""
    t, r = torch.tensor(case["t"]), torch.tensor(case["tt"])
    x = golden.tensors["x"].unsqueeze(2) if golden.name == "qwen" else golden.tensors["x"]
    module = comfy.part("nodes.time_conditioning")
    time = module.time_conditioning_of(patcher.model, patcher.model_options)
    options = dict(patcher.model_options["transformer_options"], wrappers=patcher.wrappers)
    options[module.KEY] = time if time.branch == "twin" else time.with_target(r)
    extra = {"zimage": dict(num_tokens=golden.tensors["c0"].shape[1]), "sd3": dict(y=golden.tensors["c1"])}.get(golden.name, {})
    with torch.no_grad():
        data = patcher.model.apply_model(x, t.abs(), c_crossattn=golden.tensors["c0"], transformer_options=options, **extra)
    scale = t.abs().view(-1, *[1] * (x.ndim - 1))
    return ((x - data) / scale).reshape(golden.tensors["x"].shape)


def forward_cases(golden, lora):
    kind = "lora" if lora else "pair"
    return {tag: c for tag, c in golden.cases["combos"].items() if tag.startswith(kind) and min(map(abs, c["t"])) > 0}


@pytest.mark.parametrize("lora", [False, True], ids=["two", "folded"])
def test_forward(golden, comfy, run, two_times, folded, lora):
    model = folded if lora else two_times
    times = "folded (t - r/2)" if lora else "two embedders"
    twin = run("TwinFlowModelPatch", model=model, times=times, branch="twin")[0]
    checked = 0
    for tag, case in forward_cases(golden, lora).items():
        sides = {t < 0 for t in case["t"]}
        if len(sides) > 1 or (sides == {True} and case["t"] != case["tt"]):
            continue  # one batch is real or twin, and the twin answers at (-t, -t)
        got = velocity(golden, comfy, twin if sides == {True} else model, case)
        assert relative(got, golden.tensors[f"{tag}/out"]) < TOLERANCE, (tag, case["t"], case["tt"])
        checked += 1
    assert checked


def sampling_cases(golden, lora):
    for name, case in golden.cases["samples"].items():
        if name.startswith("lora_sample" if lora else "sample") and not name.endswith("bfloat16"):
            yield name, case


@pytest.mark.parametrize("lora", [False, True], ids=["two", "folded"])
def test_sampler(golden, comfy, run, two_times, folded, lora, monkeypatch):
    cases = dict(sampling_cases(golden, lora))
    if not cases:
        pytest.skip("this goldens folder holds no float32 sample of this kind; TWINFLOW_GOLDENS names a fuller one")
    model = folded if lora else two_times
    monkeypatch.setattr(comfy.part("nodes.comfy_sampler"), "FreshNoise", lambda seed: recorded_noise(golden))
    for name, case in cases.items():
        gaps, warp = case["rfba_gap_steps"], case["time_dist_ctrl"]
        sigmas = run(
            "TwinFlowSchedule",
            preset="custom",
            steps=case["sampling_steps"],
            start_gap=gaps[0],
            end_gap=gaps[1],
            warp_a=warp[0],
            warp_b=warp[1],
            warp_c=warp[2],
            denoise=1.0,
        )[0]
        style = "multi" if case["style"] == "mul" else case["style"]
        sampler = run(
            "TwinFlowUnifiedSampler",
            style=style,
            order=str(case["sampling_order"]),
            noise="constant",
            stochasticity=case["stochast_ratio"],
            extrapolation=case["extrapol_ratio"],
        )[0]
        guider = run("BasicGuider", model=model, conditioning=golden.conditioning(slice(0, 2)))[0]
        latent = {"samples": torch.zeros_like(golden.tensors["x"])}
        noise = tiny.FixedNoise(golden.tensors["x"])
        out = run("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent)[0]
        got = model.model.process_latent_in(out["samples"]).reshape(golden.tensors["x"].shape)
        assert relative(got, golden.tensors[f"{name}/samples"][-1]) < TOLERANCE, name


def recorded_noise(golden):
    bank = iter(golden.tensors["noise_bank"])
    return lambda x: next(bank).reshape(x.shape)
