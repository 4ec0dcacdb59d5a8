"""Epochs in place of steps, the schedules by name, and the shift of the times."""

import json
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from trainer import TrainerError
from trainer.backbones import backbone
from trainer.backbones.shifts import Shift
from trainer.cli import main
from trainer.config.flat import from_flat
from trainer.config.resolving import resolve
from trainer.config.sections import Training
from trainer.training.loop import learning_rate


def test_epochs_are_steps_of_the_data(tmp_path, tiny, finished, capsys):
    """1347 rows in steps of 500: one epoch is three steps; and two go on from there."""
    asked = [*(a for i, a in enumerate(tiny) if "--steps" not in (a, tiny[i - 1])), "--out", str(tmp_path), "--batch", "500",
             "--base", str(finished / "digits-lora" / "base.safetensors"), "--evaluate", "0"]  # fmt: skip
    assert main("lora", [*asked, "--epochs", "1"]) == 0
    assert "--epochs 1: 3 steps, of 500 among 1347 rows each" in capsys.readouterr().out
    folder = tmp_path / "digits-lora"
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[-1].startswith("distil,3,") and json.loads((folder / "config.json").read_text())["steps"] == 3
    summary = (folder / "summary.md").read_text("utf-8").split("```")[1]
    assert "--epochs 1" in summary and "--steps" not in summary
    assert main("lora", [*asked, "--epochs", "1"]) == 0
    assert "is finished (3 steps)" in capsys.readouterr().out
    assert main("lora", [*asked, "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "--epochs 2 (was 1)" in out and "(step 3 of 6)" in out and "--steps" not in out


def test_steps_and_epochs_are_one_question(capsys):
    with pytest.raises(TrainerError, match="--steps 10 and --epochs 2: expected one of them"):
        resolve("lora", {"steps": 10, "epochs": 2})
    assert main("lora", ["--epochs", "2", "--dry-run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["epochs"] == 2 and "steps" not in printed and resolve("lora", printed).training.epochs == 2
    assert main("lora", ["--dry-run"]) == 0
    assert resolve("lora", json.loads(capsys.readouterr().out)).training.steps == 750
    with pytest.raises(TrainerError, match="epochs"):
        resolve("lora", {"epochs": 0})


def test_constant_with_warmup():
    plain = Training(steps=100, warmup=10, schedule="constant")
    named = Training(steps=100, warmup=10, schedule="constant-with-warmup")
    assert [learning_rate(i, plain) for i in range(100)] == [learning_rate(i, named) for i in range(100)]
    assert learning_rate(0, named) == pytest.approx(0.1) and learning_rate(99, named) == 1
    with pytest.raises(TrainerError, match="--warmup is 0; expected some steps, or --schedule constant"):
        resolve("lora", {"schedule": "constant-with-warmup", "warmup": 0})


def test_an_older_run_without_these_settings_is_the_same(tmp_path):
    now = resolve("lora", {"time_shift": 1})
    values = {name: value for name, value in now.flat().items() if name not in ("epochs", "time_shift")}
    assert from_flat(values) == now
    assert resolve("lora", {"time_shift": 3}).hash() != now.hash() != resolve("lora", {"epochs": 3}).hash()


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 6032])
def test_the_shift_is_the_samplers(tokens):
    """Against diffusers' scheduler with Qwen-Image's published settings, without the stretch of its last step."""
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    t = torch.linspace(0.05, 1, 9)
    wanted = torch.as_tensor(own.time_shift(mu, 1.0, t))
    s = backbone("qwen-image").shift.of(tokens)
    torch.testing.assert_close(s * t / (1 + (s - 1) * t), wanted)
    assert s == pytest.approx(math.exp(mu))


def test_a_source_has_a_shift_of_its_own(tmp_path):
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    published = Shift(3.0)
    assert published.beside(str(tmp_path)) == published == published.beside("") == published.beside("owner/name")
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(tmp_path / "scheduler")
    assert published.beside(str(tmp_path)).of(1) == published.beside(str(tmp_path)).of(4096) == 5
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(tmp_path / "scheduler")
    assert published.beside(str(tmp_path)).of(4096) == pytest.approx(math.exp(1.15))
    for text in ("[]", "{", '{"shift": "x"}'):
        file.write_text(text)
        assert published.beside(str(tmp_path)) == published


@pytest.mark.parametrize("value", ["abc", "0", "-1", "nan", "inf", ""])
def test_a_shift_that_is_none(value, capsys):
    assert main("lora", [f"--time-shift={value}", "--dry-run"]) == 2
    assert f"--time-shift is {value}; expected resolution, or a factor above 0" in capsys.readouterr().err


def test_digits_have_no_pipeline(capsys):
    assert main("lora", ["--time-shift", "resolution", "--dry-run"]) == 2
    assert "digits has no pipeline that shifts; expected a factor" in capsys.readouterr().err
    assert resolve("lora", {"model": "sd3.5", "time_shift": "resolution"}).training.time_shift == "resolution"
    assert resolve("lora", {"time_shift": "3"}).training.time_shift == 3.0
