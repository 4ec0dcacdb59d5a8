"""Whatever the terminal's encoding, and whether or not somebody reads it: no run dies of printing, no traceback."""

import errno
import functools
import io
import json
import os
import subprocess
import sys
from functools import partial

import pytest

from trainer import Stopped, TrainerError, console
from trainer.cli import main
from trainer.config.resolving import resolve
from trainer.generate import main as generate
from trainer.runs import resume
from trainer.tutorial import main as tutorial

from .conftest import ROOT, TINY

PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}  # an ASCII locale


def command(*arguments, module="lora", **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    call = [sys.executable, "-m", f"trainer.{module}", *map(str, arguments)]
    return subprocess.run(
        call, cwd=ROOT, capture_output=True, timeout=250, **options | {"env": environment | options.pop("env", {})}
    )


@pytest.fixture
def wanted(tmp_path):
    """Options of a dry run with text in all that can hold some."""
    (tmp_path / "猫").mkdir()
    (tmp_path / "猫" / "ä.yaml").write_text("guidance_prompt: 猫 ä\n", "utf-8")
    return ["--model", "sana", "--config", str(tmp_path / "猫" / "ä.yaml"), "--caption", "un été 😀", "--dry-run"]


def is_taken(printed):
    settings = json.loads(printed)
    assert (settings["caption"], settings["guidance_prompt"]) == ("un été 😀", "猫 ä")


@pytest.mark.parametrize("environment", [PLAIN, {}])
def test_any_text_is_taken_in_any_locale(wanted, environment):
    made = command(*wanted, env=environment)
    assert made.returncode == 0, made.stderr
    is_taken(made.stdout)


def test_a_run_and_its_pictures_in_an_ascii_locale(tmp_path):
    made = command(*TINY, "--steps", 2, "--out", tmp_path / "猫", "--name", "ä", env=PLAIN)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "猫" / "ä" / "ä.safetensors").exists()
    drawn = command(tmp_path / "猫" / "ä", "--output", tmp_path / "犬.png", "--each", 1, module="generate", env=PLAIN)
    assert drawn.returncode == 0 and (tmp_path / "犬.png").exists(), drawn.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_text_is_shown_on_any_terminal(tmp_path, wanted, monkeypatch, encoding):
    """Streams of this encoding, as PYTHONIOENCODING or a terminal of Windows makes them."""

    def call(act, *arguments):
        shown = [io.BytesIO(), io.BytesIO()]
        with monkeypatch.context() as patch:
            for name, buffer in zip(("stdout", "stderr"), shown):
                patch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
            return act([*map(str, arguments)]), *(buffer.getvalue().decode(encoding) for buffer in shown)

    train = functools.partial(main, "lora")
    ended, printed, errors = call(train, *wanted)
    assert ended == 0, errors
    is_taken(printed)
    ended, _, errors = call(train, "--model", "猫")
    assert ended == 2 and errors.startswith("error: ") and "\\u732b" in errors and errors.count("\n") == 1
    ended, printed, errors = call(train, *TINY, "--steps", 2, "--out", tmp_path / "猫", "--name", "ä")
    assert ended == 0 and "\\u732b" in printed and (tmp_path / "猫" / "ä" / "ä.safetensors").exists(), errors
    ended, printed, errors = call(generate, tmp_path / "猫" / "ä", "--output", tmp_path / "犬.png", "--each", 1)
    assert ended == 0 and "\\u72ac.png" in printed and (tmp_path / "犬.png").exists(), errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_run_goes_on_when_nobody_reads(tmp_path):
    """As with `| head -1`, the other end of the pipe is closed while it runs; errors go to a disk that is full."""
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as full:
        made = subprocess.run(
            [sys.executable, "-m", "trainer.lora", *TINY, "--steps", "2", "--out", tmp_path],
            cwd=ROOT, stdout=write, stderr=full, timeout=250,
        )  # fmt: skip
    os.close(write)
    assert made.returncode == 0 and (tmp_path / "digits-lora" / "digits-lora.safetensors").exists()


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


CONTROL = "a\x1b[2J\nb\tc\r\x07\x85\u2028\u202e"
SHOWN = r"a\x1b[2J\nb\tc\r\x07\x85\u2028\u202e"


def test_each_fault_is_one_line_whatever_it_names(capsys):
    def act():
        raise TrainerError(f"{CONTROL} is 1; expected 2", CONTROL)

    assert console.guarded(act) == 2
    assert capsys.readouterr().err == f"error: {SHOWN} is 1; expected 2\nerror: {SHOWN}\n"
    assert console.printable("été, 猫 and 😀 \\ as they are") == "été, 猫 and 😀 \\ as they are"


