"""A run is gone on with under other settings, unless they would make its weights mean something else."""

import json
import shutil
from typing import Any

import pytest
import torch

from trainer.cli import main
from trainer.config.resolving import resolve
from trainer.runs import resume
from trainer.training import checkpoint
from trainer.weights import files
from twinflow.weights import load, read_header


@pytest.fixture
def go(finished, tmp_path, tiny, capsys):
    """go(option, ...): exit code and what is said, in a copy of a finished run; its base is a file."""
    shutil.copytree(finished / "digits-lora", tmp_path / "first" / "digits-lora")
    base = tmp_path / "base"
    base.mkdir()
    for name in ("base.safetensors", "prompts.safetensors"):
        shutil.copy(finished / "digits-lora" / name, base)
    config = tmp_path / "first" / "digits-lora" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base": str(base / "base.safetensors")}))

    def run(*options):
        given = ["--base", str(base / "base.safetensors"), "--out", str(tmp_path / "first"), "--evaluate", "0", *options]
        code = main("lora", [*tiny, *given])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    go: Any = run
    go.folder, go.base = tmp_path / "first" / "digits-lora", base
    return go


@pytest.mark.parametrize(
    "options, said",
    [
        ([], []),
        (["--lr", "5e-5", "--schedule", "linear", "--log-every", "3"], ["--lr 5e-05 (was ", "--schedule linear (was "]),
        (["--optimizer", "adamw"], ["--optimizer adamw (was muon)", "the optimiser's memory starts afresh"]),
        (["--weights-ema", "0"], ["--weights-ema 0 (was 0.99)"]),
        (["--dropout", "0.1", "--dtype", "bf16", "--batch", "8", "--seed", "5"], ["--dropout 0.1", "--seed 5 (was 0)"]),
    ],
)
def test_a_finished_run_is_extended(go, options, said):
    code, out = go("--steps", "10", *options)
    assert code == 0 and "step 8 of 10" in out, out
    assert all(words in out for words in ["other settings than before: ", "--steps 10 (was 8)", *said]), out
    assert out.count("other settings") == 1 and ("afresh" in out) == ("--optimizer" in options)
    header = read_header(files.final(go.folder, "digits-lora"))
    assert header.metadata["twinflow.step"] == "10" and "10 steps" in (go.folder / "summary.md").read_text()
    assert all(t.isfinite().all() for t in load(files.final(go.folder, "digits-lora")).values())
    code, out = go("--steps", "10", *options)
    assert code == 0 and "is finished (10 steps)" in out and "other settings" not in out


def test_other_settings_of_a_finished_run_are_said(go):
    code, out = go("--lr", "5e-5", "--log-every", "3")
    assert code == 0 and "is finished (8 steps)" in out and "grid.png" in out
    assert (
        "it was trained with other settings: --lr 5e-05 (was " in out and "with more --steps" in out and "log-every" not in out
    )
    code, out = go("--steps", "3")
    assert code == 0 and "other settings" not in out


def test_fewer_steps_than_are_trained(go):
    (go.folder / "metrics.json").unlink()
    code, out = go("--steps", "3")
    assert code == 0 and "8 steps are trained already, more than --steps 3" in out
    assert read_header(files.final(go.folder, "digits-lora")).metadata["twinflow.step"] == "8"


@pytest.mark.parametrize(
    "options",
    [["--rank", "4"], ["--time", "fold"], ["--alpha", "3"], ["--dt", "0.3"], ["--rslora", "--alpha", "3"], ["--guidance", "3"],
     ["--targets", "attention"], ["--preset", "rcgm"]],
)  # fmt: skip
def test_what_would_mean_something_else_is_refused(go, options):
    before = {p: p.stat().st_mtime_ns for p in go.folder.rglob("*")}
    code, out = go("--steps", "10", *options)
    assert code == 2 and "--name NEW" in out and "to go on with it" in out and "delete" not in out, out
    assert out.strip().splitlines()[-1].startswith("error: ") and before == {p: p.stat().st_mtime_ns for p in before}


