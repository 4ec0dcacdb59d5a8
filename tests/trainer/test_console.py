"""Whatever the terminal's encoding, and whether or not somebody reads it: no run dies of printing, no traceback."""

import errno
import json
import os
import subprocess
import sys

import pytest

from trainer import Stopped, TrainerError, console
from trainer.cli import main

from .conftest import ROOT, TINY

PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}  # an ASCII locale


def command(*arguments, module="lora", **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    call = [sys.executable, "-m", f"trainer.{module}", *map(str, arguments)]
    return subprocess.run(
        call, cwd=ROOT, capture_output=True, timeout=250, **options | {"env": environment | options.pop("env", {})}
    )


@pytest.mark.parametrize("environment", [PLAIN, {"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, {}])
def test_any_text_is_taken_and_shown_in_any_locale(tmp_path, environment):
    (tmp_path / "猫").mkdir()
    (tmp_path / "猫" / "ä.yaml").write_text("guidance_prompt: 猫 ä\n", "utf-8")
    made = command(
        "--model", "sana", "--config", tmp_path / "猫" / "ä.yaml", "--caption", "un été 😀", "--dry-run", env=environment
    )
    assert made.returncode == 0, made.stderr
    settings = json.loads(made.stdout)
    assert (settings["caption"], settings["guidance_prompt"]) == ("un été 😀", "猫 ä")
    wrong = command("--model", "猫", env=environment)
    assert wrong.returncode == 2 and wrong.stderr.startswith(b"error: ") and wrong.stderr.count(b"\n") == 1


@pytest.mark.parametrize("environment", [PLAIN, {"PYTHONIOENCODING": "cp1252"}])
def test_a_run_and_its_pictures_in_any_locale(tmp_path, environment):
    made = command(*TINY, "--out", tmp_path / "猫", "--name", "ä", "--evaluate", 0, env=environment)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "猫" / "ä" / "ä.safetensors").exists()
    drawn = command(tmp_path / "猫" / "ä", "--output", tmp_path / "犬.png", "--each", 1, module="generate", env=environment)
    assert drawn.returncode == 0 and (tmp_path / "犬.png").exists(), drawn.stderr


def test_a_run_goes_on_when_nobody_reads(tmp_path):
    """As with `| head -1`: the other end of the pipe is closed while it runs."""
    read, write = os.pipe()
    os.close(read)
    made = subprocess.run(
        [sys.executable, "-m", "trainer.lora", *TINY, "--out", tmp_path, "--evaluate", "0"],
        cwd=ROOT, stdout=write, stderr=write, timeout=250,
    )  # fmt: skip
    os.close(write)
    assert made.returncode == 0 and (tmp_path / "digits-lora" / "digits-lora.safetensors").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_full_disk_behind_the_output(tmp_path):
    with open("/dev/full", "w") as full:
        made = subprocess.run(
            [sys.executable, "-m", "trainer.lora", "--model", "digits", "--dry-run"],
            cwd=ROOT,
            stdout=full,
            stderr=full,
            timeout=250,
        )
    assert made.returncode == 0


@pytest.mark.parametrize(
    "raised, code, words",
    [
        (TrainerError("x is 1; expected 2"), 2, ["error: x is 1"]),
        (Stopped("stopped at step 3"), 130, ["stopped at step 3", "same command"]),
        (KeyboardInterrupt(), 130, ["same command"]),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, ["runs/x", "No space left", "free some space"]),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 1, ["runs/x", "Permission denied"]),
        (MemoryError(), 1, ["out of host memory", "--plan"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nmore"), 1, ["allocate memory", "--plan"]),
    ],
)
def test_what_is_run_out_of_is_said(capsys, raised, code, words):
    def act():
        raise raised

    assert console.guarded(act) == code
    error = capsys.readouterr().err
    assert all(word in error for word in words) and "Traceback" not in error and "more" not in error


def test_a_fault_of_ours_is_not_hidden():
    with pytest.raises(RuntimeError, match="shapes"):
        console.guarded(lambda: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))


@pytest.mark.parametrize(
    "text",
    ["model: [a]", "preset: {a: 1}", "a: 2020-99-99", "steps: " + "9" * 5000, "[" * 3000, "batch: " + "9" * 400, "seed: 1e99"],
)
def test_files_with_nonsense(tmp_path, capsys, text):
    (tmp_path / "s.yaml").write_text(text)
    assert main("lora", ["--config", str(tmp_path / "s.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_an_output_that_is_no_picture(tmp_path):
    made = command(tmp_path, "--output", tmp_path / "x.jpg", module="generate")
    assert made.returncode == 2 and b"ends in .png" in made.stderr and b"Traceback" not in made.stderr
