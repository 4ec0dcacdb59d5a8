"""TwinFlow Velocity Fields: what is drawn are the model's answers at (t, t), (-t, -t) and (t, 0), for any model."""

from dataclasses import replace

import pytest
import tiny
import torch

SEED = 5


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


def written(golden, comfy, run, tensors, name="fields", metadata=None):
    file = golden.write(comfy.models / "diffusion_models", tensors, name=name, metadata=metadata)
    return run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]


@pytest.fixture
def model(golden, comfy, run):
    ours = {"twinflow.time": "two", "twinflow.base_model": "x"}
    return written(golden, comfy, run, tiny.native(golden, comfy), metadata=ours)


def latent(golden, values: float = 0.0) -> torch.Tensor:
    shape = golden.latents(2)
    return values * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def rows(comfy, model, golden, samples, times=(0.3, 0.8)):
    return comfy.part("nodes.fields").fields(model, golden.conditioning(), {"samples": samples}, SEED, times)


def noise(shape, seed):
    import comfy.sample

    return comfy.sample.prepare_noise(torch.zeros(1, *shape[1:]), seed)


def asked(comfy, model, golden, x, t: float, r: float, branch: str = "real") -> torch.Tensor:
    """x - t v, by the model itself."""
    times = comfy.part("nodes.time_conditioning")
    time = replace(times.time_conditioning_of(model.model, model.model_options), target=torch.tensor([r]), branch=branch)
    prompt = golden.tensors["c0"][:1]
    extra = {"zimage": dict(num_tokens=prompt.shape[1]), "sd3": dict(y=golden.tensors.get("c1", prompt)[:1])}
    options = {"wrappers": model.wrappers, times.KEY: time}
    with torch.no_grad():
        return model.model.apply_model(
            x, torch.tensor([t]), c_crossattn=prompt, transformer_options=options, **extra.get(golden.name, {})
        )


def test_rows_are_the_model_s_own_answers(comfy, model, golden):
    """At points of a picture that is given, and of the model's own sample of one step."""
    given = latent(golden, 0.5)
    for samples in (given, latent(golden)):
        found = rows(comfy, model, golden, samples)
        z = noise(samples.shape, SEED + 1)
        x = model.model.process_latent_in(given[:1])
        if not samples.any():
            x = asked(comfy, model, golden, noise(samples.shape, SEED), 0.999, 0.0)
        assert [row.t for row in found] == [0.3, 0.8]
        for row in found:
            point = (1 - row.t) * x + row.t * z
            assert torch.allclose(row.point, point, atol=1e-5)
            for values, r, branch in ((row.real, row.t, "real"), (row.fake, row.t, "twin"), (row.jump, 0.0, "real")):
                assert tiny.rms(values, asked(comfy, model, golden, point, row.t, r, branch)) < 1e-5
            assert not torch.allclose(row.real, row.fake, atol=1e-3) and not torch.allclose(row.real, row.jump, atol=1e-3)


