"""Every kind of bad input: one line that names the value and what to do, exit code 2, nothing written."""

import os

import pytest
import torch

from trainer.cli import main
from twinflow.weights import load, save

CASES = {
    "unknown model": (["--model", "foo"], ["foo", "digits"]),
    "roles all zero": (["--roles", "one_step=0,fake=0"], ["roles", "one above 0"]),
    "unknown role": (["--roles", "two_step=1"], ["two_step", "one_step"]),
    "order below 0": (["--order=-1"], ["order", "-1"]),
    "order 0 without its roles": (["--order", "0", "--roles", "one_step=1"], ["multi_step", "order 0"]),
    "rank 0": (["--rank", "0"], ["rank", "0"]),
    "batch 0": (["--batch", "0"], ["batch", "0"]),
    "no number": (["--lr", "fast"], ["lr", "fast"]),
    "not finite": (["--lr", "inf"], ["lr"]),
    "a batch too small for the roles": (["--batch", "1"], ["batch 1", "accumulation"]),
    "unknown preset": (["--preset", "sdxl"], ["sdxl", "twinflow"]),
    "unknown target": (["--targets", "to_x"], ["to_x", "attention"]),
    "a name with a slash": (["--name", "../x"], ["../x", "plain name"]),
    "missing configuration": (["--config", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
    "missing base": (["--base", "nowhere.safetensors"], ["nowhere.safetensors", "cannot be read"]),
    "a hidden name": (["--name", ".hidden"], [".hidden", "plain name"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(name, tmp_path, capsys, tiny):
    options, words = CASES[name]
    assert main("lora", [*tiny, "--out", str(tmp_path / "runs"), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: "), error
    assert all(word in error[0] for word in words), error
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_tracker_that_is_not_installed(tmp_path, capsys, tiny, monkeypatch):
    monkeypatch.setattr("trainer.training.trackers.find_spec", lambda name: None)
    assert main("lora", [*tiny, "--out", str(tmp_path / "runs"), "--tracker", "wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err


def test_unknown_key_in_a_file(tmp_path, capsys, tiny):
    file = tmp_path / "settings.yaml"
    file.write_text("learning_rate: 1\n")
    assert main("lora", [*tiny, "--config", str(file)]) == 2
    assert "'learning_rate' is unknown" in capsys.readouterr().err


def test_a_file_that_holds_no_settings(tmp_path, capsys, tiny):
    for text in ("- 1\n", "a: [", "\x00\xff"):
        (tmp_path / "s.yaml").write_bytes(text.encode("latin1"))
        assert main("lora", [*tiny, "--config", str(tmp_path / "s.yaml")]) == 2
        assert "s.yaml" in capsys.readouterr().err


def test_an_out_that_is_a_file(tmp_path, capsys, tiny):
    (tmp_path / "runs").write_text("")
    assert main("lora", [*tiny, "--out", str(tmp_path / "runs")]) == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_out_that_cannot_be_written(tmp_path, capsys, tiny):
    tmp_path.chmod(0o500)
    assert main("lora", [*tiny, "--out", str(tmp_path / "runs")]) == 2
    assert "writable" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["truncated", "not safetensors", "another model", "another size"])
def test_a_base_that_cannot_be_used(finished, tmp_path, capsys, fault, tiny):
    good = finished / "digits-lora" / "base.safetensors"
    bad = tmp_path / "bad.safetensors"
    tensors = load(good)
    if fault == "truncated":
        bad.write_bytes(good.read_bytes()[:-1000])
    elif fault == "not safetensors":
        bad.write_bytes(b"PK\x03\x04" + bytes(500))
    elif fault == "another model":
        save({"layers.0.attention.qkv.weight": torch.zeros(3, 3)}, bad)
    else:
        save(tensors | {"img_in.weight": torch.zeros(64, 64)}, bad)
    assert main("lora", [*tiny, "--out", str(tmp_path / "runs"), "--base", str(bad)]) == 2
    error = capsys.readouterr().err.strip()
    assert "bad.safetensors" in error and len(error.splitlines()) == 1
    assert not list((tmp_path / "runs").rglob("digits-lora.safetensors"))


def test_a_full_card_is_answered_with_the_plan(capsys, tiny, monkeypatch):
    def full(config):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("trainer.runs.run.run", full)
    assert main("lora", tiny) == 1
    error = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in error and "--plan" in error and "more" not in error