def test_another_spelling_of_the_same_is_no_change():
    then = resolve("lora", {"model": "qwen-image", "rank": 8, "guidance": 2})
    now = resolve("lora", {"model": "qwen-image", "rank": 8, "alpha": 8, "guidance_ratio": 0.5})
    assert resume.changes(now, then) == {}


def test_files_that_moved_are_the_same_and_other_weights_are_not(go):
    moved = go.base.rename(go.base.parent / "moved") / "base.safetensors"
    code, out = go("--base", str(moved), "--steps", "9")
    assert code == 0 and "step 8 of 9" in out and "--base" in out, out
    tensors = load(moved)
    from twinflow.weights import save

    save({name: t + 0.01 for name, t in tensors.items()}, moved)
    code, out = go("--base", str(moved), "--steps", "10")
    assert code == 2 and "was trained from other weights" in out and "--name NEW" in out, out


def test_an_older_run_lacks_what_is_new(go):
    config = go.folder / "config.json"
    values = json.loads(config.read_text())
    for name in ("keep_weights", "rslora"):
        del values[name]
    config.write_text(json.dumps(values))
    code, out = go()
    assert code == 0 and "is finished" in out


def test_a_newer_run_holds_what_is_not_known(go):
    """Options and words of options: named, and the run goes on."""
    config = go.folder / "config.json"
    values = json.loads(config.read_text()) | {"nesterov": True, "schedule": "warm-restarts", "difference": 0.04}
    del values["dt"]
    config.write_text(json.dumps(values))
    code, out = go("--steps", "9")
    assert code == 0 and "step 8 of 9" in out, out
    assert "nesterov: True" in out and "schedule: 'warm-restarts'" in out
    assert out.count("which this version does not know; left out") == 1
    assert "nesterov" not in json.loads(config.read_text())
    code, out = go("--steps", "9")
    assert code == 0 and "nesterov" not in out


def test_another_meaning_starts_from_the_old_file(go):
    """The way out that the refusal names is one that can be taken."""
    code, out = go("--dt", "0.3")
    file = files.final(go.folder, "digits-lora")
    assert code == 2 and f"--name NEW for a run beside it (from its weights with --init {file})" in out, out
    code, out = go("--dt", "0.3", "--name", "new", "--init", str(file))
    assert code == 0 and "starting from digits-lora.safetensors" in out, out
    for options in (["--rank", "4"], ["--targets", "attention"], ["--time", "fold"]):  # it would not fit
        code, out = go(*options)
        assert code == 2 and "--init" not in out, out
    code, out = go("--rank", "9")
    assert code == 2 and f"--init {file}" in out
    file.unlink()
    code, out = go("--dt", "0.3")
    assert code == 2 and f"--init {files.at_step(go.folder, 'digits-lora', 8)}" in out


def test_a_file_that_is_gone_is_said_and_written_again(go):
    final = files.final(go.folder, "digits-lora")
    wanted = load(final)
    final.unlink()
    code, out = go()
    assert code == 0 and "digits-lora.safetensors is gone: it is written again" in out
    assert all(torch.equal(wanted[name], t) for name, t in load(final).items())
    final.unlink()
    shutil.rmtree(go.folder / "checkpoints")
    code, out = go()
    assert code == 2 and "digits-lora.safetensors is gone, and there is no checkpoint" in out and not final.exists()


def test_a_finished_run_without_checkpoints_is_not_trained_over(go):
    shutil.rmtree(go.folder / "checkpoints")
    wanted = files.final(go.folder, "digits-lora").read_bytes()
    code, out = go("--steps", "10")
    assert code == 2 and "no checkpoint to go on from" in out
    assert files.final(go.folder, "digits-lora").read_bytes() == wanted


def test_all_checkpoints_damaged(go):
    for path in checkpoint.list_all(go.folder / "checkpoints"):
        path.write_bytes(path.read_bytes()[:50])
    code, out = go("--steps", "10")
    assert code == 2 and "nor is any other" in out and "--name NEW" in out