def said(comfy, monkeypatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(comfy.part("nodes.velocity_fields"), "warn", heard.append)
    return heard


def drawn(run, model, golden, **more):
    inputs = dict(positive=golden.conditioning(), latent_image={"samples": latent(golden)}, seed=SEED, cell=64)
    return run("TwinFlowVelocityFields", model=model, **{"times": "0.2 0.5;0.9", **inputs, **more})[0]


def test_a_twinflow_model_is_drawn_without_a_word(comfy, run, model, golden, monkeypatch):
    heard = said(comfy, monkeypatch)
    image = drawn(run, model, golden)
    assert image.shape == (1, 32 + 3 * (64 + 3) + 3, 48 + 5 * (64 + 3) + 3, 3) and not heard
    assert torch.equal(image, drawn(run, model, golden)) and not torch.equal(image, drawn(run, model, golden, seed=6))


def test_a_plain_model_says_what_it_lacks(comfy, run, golden, monkeypatch):
    plain = {k: v for k, v in tiny.native(golden, comfy).items() if not comfy.part("twinflow.backbones").is_second_embedder(k)}
    file = golden.write(comfy.models / "diffusion_models", plain, name="plain")
    model, heard = run("UNETLoader", unet_name=file, weight_dtype="default")[0], said(comfy, monkeypatch)
    drawn(run, model, golden)
    assert len(heard) == 1 and "is a plain model" in heard[0] and "\n" not in heard[0]
    assert all(row.fake is None and row.jump is None for row in rows(comfy, model, golden, latent(golden)))


def test_folded_times_have_a_twin(comfy, run, golden, monkeypatch):
    plain = {k: v for k, v in tiny.native(golden, comfy).items() if not comfy.part("twinflow.backbones").is_second_embedder(k)}
    metadata = {"twinflow.time": "fold", "twinflow.base_model": "x"}
    model, heard = written(golden, comfy, run, plain, "folded", metadata), said(comfy, monkeypatch)
    (row,) = rows(comfy, model, golden, latent(golden, 0.5), (0.6,))
    assert not heard and not torch.allclose(row.real, row.fake, atol=1e-4)
    jump = asked(comfy, model, golden, row.point, 0.6, 0.0)
    assert tiny.rms(row.jump, jump) < 1e-5


def test_released_z_image_files_have_no_twin_of_their_own(comfy, goldens, run, monkeypatch):
    """They are asked at |t|, so that (t, t) and (-t, -t) are the same."""
    tiny.need_backbone("zimage", comfy.version)
    golden = tiny.read(goldens, "zimage")
    model, heard = written(golden, comfy, run, golden.weights, "released"), said(comfy, monkeypatch)
    drawn(run, model, golden)
    assert len(heard) == 1 and "the same at t and at -t" in heard[0]


@pytest.mark.parametrize("preset", ["1 step", "8 steps"])
def test_a_schedule_is_plotted_by_its_preset_or_its_sigmas(run, preset):
    sigmas = run("TwinFlowSchedule", preset=preset, steps=2, start_gap=0, end_gap=0, warp_a=1, warp_b=1, warp_c=1, denoise=1)[0]
    size = dict(width=384, height=256)
    own = run("TwinFlowSchedulePlot", style="multi", preset=preset, **size)[0]
    style = {"1 step": "few", "8 steps": "any"}[preset]
    other = run("TwinFlowSchedulePlot", style=style, sigmas=sigmas, preset="30 steps", **size)[0]
    assert own.shape == (1, 256, 384, 3) and torch.equal(own, other)


@pytest.mark.parametrize("times", ["", "soon", "0", "-0.5", "1.2", "nan", "0.1, x", ", ".join(["0.5"] * 17)])
def test_times_that_are_none_are_refused(comfy, times):
    with pytest.raises(ValueError, match=r"^times are .*; expected 1 to 16 numbers above 0 and at most 1") as error:
        comfy.part("nodes.velocity_fields").times_of(times)
    assert "\n" not in str(error.value)


def test_a_vae_decodes_the_pictures(comfy, run, model, golden):
    class Vae:
        def decode(self, samples):
            assert samples.shape[1:] == golden.latents(1)[1:]
            return torch.full((1, 20, 30, 3), 0.25) if samples.ndim == 4 else torch.full((1, 1, 20, 30, 3), 0.25)

    image = drawn(run, model, golden, vae=Vae(), times="0.5", cell=60)
    assert image.shape[1] == 30 + 40 + 3 + 3  # the picture's shape is kept
    assert image[0, 40, 60].tolist() == pytest.approx([64 / 255] * 3)


def test_emoji_are_drawn_pixel_by_pixel(comfy, run):
    model = run("TwinFlowModelLoader", model_name="TwinFlow emoji: base")[0]
    positive, _, _ = run("TwinFlowEmojiPrompt", words="pizza")
    pixels = torch.rand(1, 3, 32, 32)
    samples = {"samples": torch.nn.functional.pixel_unshuffle(pixels * 2 - 1, 2)}
    picture = comfy.part("nodes.velocity_fields").pictures(model.model, None)
    assert torch.allclose(picture(samples["samples"].unsqueeze(2)), pixels[0].movedim(0, -1), atol=1e-6)
    image = run("TwinFlowVelocityFields", model=model, positive=positive, latent_image=samples, seed=1, times="0.001", cell=64)[
        0
    ]
    nearly = image[0, 32 : 32 + 64 : 2, 48 : 48 + 64 : 2]
    assert (nearly - pixels[0].movedim(0, -1)).abs().mean() < 0.01


def test_latents_without_colours_need_a_vae(comfy, model, monkeypatch):
    monkeypatch.setattr(model.model.latent_format, "latent_rgb_factors", None)
    with pytest.raises(ValueError, match="connect its VAE"):
        comfy.part("nodes.velocity_fields").pictures(model.model, None)
