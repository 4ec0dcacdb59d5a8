"""Setups that give a wrong image: an error, or a warning that names the fix; and inputs that belong to another model."""

import json

import pytest
import tiny
import torch
from test_node_sampling import empty


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def two(golden, comfy, run):
    file = golden.write(comfy.models / "diffusion_models", golden.weights, name="warn_two")
    return run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]


@pytest.fixture
def plain(golden, comfy, run):
    layout = comfy.part("twinflow.backbones").find(golden.weights).layout
    file = golden.write(comfy.models / "diffusion_models", layout.to_native(golden.plain), name="warn_plain")
    return run("UNETLoader", unet_name=file, weight_dtype="default")[0]


@pytest.fixture
def sample(run, golden):
    def sample(model, *, sampler=None, preset="2 steps", latent=None, positive=None, **more):
        if sampler in ("euler", "lcm"):
            sampler = run("KSamplerSelect", sampler_name=sampler)[0]
        inputs = dict(positive=positive or golden.conditioning(), latent_image=latent or empty(golden))
        more = dict(seed=3, cfg=1.0, denoise=1.0) | more
        return run("TwinFlowSampleLatent", model=model, preset=preset, sampler=sampler, **inputs, **more)[0]["samples"]

    return sample


@pytest.fixture
def said(comfy, monkeypatch):
    """The warnings, in order."""
    found = []
    monkeypatch.setattr(comfy.part("nodes.setups"), "warn", found.append)
    return found


def style(run, name, stochasticity=0.0):
    options = dict(order="1", noise="constant", stochasticity=stochasticity, extrapolation=0.0)
    return run("TwinFlowUnifiedSampler", style=name, **options)[0]