@pytest.mark.parametrize(
    "run, options",
    [
        *((partial(main, "lora"), ["--model", "digits", own, CONTROL]) for own in (
            "--targets", "--preset", "--steps", "--lr", "--roles", "--betas", "--config", "--base", "--init", "--attention",
        )),
        *((partial(main, "lora"), ["--model", "sana", "--dry-run", own, CONTROL]) for own in (
            "--data", "--dataset", "--encoders", "--prompts", "--validation", "--encoders-device", "--time-shift",
        )),
        (partial(main, "lora"), ["--model", "sana", "--dry-run", "--source", CONTROL.replace("\n", "")]),
        (partial(main, "lora"), ["--model", CONTROL]), (partial(main, "lora"), [f"--{CONTROL}", "1"]),
        (partial(main, "full"), ["--model", "sana", "--dry-run", "--data", CONTROL]),
        (partial(main, "full"), ["--lr", CONTROL]), (partial(main, "base"), ["--model", "digits", "--base-lr", CONTROL]),
        (partial(main, "base"), [CONTROL]), (generate, [CONTROL]), (generate, ["run", "--each", CONTROL]),
        (generate, ["run", "--output", f"{CONTROL}.jpg"]), (tutorial, ["--steps", CONTROL]), (tutorial, [CONTROL]),
    ],
)  # fmt: skip
def test_control_characters_of_any_value(tmp_path, monkeypatch, capsys, run, options):
    monkeypatch.chdir(tmp_path)
    assert run(options) == 2
    lines = capsys.readouterr().err.splitlines(keepends=True)
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and all(line.startswith(("error: ", "a run would end here: ")) for line in lines), lines
    assert all(line[:-1].isprintable() and line.endswith("\n") for line in lines) and r"\x1b" in errors[0], lines


@pytest.mark.parametrize("value", ["\n", "a\tb", "\x1b]0;title\x07"])
def test_notices_are_one_line(capsys, value):
    console.notice(f"--trigger {value} stays")
    assert capsys.readouterr().err == f"--trigger {repr(value)[1:-1]} stays\n"
    then, now = (resolve("lora", dict(model="sana", caption=text)) for text in ("old", value))
    assert value not in (told := resume.changes(now, then)["caption"]) and repr(value)[1:-1] in told


@pytest.mark.parametrize(
    "text, words",
    [
        ('data: "C:\\new\\table"', "data is 'C:\\\\new"), ('data: [a, "C:\\table"]', "data is "),
        ('source: "D:\\best"', "source is "), ('out: "D:\\runs"', "out is "), ('{"init": "C:\\fine.safetensors"}', "init is "),
        ('prompts: "C:\\texts.txt"', "prompts is "), ('validation: "E:\\base"', "validation is "),
        ('data: "C:\\photos"', "line 1: found unknown escape character 'p'"),
        ('a: 1\ndata: "C:\\Users"', "line 2: expected escape"),
    ],
)  # fmt: skip
def test_a_path_of_windows_in_double_quotes(tmp_path, capsys, text, words):
    (tmp_path / "s.yaml").write_text(text)
    assert main("lora", ["--model", "sana", "--config", str(tmp_path / "s.yaml"), "--dry-run"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert words.replace("\\\\", "\\") in error and "a backslash begins a code: write / in its place" in error


def test_texts_may_have_lines(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text('guidance_prompt: "a\\nb"\ncaption: |\n  one\n  two\nprompts: ["a\\tcat", "a\\ndog"]\n')
    assert main("lora", ["--model", "sana", "--config", str(tmp_path / "s.yaml"), "--dry-run"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["guidance_prompt"] == "a\nb" and settings["caption"] == "one\ntwo\n" and "dog" in settings["prompts"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("\trank: 4", "line 1: found character '\\t'"), ("a: 1\nb: c: d", "line 2: mapping values"), ('x: "', "unexpected end"),
        ("name: 1", "name is 1; expected a text: in a file in quotes"), ("data:", "data is None; expected a text"),
        ("resolution: 512,768", "several resolutions are for a --dataset file"),
        ("resolution: 1024x768", "expected one number"),
        ("quantize: 3", "'nf4'"), ("lr: 1.0e+10", "lr is 10000000000.0; input should be less than or equal to 1000000000"),
    ],
)  # fmt: skip
def test_what_a_file_says_wrong_is_named(tmp_path, capsys, text, words):
    (tmp_path / "s.yaml").write_text(text)
    assert main("lora", ["--model", "sana", "--config", str(tmp_path / "s.yaml"), "--dry-run"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert words in error, error


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


def test_an_output_that_is_no_picture(tmp_path, capsys):
    assert generate([str(tmp_path), "--output", str(tmp_path / "x.jpg")]) == 2
    error = capsys.readouterr().err
    assert "ends in .png" in error and error.count("\n") == 1
