"""A run is never worth nothing: files to use at every save, whenever it ends, and with a full disk."""

import errno
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from trainer.cli import main
from trainer.generate import main as draw
from trainer.runs import run as runs
from trainer.training import checkpoint, disk
from trainer.weights import files
from twinflow.weights import Provenance, load, read_header


def steps_of(folder):
    return list(files.by_step(folder, folder.name))


@pytest.mark.parametrize("mode, kept", [("lora", [2, 4, 6, 8]), ("full", [8])])
def test_every_save_leaves_a_file(finished, mode, kept):
    folder = finished / f"digits-{mode}"
    assert steps_of(folder) == kept
    for step in kept:
        header = read_header(folder / "checkpoints" / f"digits-{mode}-step-{step:06d}.safetensors")
        assert header.metadata["twinflow.step"] == str(step) and Provenance.from_metadata(header.metadata)
        assert header.tensors == read_header(folder / f"digits-{mode}.safetensors").tensors
    last, final = load(files.at_step(folder, folder.name, 8)), load(folder / f"{folder.name}.safetensors")
    assert all(torch.equal(last[name], final[name]) for name in final)


@pytest.mark.parametrize("number", [1, 3])
def test_so_many_are_kept(finished, tmp_path, tiny, number):
    base = ["--base", str(finished / "digits-lora" / "base.safetensors")]
    options = ["--out", str(tmp_path), "--keep-weights", str(number), "--name", "step-00000001"]  # named like a state
    assert main("lora", [*tiny, *base, *options]) == 0
    assert steps_of(tmp_path / "step-00000001") == [2, 4, 6, 8][-number:]
    assert len(checkpoint.list_all(tmp_path / "step-00000001" / "checkpoints")) == 2


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_stopped_run_can_be_used(finished, tmp_path, tiny, monkeypatch, capsys, mode):
    """Stopped between two saves; the file is the one that a run of as many steps had at that step."""
    base = ["--base", str(finished / "digits-lora" / "base.safetensors"), "--out", str(tmp_path), "--save-every", "100"]
    log = runs.Log.step

    def interrupted(self, step, *rest, **options):
        log(self, step, *rest, **options)
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runs.Log, "step", interrupted)
    assert main(mode, [*tiny, *base]) == 130
    folder = tmp_path / f"digits-{mode}"
    error = capsys.readouterr().err
    assert "stopped at step 4 of 8" in error and f"digits-{mode}-step-000004.safetensors" in error
    assert steps_of(folder) == [4] and not files.final(folder, folder.name).exists()
    if mode == "lora":
        (mine,), theirs = files.by_step(folder, folder.name).values(), files.at_step(finished / "digits-lora", "digits-lora", 4)
        mine, theirs = load(mine), load(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for asked in ([], ["--checkpoint", "last"], ["--checkpoint", "4"]):
        assert draw([str(folder), *asked, "--prompts", "3", "--output", str(tmp_path / "x.png")]) == 0
        assert ("is not finished; drawing from the weights of step 4" in capsys.readouterr().out) == (not asked)


def test_a_checkpoint_is_chosen_by_its_step(finished, tmp_path, capsys):
    drawn = []
    for asked in (["--checkpoint", "2"], ["--checkpoint", "000002"], ["--checkpoint", "8"], ["--checkpoint", "last"], []):
        path = tmp_path / f"{len(drawn)}.png"
        assert draw([str(finished / "digits-lora"), *asked, "--prompts", "3", "--output", str(path)]) == 0
        drawn.append(Image.open(path).tobytes())
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3] == drawn[4]
    for asked in ("3", "first", "-2", "1e3"):
        assert draw([str(finished / "digits-lora"), f"--checkpoint={asked}"]) == 2
        assert f"--checkpoint is {asked}; expected last, or a step among 2, 4, 6, 8" in capsys.readouterr().err