def written_lora(golden, comfy, name, time=None, second=False):
    parts = tiny.lora(golden.plain, ("attn.to_q", "attention.to_q"), seed=len(name))
    tensors = {f"transformer.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab, strict=True)}
    tensors |= {f"transformer.{k}": v for k, v in golden.second.items()} if second else {}
    metadata = {"twinflow.time": time, "twinflow.base_model": golden.name} if time else None
    return golden.write(comfy.models / "loras", tensors, name=name, metadata=metadata)


@pytest.mark.parametrize("preset", ["1 step", "2 steps", "4 steps", "8 steps", "30 steps"])
def test_presets_say_nothing(two, sample, said, preset):
    sample(two, preset=preset)
    assert said == []


@pytest.mark.parametrize(
    ("preset", "name", "share", "wanted"),
    [("30 steps", "few", 1.0, "30 steps, but style 'few'"), ("8 steps", "few", 1.0, "8 steps, but style 'few'")]
    + [("2 steps", "multi", 0.0, "2 steps, too few for style 'multi'"), ("1 step", "multi", 0.0, "1 step, too few")]
    + [("8 steps", "any", 1.0, "set stochasticity to 0"), ("8 steps", "any", 0.0, None), ("30 steps", "multi", 0.0, None)],
)
def test_a_style_that_does_not_go_with_the_schedule(two, sample, said, run, preset, name, share, wanted):
    sample(two, preset=preset, sampler=style(run, name, share))
    assert [wanted in text for text in said] == ([True] if wanted else [])


def test_core_samplers_with_few_steps(two, sample, said):
    for name in ("euler", "lcm"):
        sample(two, sampler=name)
        assert len(said) >= 1 and "does not tell" in said[0] and "2 steps" in said[0]
        said.clear()
    sample(two, sampler="euler", preset="30 steps")
    assert said == []


def test_core_ksampler_and_core_loader(golden, comfy, run, sample, said):
    layout = comfy.part("twinflow.backbones").find(golden.weights).layout
    file = golden.write(comfy.models / "diffusion_models", layout.to_native(golden.weights), name="warn_core")
    model = run("UNETLoader", unet_name=file, weight_dtype="default")[0]
    prompt = golden.conditioning()
    common = dict(model=model, seed=1, sampler_name="euler", scheduler="simple", denoise=1.0, latent_image=empty(golden))
    run("KSampler", steps=4, cfg=3.0, positive=prompt, negative=prompt, **common)
    assert any("4 steps give a wrong image" in text for text in said) and any("cfg is above 1" in text for text in said)


def test_guidance_on_top_of_guidance(two, sample, said, golden):
    sample(two, cfg=4.0, negative=golden.conditioning())
    assert [text for text in said if "cfg is 4" in text]


def test_a_plain_model(plain, sample, said):
    sample(plain)
    assert "is a plain model" in said[0]
    said.clear()
    sample(plain, preset="30 steps")
    assert said == []


def test_an_adapter_through_core_is_refused(golden, comfy, run, plain, two):
    file = written_lora(golden, comfy, "adapter", "two", second=True)
    for model, fix in ((plain, "TwinFlow Model Loader"), (two, "TwinFlow LoRA Loader")):
        with pytest.raises(ValueError, match=f"adapter.safetensors is a TwinFlow adapter.*{fix}"):
            run("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=1.0)
    assert run("LoraLoaderModelOnly", model=plain, lora_name=file, strength_model=0.0)


def test_a_folded_lora_through_core(golden, comfy, run, plain, sample, said):
    model = run("LoraLoaderModelOnly", model=plain, lora_name=written_lora(golden, comfy, "fold", "fold"), strength_model=1.0)[
        0
    ]
    sample(model)
    assert said == []  # style few asks at t - 0 / 2
    sample(model, preset="8 steps")
    assert "fold.safetensors was trained with folded times" in said[0]
    said.clear()
    sample(model, sampler="euler", preset="30 steps")
    assert "was trained with folded times" in said[0]
    said.clear()
    sample(run("TwinFlowModelPatch", model=model, times="folded (t - r/2)", branch="real")[0], preset="8 steps")
    assert said == []


def test_a_folded_model_with_core_samplers(golden, comfy, run, plain, sample, said):
    file = written_lora(golden, comfy, "fold_ours", "fold")
    model = run("TwinFlowLoraLoader", model=plain, lora_name=file)[0]
    sample(model, sampler="euler", preset="30 steps")
    assert "folded times are wrong" in said[0]


def test_other_loras_pass(golden, comfy, run, plain):
    file = written_lora(golden, comfy, "other")
    patched = run("LoraLoaderModelOnly", model=plain, lora_name=file, strength_model=1.0)[0]
    assert "twinflow" not in patched.model_options["transformer_options"]


def test_prompts_of_another_model(golden, two, plain, sample, run):
    (good, extra), *_ = golden.conditioning()
    wide = [[torch.zeros(1, 4, good.shape[-1] + 3), extra]]
    for model in (two, plain):
        with pytest.raises(ValueError, match="the positive prompt was made for another model"):
            sample(model, positive=wide)
        with pytest.raises(ValueError, match="the negative prompt was made for another model"):
            sample(model, cfg=2.0, negative=wide)
        with pytest.raises(ValueError, match="the positive prompt is empty"):
            run(
                "TwinFlowSampleLatent",
                model=model,
                positive=[],
                latent_image=empty(golden),
                preset="1 step",
                seed=1,
                cfg=1.0,
                denoise=1.0,
            )
        if golden.name == "sd3":
            for pooled in ({}, {"pooled_output": torch.zeros(1, 5)}):
                with pytest.raises(ValueError, match="pooled embedding"):
                    sample(model, positive=[[good, pooled]])
    if golden.name == "sd3":
        guider = run("BasicGuider", model=two, conditioning=[[good, {}]])[0]
        sigmas = torch.tensor([1.0, 0.0])
        with pytest.raises(ValueError, match="has no pooled embedding"):
            inputs = dict(noise=run("RandomNoise", noise_seed=1)[0], guider=guider, sampler=style(run, "few"), sigmas=sigmas)
            run("SamplerCustomAdvanced", latent_image=empty(golden), **inputs)


def test_latents_of_another_model(golden, two, sample):
    with pytest.raises(ValueError, match="has 4 channels"):
        sample(two, latent={"samples": torch.ones(1, 4, 8, 8)})
    with pytest.raises(ValueError, match="not numbers"):
        sample(two, latent={"samples": torch.full((1, 16, 8, 8), float("nan"))})
    with pytest.raises(ValueError, match="is not of an image"):
        sample(two, latent={"samples": torch.zeros(1, 16, 8)})
    if golden.name != "qwen":
        with pytest.raises(ValueError, match="of a video"):
            sample(two, latent={"samples": torch.zeros(1, 16, 5, 8, 8)})
    (embeds, extra), *_ = golden.conditioning()
    with pytest.raises(ValueError, match="a reference image of the positive prompt has 4 channels"):
        sample(two, positive=[[embeds, {**extra, "reference_latents": [torch.ones(1, 4, 8, 8)]}]])


@pytest.mark.parametrize("sigmas", [[0.0, 0.5, 1.0], [1.0, 0.5, -0.1], [1.0, float("nan"), 0.0]])
def test_sigmas_that_do_not_fall(two, sample, sigmas):
    with pytest.raises(ValueError, match="expected times that fall from 1 to 0|sigmas has values that are not numbers"):
        sample(two, sigmas=torch.tensor(sigmas))


def test_a_file_that_holds_no_prompts(comfy, run):
    tiny.save({"a": torch.zeros(1)}, comfy.models / "prompts" / "none.safetensors")
    with pytest.raises(ValueError, match="^none.safetensors: holds no prompts"):
        run("TwinFlowCachedPrompt", file="none.safetensors")
    text = {"twinflow.prompts": json.dumps({"a": "b"})}
    tiny.save({"b.embeds": torch.zeros(1, 4)}, comfy.models / "prompts" / "other.safetensors", text)
    with pytest.raises(ValueError, match="^other.safetensors: "):
        run("TwinFlowCachedPrompt", file="other.safetensors")


@pytest.mark.parametrize("preset", ["2 steps", "4 steps"])
def test_a_row_out_of_a_batch_is_what_it_was(golden, two, sample, run, preset):
    """Core's Latent From Batch and Repeat Latent Batch number the rows."""
    whole = sample(two, preset=preset, latent=empty(golden, 3))
    row = run("LatentFromBatch", samples=empty(golden, 3), batch_index=2, length=1)[0]
    torch.testing.assert_close(sample(two, preset=preset, latent=row), whole[2:], rtol=1e-4, atol=1e-5)
    repeated = run("RepeatLatentBatch", samples=empty(golden, 1), amount=3)[0]
    torch.testing.assert_close(sample(two, preset=preset, latent=repeated), whole, rtol=1e-4, atol=1e-5)
    parts = dict(sampler=style(run, "few", 1.0), sigmas=torch.tensor([1.0, 0.6, 0.0]))
    prompt = golden.conditioning()
    common = dict(model=two, add_noise=True, noise_seed=3, cfg=1.0, positive=prompt, negative=prompt, **parts)
    whole = run("SamplerCustom", latent_image=empty(golden, 3), **common)[0]["samples"]
    torch.testing.assert_close(run("SamplerCustom", latent_image=row, **common)[0]["samples"], whole[2:], rtol=1e-4, atol=1e-5)


def test_rows_without_noise_have_the_seed_s(golden, two, run):
    """A second sampler adds no noise of its own and is told no batch_index: equal latents come out alike."""
    prompt = golden.conditioning()
    parts = dict(sampler=style(run, "few", 1.0), sigmas=torch.tensor([0.8, 0.4, 0.0]))
    latent = {"samples": torch.ones(2, *golden.tensors["x"].shape[1:])}
    out = run(
        "SamplerCustom",
        model=two,
        add_noise=False,
        noise_seed=3,
        cfg=1.0,
        positive=prompt,
        negative=prompt,
        latent_image=latent,
        **parts,
    )[0]
    assert torch.allclose(out["samples"][0], out["samples"][1], rtol=1e-4, atol=1e-5)


def test_a_warning_is_said_once_a_prompt_and_node(comfy, caplog):
    from comfy_execution.utils import CurrentNodeContext

    warn = comfy.part("nodes.report").warn
    for prompt, node in (("p", "1"), ("p", "1"), ("p", "2"), ("q", "1")):
        with CurrentNodeContext(prompt, node):
            warn("wrong")
    assert caplog.text.count("wrong") == 3
