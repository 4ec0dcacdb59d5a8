"""The emoji models that come with the pack, right after installation: where they are listed and what they draw."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
FILES = ROOT / "twinflow" / "models" / "emoji"
NUMBERS = ROOT / "tests" / "emoji" / "velocity.safetensors"
BASE = "TwinFlow emoji: base"
SHOWS = "smiling face with heart-eyes"  # as tests/emoji/samples.py asks
TOLERANCE = 1e-4


def load():
    import comfy.sd

    options = {"dtype": torch.float32}
    return comfy.sd.load_diffusion_model(str(FILES / "base.safetensors"), model_options=options)


def test_the_shipped_base_is_found_and_gives_the_trainer_s_velocity(comfy):
    model, recorded = load().model, load_file(NUMBERS)
    with torch.no_grad():
        x, t = recorded["x"].unsqueeze(2), recorded["t"]
        made = model.diffusion_model(x, t, recorded["embeds"])
    assert torch.allclose(made.squeeze(2), recorded["velocity"], atol=1e-4)


def test_its_latents_are_squares_of_pixels(comfy):
    form = load().model.latent_format
    assert form.latent_channels == 12 and form.spacial_downscale_ratio == 2 and form.latent_dimensions == 3
    x = torch.randn(1, 12, 1, 4, 4)
    assert torch.equal(form.process_in(x), x) and torch.equal(form.process_out(x), x)
    red = torch.nn.functional.pixel_unshuffle(torch.tensor([1.0, -1, -1]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2), 2)
    assert torch.allclose(red.reshape(12) @ torch.tensor(form.latent_rgb_factors), torch.tensor([1.0, -1, -1]))


# Where they are listed


@pytest.fixture
def shipped(comfy, monkeypatch, tmp_path):
    """The pack as if these came with it: the base, its words, a model with a random second embedder, and an adapter."""
    shipped = comfy.part("nodes.shipped")
    folder = tmp_path / "emoji"
    folder.mkdir()
    base = load_file(FILES / "base.safetensors")
    second = {k: v.to(torch.bfloat16) for k, v in tiny.second_embedder({k: v.float() for k, v in base.items()}).items()}
    ours = {"twinflow.time": "two", "twinflow.base_model": "emoji", "twinflow.sampler": '[{"steps": 2, "style": "any"}]'}
    for name in ("base", "words"):
        shutil.copy(FILES / f"{name}.safetensors", folder)
    save_file(base | second, folder / "distilled.safetensors", ours)
    parts = tiny.lora({k: v.float() for k, v in base.items()}, ("attn.to_q",))
    halves = {f"diffusion_model.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab, strict=True)}
    save_file(halves | {f"diffusion_model.{k}": v for k, v in second.items()}, folder / "adapter.safetensors", ours)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    return shipped


def options(comfy, node_id: str, name: str) -> list[str]:
    """The values that a combo offers, first the default."""
    kind, spec = comfy.nodes[node_id].GET_NODE_INFO_V1()["input"]["required"][name]
    return kind if isinstance(kind, list) else spec["options"]


def test_they_are_in_the_pack_s_own_lists_behind_the_user_s_files(comfy, shipped):
    import folder_paths

    for folder in ("diffusion_models", "loras"):
        save_file({"x": torch.zeros(1)}, comfy.models / folder / "zz_of_the_user.safetensors")
    models, loras = options(comfy, "TwinFlowModelLoader", "model_name"), options(comfy, "TwinFlowLoraLoader", "lora_name")
    assert models[-3:] == ["zz_of_the_user.safetensors", "TwinFlow emoji: distilled", BASE]
    assert loras[-2:] == ["zz_of_the_user.safetensors", "TwinFlow emoji: adapter"]
    assert options(comfy, "TwinFlowModelLoader", "adapter")[-1] == "TwinFlow emoji: adapter"
    for folder, (places, _) in folder_paths.folder_names_and_paths.items():
        assert not [place for place in places if Path(place).resolve().is_relative_to(ROOT / "twinflow")], folder
        if folder in ("diffusion_models", "loras", "checkpoints", "text_encoders", "vae"):
            assert not [name for name in folder_paths.get_filename_list(folder) if "emoji" in name]


def test_a_file_is_listed_by_being_there_and_a_damaged_one_says_so(comfy, run, shipped):
    (shipped.FOLDER / "emoji" / "new.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    name = "TwinFlow emoji: new"
    assert name in options(comfy, "TwinFlowModelLoader", "model_name")
    with pytest.raises(ValueError, match=r"^new\.safetensors: .*fetch it again"):
        run("TwinFlowModelLoader", model_name=name)


@pytest.mark.parametrize("name", ["TwinFlow emoji: words", "TwinFlow emoji: ../base", "TwinFlow emoji: nothing"])
def test_no_other_name_leads_to_a_file(run, shipped, name):
    with pytest.raises(ValueError, match="is refused|is not there|holds|is another model"):
        run("TwinFlowModelLoader", model_name=name)


def test_whole_model_base_and_adapter_load(comfy, run, shipped):
    model, report = run("TwinFlowModelLoader", model_name="TwinFlow emoji: distilled")
    assert report.startswith("Emoji, bf16, two-time\n") and "missing: none" in report
    plain, report = run("TwinFlowModelLoader", model_name=BASE)
    assert (
        report.startswith("Emoji, bf16, plain base\n")
        and not plain.model_options["transformer_options"]["twinflow"].recommended
    )
    adapter = dict(adapter="TwinFlow emoji: adapter", adapter_strength=0.5)
    both, report = run("TwinFlowModelLoader", model_name=BASE, **adapter)
    assert "two-time" in report and "dropped: 0" in report
    twice, report = run("TwinFlowLoraLoader", model=model, lora_name="TwinFlow emoji: adapter", strength=0.5)
    assert "dropped: 0" in report
    with pytest.raises(ValueError, match="Load base and adapter together with the TwinFlow Model Loader"):
        run("TwinFlowLoraLoader", model=plain, lora_name="TwinFlow emoji: adapter")
    again, arguments = plain.cached_patcher_init
    assert again(*arguments, disable_dynamic=True).model is not plain.model


def test_a_plain_model_that_is_no_base_of_ours_stays_refused(comfy, run):
    tiny.save(tiny.digits(), comfy.models / "diffusion_models" / "plain.safetensors")
    with pytest.raises(ValueError, match="is a plain Qwen-Image"):
        run("TwinFlowModelLoader", model_name="plain.safetensors")


# What they draw


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What the trainer draws with the shipped files, in its own interpreter."""
    named = os.environ.get("TWINFLOW_TRAINER_PYTHON")
    for python in [named] if named else [str(ROOT / ".venv" / "bin" / "python"), sys.executable]:
        if (
            shutil.which(python)
            and not subprocess.run([python, "-c", "import diffusers, peft"], capture_output=True).returncode
        ):
            break
    else:
        why = "no interpreter with diffusers and peft: run `make setup`, or set TWINFLOW_TRAINER_PYTHON"
        (pytest.fail if os.environ.get("TWINFLOW_REQUIRE_COMFYUI") else pytest.skip)(why)
    file = tmp_path_factory.mktemp("drawn") / "samples.safetensors"
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, ROOT / "tests/emoji/samples.py", file], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(file)


