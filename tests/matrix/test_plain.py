"""What needs no PyTorch works, so that matrix.py can run it under any Python."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from trainer import TrainerError, console, hints, plain_yaml, shell  # noqa: E402
from twinflow import atomic, plain_json  # noqa: E402


def test_json_and_yaml():
    assert plain_json.loads('{"a": [1, 2.5, "ü"]}') == plain_yaml.loads("a: [1, 2.5, ü]") == {"a": [1, 2.5, "ü"]}
    for text in ("NaN", "[" * 100 + "]" * 100, "9" * 50):
        with pytest.raises(ValueError):
            plain_json.loads(text)


def test_files(tmp_path):
    atomic.write_json({"a": 1}, tmp_path / "x")
    atomic.append("more\n", tmp_path / "x")
    assert (tmp_path / "x").read_text() == '{\n  "a": 1\n}\nmore\n' and atomic.remove_leftovers(tmp_path) == 0


@pytest.mark.parametrize(
    "error, code", [(TrainerError("a is 1"), 2), (OSError(errno.ENOSPC, "full", "x"), 1), (KeyboardInterrupt(), 130)]
)
def test_an_error_is_a_line(error, code, capsys):
    def act():
        raise error

    assert console.guarded(act) == code
    assert capsys.readouterr().err.count("\n") in (1, 2)


def test_words():
    assert "rank" in hints.option("--rnak", "4", ("rank", "lr"), flag=True)
    assert shell.join(["a b", "c"]) == "'a b' c"


def test_a_command_says_what_is_missing_or_helps():
    ran = subprocess.run([sys.executable, "-m", "trainer.lora", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode in (0, 1) and "Traceback" not in ran.stderr
