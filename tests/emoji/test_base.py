"""The base: the files that come with the project, the command that trains them, and a run that starts from them."""

import json
import signal
import time

import pytest
import torch
from PIL import Image

from trainer.backbones import backbone
from trainer.backbones.emoji import to_images, to_latents
from trainer.cli import main
from trainer.data.emoji import vocabulary
from trainer.generate import main as generate
from trainer.runs import emoji, two_sample
from twinflow.backbones.emoji import SHIPPED
from twinflow.weights import load, read_header
from twinflow.words import load_words

from ..processes import Started

TINY = ["--model", "emoji", "--threads", "1", "--tracker", "none", "--log-every", "1", "--save-every", "1",
        "--sample-every", "0"]  # fmt: skip
BASE = [*TINY, "--base-steps", "5", "--base-batch", "50", "--validate-every", "1000", "--evaluate", "0"]
FILES = "base.safetensors", "words.safetensors"


def start(out, name):
    return Started("trainer.base", *BASE, "--out", out, "--name", name, files=out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A base that was killed in the middle and gone on with, and one that was left alone, in one folder."""
    out = tmp_path_factory.mktemp("bases")
    alone = start(out, "alone").communicate(timeout=240)
    assert (out / "alone" / "metrics.json").exists(), alone[1]
    killed = start(out, "killed")
    end = time.monotonic() + 120
    while not list((out / "killed").glob("checkpoints/step-*2.safetensors")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (out / "killed" / FILES[0]).exists(), "it was meant to be stopped before the end"
    again = start(out, "killed")
    said, errors = again.communicate(timeout=240)
    assert again.returncode == 0 and "going on with base" in said, errors
    return out


def test_killed_and_resumed_is_bit_equal(finished):
    for name in FILES:
        a, b = (load(finished / run / name) for run in ("alone", "killed"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_what_a_finished_base_leaves(finished, capsys):
    folder = finished / "alone"
    header = read_header(folder / "base.safetensors")
    assert {dtype for dtype, _ in header.tensors.values()} == {"BF16"} and "CC-BY-4.0" in header.metadata["modelspec.license"]
    assert list(load_words(folder / "words.safetensors").words) == vocabulary()
    assert min(Image.open(folder / "loss.png").size) > 100
    assert len(list((folder / "checkpoints").glob("step-*.safetensors"))) == 1, "to be gone on with"
    assert len(load_words(folder / "checkpoints" / "alone-step-000003" / "words.safetensors").words) == len(vocabulary())
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 6 and rows[-1].split(",")[13], "the loss on held-out pictures"
    assert main("base", [*BASE, "--out", str(finished), "--name", "alone"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_the_loss_falls(finished):
    lines = [line.split(",") for line in (finished / "alone" / "metrics.csv").read_text().splitlines()[1:]]
    assert float(lines[-1][4]) < float(lines[0][4])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "qwen-image"], "expected one of digits, emoji"),
        (["--model", "emoji", "--rank", "8"], "--rank means nothing to trainer.base"),
        (["--model", "emoji", "--data", "x"], "--data means nothing to trainer.base"),
    ],
)
def test_what_cannot_be_is_refused(options, said, capsys):
    assert main("base", options) == 2
    assert said in capsys.readouterr().err


def test_pixels_and_latents_are_inverse():
    pixels = torch.rand(2, 3, 32, 32)
    latents = to_latents(pixels * 2 - 1)
    assert latents.shape == (2, 12, 16, 16) and torch.allclose(to_images(latents), pixels, atol=1e-6)
    assert latents[0, :4, 0, 0].tolist() == [float(pixels[0, 0, y, x] * 2 - 1) for y in (0, 1) for x in (0, 1)]


def test_the_shipped_base():
    assert sum((SHIPPED / name).stat().st_size for name in FILES) <= 8_000_000
    for name in FILES:
        header = read_header(SHIPPED / name)
        assert {dtype for dtype, _ in header.tensors.values()} == {"BF16"} and "Twemoji" in header.metadata["modelspec.license"]
    assert list(load_words(SHIPPED / "words.safetensors").words) == vocabulary()
    model = backbone("emoji").load()
    assert sum(p.numel() for p in model.parameters()) < 3_900_000 and model.config.in_channels == 48


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    options = [*TINY, "--out", str(out), "--steps", "2", "--batch", "50", "--evaluate", "6", "--warmup", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_sample, "FEWEST", 1)
        patch.setattr(two_sample, "STEPS", 2)
        patch.setattr(emoji, "ACROSS", 1)
        assert main("lora", options) == 0
    return out / "emoji-lora"


def test_a_run_starts_from_the_shipped_base(distilled):
    a, b = load(distilled / "base.safetensors"), load(SHIPPED / "base.safetensors")
    assert all(torch.equal(a[name], b[name].float()) for name in b)
    rows = json.loads((distilled / "metrics.json").read_text())["quality"]
    assert [(row["stage"], row["nfe"]) for row in rows] == [
        ("base", 1), ("base", 32), ("distilled", 1), ("distilled", 2), ("distilled", 4), ("distilled", 8),
    ]  # fmt: skip
    made = distilled / "samples_distilled_1nfe.safetensors"
    assert load(made)["images"].shape == (6, 3, 32, 32) and len(json.loads(read_header(made).metadata["prompts"])) == 6
    few, many = rows[:2]
    assert many["nearest"] < few["nearest"] and many["sharpness"] < few["sharpness"]
    assert many["c2st"] == "" and all(0 <= row["c2st"] <= 1 for row in rows if row is not many)


def test_pictures_of_words(distilled, tmp_path, capsys):
    path = tmp_path / "made.png"
    options = [str(distilled), "--each", "1", "--output", str(path)]
    assert generate([*options, "--prompts", "Red heart!", "flag of Japan"]) == 0 and Image.open(path).size[1] > 64
    assert generate([*options, "--prompts", "red haert"]) == 2
    assert "'haert'" in (error := capsys.readouterr().err) and "heart" in error
    assert generate([*options, "--prompts", "cat", "--reference", "x.png"]) == 2