def test_the_nodes_draw_what_the_trainer_draws(comfy, run, drawn):
    recommended = comfy.part("nodes.sampler").recommended
    checked = 0
    for key, want in drawn.items():
        if key == "noise":
            continue
        file, _, name = key.partition("/")
        whole = dict(model_name=f"TwinFlow emoji: {file}") if f"TwinFlow emoji: {file}" in shipped_models(comfy) else {}
        model = run(
            "TwinFlowModelLoader",
            weight_dtype="float32",
            **whole or dict(model_name=BASE, adapter=f"TwinFlow emoji: {file}"),
        )[0]
        schedule, style = dict(preset="custom", steps=8, start_gap=0.001, end_gap=0.0), "multi"
        if file != "base":
            own = recommended(model, f"{name}, by the file")
            schedule, style = schedule | dict(steps=own.steps, end_gap=own.end_gap), own.style
            assert f"{own.steps} step" in name and not own.stochasticity
        sigmas = run("TwinFlowSchedule", **schedule, warp_a=1.0, warp_b=1.0, warp_c=1.0, denoise=1.0)[0]
        plain = dict(order="1", noise="constant", stochasticity=0.0, extrapolation=0.0)
        sampler = run("TwinFlowUnifiedSampler", style=style, **plain)[0]
        positive, _, latent = run("TwinFlowEmojiPrompt", words=SHOWS, batch_size=2)
        guider = run("BasicGuider", model=model, conditioning=positive)[0]
        noise = tiny.FixedNoise(drawn["noise"].unsqueeze(2))
        ends = dict(sigmas=sigmas, latent_image=latent)
        out = run("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, **ends)[0]
        got = out["samples"].reshape(want.shape)
        assert (got - want).abs().max() <= TOLERANCE * max(1, float(want.abs().max())), (key, (got - want).abs().max())
        checked += 1
    assert checked >= 1


def shipped_models(comfy) -> list[str]:
    return comfy.part("nodes.shipped").models()


def test_the_base_draws_what_was_asked_for(run):
    """A red heart is red in the middle and white in the corners."""
    model = run("TwinFlowModelLoader", model_name=BASE)[0]
    positive, negative, latent = run("TwinFlowEmojiPrompt", words="red heart")
    plain = dict(seed=3, steps=16, cfg=1.5, sampler_name="euler", scheduler="simple", denoise=1.0)
    out = run("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **plain)[0]
    image = run("TwinFlowEmojiImage", latent=out, scale=1)[0][0]
    assert image.shape == (32, 32, 3)
    red, green, blue = image[12:18, 12:20].mean((0, 1)).tolist()
    assert red > 0.7 and max(green, blue) < 0.45 and image[:3, :3].mean() > 0.9


# Words and pictures


def test_words_become_their_tokens_and_an_empty_latent(comfy, run):
    positive, negative, latent = run("TwinFlowEmojiPrompt", words=" Flag of JAPAN ", batch_size=3)
    table = comfy.part("nodes.emoji_prompt").words()
    assert torch.equal(positive[0][0][0], table.encode("flag of japan").embeds)
    assert torch.equal(negative[0][0][0], table.vectors[:1])
    assert latent["samples"].shape == (3, 12, 16, 16) and not latent["samples"].any()


@pytest.mark.parametrize(
    ("text", "said"), [("grining cat", "'grining'.*near ones are grinning"), ("qqqq", "known are 1477 words of names of emoji")]
)
def test_unknown_words_are_refused_in_one_line(run, text, said):
    with pytest.raises(ValueError, match=said) as error:
        run("TwinFlowEmojiPrompt", words=text)
    assert "\n" not in str(error.value)


def test_the_help_page_lists_every_word(comfy):
    pages, words = comfy.part("nodes.help_pages"), comfy.part("nodes.emoji_prompt").words().words
    for language in ("en", "zh"):
        text = pages.page(ROOT / "web" / "docs" / "TwinFlowEmojiPrompt" / f"{language}.md")
        assert ", ".join(words[1:]) in text and "CC-BY 4.0" in text


def test_pixels_are_squares(run):
    pixels = torch.rand(2, 3, 32, 32)
    samples = torch.nn.functional.pixel_unshuffle(pixels * 2 - 1, 2)
    for latent in (samples, samples.unsqueeze(2)):
        image = run("TwinFlowEmojiImage", latent={"samples": latent}, scale=4)[0]
        assert image.shape == (2, 128, 128, 3)
        assert torch.allclose(image[:, ::4, ::4], pixels.movedim(1, -1), atol=1e-6)
        assert torch.equal(image[:, 3::4, 2::4], image[:, ::4, ::4])


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 16, 1, 8, 8), (1, 3, 1, 8, 8), (12, 16, 16)])
def test_other_models_latents_are_refused_in_one_line(run, shape):
    with pytest.raises(ValueError, match=f"the latent is {'x'.join(map(str, shape))}, those of emoji have 12") as error:
        run("TwinFlowEmojiImage", latent={"samples": torch.zeros(shape)}, scale=8)
    assert "\n" not in str(error.value)


def test_damaged_latents_are_refused(run):
    with pytest.raises(ValueError, match="not numbers"):
        run("TwinFlowEmojiImage", latent={"samples": torch.full((1, 12, 16, 16), torch.nan)}, scale=8)
