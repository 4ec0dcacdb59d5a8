"""From the first moment on: a line before anything is imported that takes seconds, and Ctrl-C answered by one at any time."""

import os
import signal
import subprocess
import sys
import time

import pytest

from trainer import console
from trainer.cli import main

from .conftest import ROOT, TINY

COMMAND = [sys.executable, "-u", "-m", "trainer.lora", *TINY]


def start(*options, **changes):
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *map(str, options)], cwd=ROOT, **dict(stdout=pipe, stderr=pipe, text=True) | changes)


def heard():
    """Ctrl-C is, also where the tests run in a shell's background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_first_line_is_there_within_three_seconds(tmp_path):
    before = time.monotonic()
    with start("--out", tmp_path, "--targets", "to_x") as run:
        assert "loading PyTorch" in run.stdout.readline()
        assert time.monotonic() - before < 3
        _, errors = run.communicate(timeout=250)
    assert run.returncode == 2 and errors.count("\n") == 1 and errors.startswith("error: targets")


@pytest.mark.parametrize("module, option", [("generate", "--each=0"), ("tutorial", "--steps=0")])
def test_the_others_say_theirs_as_early(tmp_path, module, option):
    before = time.monotonic()
    command = [sys.executable, "-u", "-m", f"trainer.{module}", option, *[str(tmp_path)] * (module == "generate")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == f"trainer.{module}: loading PyTorch and diffusers ...\n"
        assert time.monotonic() - before < 3
        _, errors = run.communicate(timeout=250)
    assert run.returncode == 2 and errors.startswith("error: ") and errors.count("\n") == 1


def test_nothing_that_takes_seconds_is_imported_before_it():
    code = (
        "import sys, trainer.lora, trainer.full, trainer.base, trainer.generate, trainer.tutorial; "
        "print({'torch', 'diffusers', 'click', 'numpy'} & {*sys.modules})"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert made.stdout == "set()\n", made.stderr


def test_what_is_imported_says_nothing():
    """Neither of kernels for cards that are not here, nor of packages that nothing needs; in scripts, too."""
    code = "import trainer.runs.generation, trainer.runs.run, diffusers; diffusers.StableDiffusion3Pipeline"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("seconds", [0, 0.5, 2, 5])
def test_ctrl_c_at_any_time_is_one_line(tmp_path, seconds):
    with start("--out", tmp_path, "--steps", "500", "--base-steps", "500", preexec_fn=heard) as run:
        assert "loading PyTorch" in run.stdout.readline()
        time.sleep(seconds)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=250)
    # where C code was interrupted as it ran Python, Python ends itself by the signal: a shell sees 130 either way
    assert run.returncode in (130, -signal.SIGINT), errors[-500:]
    assert "Traceback" not in errors and "run the same command again" in errors


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("fault", ["ImportError('half of it')", "RecursionError('half of it')", "OSError(2, 'half of it')"])
def test_an_import_that_fails_over_ctrl_c(fault):
    """As numpy's may, in whatever way."""
    code = f"""
import os, signal, sys, time
from trainer import console
def command():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        raise {fault}
sys.exit(console.started("a name", command))"""
    called = dict(cwd=ROOT, capture_output=True, text=True, timeout=100, preexec_fn=heard)
    made = subprocess.run([sys.executable, "-c", code], **called)
    assert made.returncode == 130 and made.stderr.startswith("stopped; ") and made.stderr.count("\n") == 1, made.stderr


def test_what_is_not_installed_is_named(capsys):
    def act():
        raise ModuleNotFoundError("No module named 'peft'")

    assert console.guarded(act) == 1
    assert "No module named 'peft'; expected all that the trainer needs: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    "raised, words",
    [
        (
            RuntimeError("CUDA error: no kernel image is available\nmore"),
            "the card or its driver failed (CUDA error: no kernel",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), "the card or its driver failed"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out of memory"),
        (type("SafetensorError", (Exception,), {})("I/O error: No space left on device (os error 28)"), "No space left"),
        (OSError(24, "Too many open files", "runs/x"), "runs/x: Too many open files"),
    ],
)
def test_what_a_machine_does(capsys, raised, words):
    def act():
        raise raised

    assert console.guarded(act) == 1
    error = capsys.readouterr().err
    assert words in error and "more" not in error and "Traceback" not in error


@pytest.mark.parametrize(
    "option, value",
    [
        ("name", "x" * 201), ("name", "a\nb"), ("name", " "), ("name", "a "), ("name", "a\0b"), ("out", "y" * 300),
        ("out", "a\0b"), ("config", ""), ("threads", "100000"), ("lr", "1e308"), ("weight_decay", "1e38"),
        ("guidance", "1e300"), ("alpha", "1e39"), ("matrix_lr", "1e40"), ("guidance_ratio", "1e200"), ("clip", "1e50"),
        ("rank", "99999999999"),
    ],
)  # fmt: skip
def test_absurd_values(tmp_path, monkeypatch, capsys, option, value):
    monkeypatch.chdir(tmp_path)
    flag = "--" + option.replace("_", "-")
    for extra in (["--dry-run"], []):
        assert main("lora", ["--model", "digits", f"{flag}={value}", *extra]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and option.replace("_", "-") in error.replace("_", "-")
    assert not list(tmp_path.iterdir())


def test_streams_that_are_closed(tmp_path):
    """As `>&- 2>&-`: neither its first line nor its error can go anywhere."""
    call = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *COMMAND, "--out", str(tmp_path), "--targets", "to_x"]
    assert subprocess.run(call, cwd=ROOT, timeout=250).returncode == 2