def test_a_full_disk_costs_a_save_and_not_the_run(finished, tmp_path, tiny, monkeypatch, capsys):
    """Once it is seen before a save, once while one is written; the log fails at one step, too."""
    free, save = [2**40], checkpoint.save
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free[0]}))

    def saved(tensors, path, metadata):
        if path.name == "step-00000006.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    log = runs.Log.step

    def logged(self, step, *rest, **options):
        free[0] = 1000 if step == 4 else 2**40
        log(self, step, *rest, **options)

    monkeypatch.setattr(checkpoint, "save", saved)
    monkeypatch.setattr(runs.Log, "step", logged)
    base = ["--base", str(finished / "digits-lora" / "base.safetensors"), "--out", str(tmp_path), "--keep", "9"]
    assert main("lora", [*tiny, *base]) == 0
    out, folder = capsys.readouterr().out, tmp_path / "digits-lora"
    assert "the disk is nearly full: 0.0 MiB are free" in out and "step-00000004.safetensors could not be saved" in out
    assert "step-00000006.safetensors could not be saved (No space left on device): it takes" in out and "MiB" in out
    assert [p.name[9:13] for p in checkpoint.list_all(folder / "checkpoints")] == ["0008", "0002"]
    assert steps_of(folder) == [2, 6, 8]
    mine, theirs = (load(files.final(f, "digits-lora")) for f in (folder, finished / "digits-lora"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_full_disk_at_the_end_is_one_line_and_nothing_is_trained_twice(finished, tmp_path, tiny, monkeypatch, capsys):
    save = runs.save_streamed

    def full(outlines, tensors, path, metadata):
        if path.name == "digits-lora.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(outlines, tensors, path, metadata)

    monkeypatch.setattr(runs, "save_streamed", full)
    options = [*tiny, "--base", str(finished / "digits-lora" / "base.safetensors"), "--out", str(tmp_path)]
    assert main("lora", options) == 1
    captured = capsys.readouterr()
    assert "No space left on device" in captured.out and "run the same command again" in captured.err
    monkeypatch.setattr(runs, "save_streamed", save)
    assert main("lora", options) == 0 and "step 8 of 8" in capsys.readouterr().out
    assert files.final(tmp_path / "digits-lora", "digits-lora").exists()


@pytest.mark.parametrize("name", ["samples_base_1nfe.safetensors", "grid.png", "quality.md", "summary.md", "metrics.json"])
def test_a_full_disk_while_judging_is_one_line_and_the_weights_are_kept(finished, tmp_path, tiny, monkeypatch, capsys, name):
    """While a file is written, and before it is there at all: both name the file that could not be written."""
    from trainer.runs import drawing
    from twinflow import atomic, weights

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", *([] if name.endswith(".safetensors") else [name]))

    def opened(path, *mode):
        return nullcontext(SimpleNamespace(write=full)) if name in str(path) else open(path, *mode)

    mkstemp = atomic.tempfile.mkstemp
    judged = name not in ("summary.md", "metrics.json")
    options = [*tiny, "--base", str(finished / "digits-lora" / "base.safetensors"), "--out", str(tmp_path), "--steps", "2",
               *(["--evaluate", "20"] if judged else [])]  # fmt: skip
    with monkeypatch.context() as patch:
        if name.endswith(".safetensors"):
            patch.setattr(weights, "open", opened, raising=False)
        elif judged:
            patch.setattr(drawing, "grid" if name == "grid.png" else "table", full)
        else:
            patch.setattr(atomic.tempfile, "mkstemp", lambda **o: full() if name in o["prefix"] else mkstemp(**o))
        assert main("lora", options) == 1
    captured = capsys.readouterr()
    error = captured.err.strip().splitlines()[-1]
    assert (
        error.startswith("error: ") and name in error and "No space left on device" in error and "Traceback" not in captured.err
    )
    assert "same command again" in error and files.final(tmp_path / "digits-lora", "digits-lora").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert main("lora", options) == 0 and "step 2 of 2" in capsys.readouterr().out
    assert (tmp_path / "digits-lora" / "metrics.json").exists()


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, capsys):
    from accelerate import Accelerator

    log = runs.Log(tmp_path / "metrics.csv", Accelerator(cpu=True), 1)
    log.open_stage("distil", 0, 0.0)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").mkdir()
    for step in (1, 2):
        log.step(step, 0.0, 1e-4, {"loss": 1.0})
    assert capsys.readouterr().out.count("could not be logged") == 1 and len(log.rows) == 2
