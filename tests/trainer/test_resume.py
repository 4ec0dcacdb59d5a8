"""Stopping a run at any moment costs nothing but time: the weights end bit-equal."""

import signal
import time

import pytest
import torch

from twinflow.weights import load


def wait_for(pattern, folder, process, seconds=120):
    """Until a file that matches the pattern is there."""
    end = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.002)


def same(a, b):
    a, b = load(a), load(b)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("mode", "kind", "moment"),
    [
        ("lora", signal.SIGKILL, "cache/*/checkpoints/step-00000002.safetensors"),  # while the base is trained
        ("lora", signal.SIGKILL, "digits-lora/checkpoints/step-00000004.safetensors"),
        ("full", signal.SIGKILL, "digits-full/checkpoints/step-00000002.safetensors"),
        ("lora", signal.SIGINT, "digits-lora/checkpoints/step-00000002.safetensors"),
    ],
)
def test_killed_and_resumed_is_bit_equal(finished, tmp_path, mode, kind, moment, start):
    process = start(mode, "--out", tmp_path)
    wait_for(moment, tmp_path, process)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert not list(tmp_path.glob("digits-*/digits-*.safetensors")), "it was meant to be stopped before the end"
    if kind == signal.SIGINT:
        assert process.returncode == 130 and "run the same command again" in err
    else:
        assert process.returncode == -signal.SIGKILL
    again = start(mode, "--out", tmp_path)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "going on with" in out
    name = f"digits-{mode}"
    assert same(tmp_path / name / "base.safetensors", finished / name / "base.safetensors")
    assert same(tmp_path / name / f"{name}.safetensors", finished / name / f"{name}.safetensors")
    assert not list(tmp_path.rglob(".*.tmp")) or kind == signal.SIGKILL
    logged = (tmp_path / name / "metrics.csv").read_text().splitlines()
    assert len(logged) == len((finished / name / "metrics.csv").read_text().splitlines())


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, capsys, finished, tiny):
    from trainer.cli import main

    options = [*tiny, "--out", str(tmp_path), "--base", str(finished / "digits-lora" / "base.safetensors")]
    assert main("lora", options) == 0
    folder = tmp_path / "digits-lora"
    (folder / "metrics.json").unlink()
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    capsys.readouterr()
    assert main("lora", options) == 0
    out = capsys.readouterr().out
    assert newest.name in out and "cut off" in out and "going on from the one before" in out and "(step 6 of 8)" in out
