"""trainer.base on the digits: usable at every save and on Ctrl-C, extended, and gone on with under other settings."""

import json
import signal

import pytest
import torch

from trainer.cli import main
from trainer.runs import run as runs
from trainer.weights import files
from twinflow.weights import load

OPTIONS = ["--model", "digits", "--threads", "1", "--base-steps", "6", "--base-batch", "16", "--save-every", "2",
           "--sample-every", "0", "--log-every", "1", "--evaluate", "0", "--tracker", "none", "--name", "b"]  # fmt: skip


@pytest.fixture
def go(tmp_path, capsys):
    def run(*options):
        code = main("base", [*OPTIONS, "--out", str(tmp_path), *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def interrupt(monkeypatch, at):
    log = runs.Log.step

    def step(self, number, *rest, **options):
        log(self, number, *rest, **options)
        if number == at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runs.Log, "step", step)


def test_every_save_and_ctrl_c_leave_a_base(go, tmp_path, monkeypatch, tiny, capsys):
    folder = tmp_path / "b"
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        code, out = go()
    path = files.base_at_step(folder, "b", 3)
    assert code == 130 and "stopped at step 3 of 6" in out and f"to be used as {path}" in out
    assert list(files.bases_by_step(folder, "b")) == [2, 3] and not (folder / "base.safetensors").exists()
    options = [*tiny, "--base", str(path), "--out", str(tmp_path / "runs"), "--steps", "2", "--evaluate", "0"]
    assert main("lora", options) == 0, capsys.readouterr().err  # its prompts lie beside it
    code, out = go()
    assert code == 0 and "step 3 of 6" in out
    assert list(files.bases_by_step(folder, "b")) == [2, 3, 4, 6]
    assert main("base", [*OPTIONS, "--out", str(tmp_path / "alone")]) == 0
    a, b = (load(f / "b" / "base.safetensors") for f in (tmp_path, tmp_path / "alone"))
    assert all(torch.equal(a[name], t) for name, t in b.items())
    last = load(files.base_at_step(folder, "b", 6))
    assert all(torch.equal(a[name], t) for name, t in last.items())


def test_a_finished_base_is_extended(go, tmp_path):
    folder = tmp_path / "b"
    assert go("--keep-weights", 2)[0] == 0
    assert list(files.bases_by_step(folder, "b")) == [4, 6]
    before = load(folder / "base.safetensors")
    code, out = go("--base-steps", 8, "--base-lr", "1e-3", "--keep-weights", 2)
    assert code == 0 and "step 6 of 8" in out and "--base-steps 8 (was 6)" in out and "--base-lr 0.001 (was " in out
    assert list(files.bases_by_step(folder, "b")) == [6, 8]
    after = load(folder / "base.safetensors")
    assert any(not torch.equal(before[name], t) for name, t in after.items())
    assert json.loads((folder / "metrics.json").read_text())["step"] == 8
    code, out = go("--base-steps", 8)
    assert code == 0 and "is finished (8 steps)" in out and "more --base-steps" in out
    (folder / "base.safetensors").unlink()
    code, out = go("--base-steps", 8)
    assert code == 0 and "base.safetensors is gone: it is written again" in out
    assert all(torch.equal(after[name], t) for name, t in load(folder / "base.safetensors").items())


def test_a_base_of_an_older_version_cannot_be_extended(go, tmp_path):
    """It kept no training state; what it has stays."""
    import shutil

    folder = tmp_path / "b"
    assert go()[0] == 0
    shutil.rmtree(folder / "checkpoints")
    wanted = (folder / "base.safetensors").read_bytes()
    code, out = go("--base-steps", 8)
    assert code == 2 and "no checkpoint to go on from" in out and "--name NEW" in out
    assert (folder / "base.safetensors").read_bytes() == wanted
    (folder / "metrics.json").unlink()  # stopped while it was judged
    code, out = go()
    assert code == 0 and (folder / "base.safetensors").read_bytes() == wanted
