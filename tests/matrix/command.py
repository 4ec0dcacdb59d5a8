"""A command and the last line of what it says."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Failed(Exception):
    """With the last line of what the command said, and pytest's tests that failed."""


class NotRun(Exception):
    """With the reason why it cannot be tried here."""


def run(*command, environment: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Its last line."""
    done = subprocess.run([*map(str, command)], env=os.environ | (environment or {}), cwd=cwd, capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or [f"exit {done.returncode}"]
    if done.returncode:
        named = [line.partition(" ")[2].partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        tests = [name for name in named if "::" in name]  # a log's errors look alike
        raise Failed("; ".join([lines[-1].strip("= "), *tests]))
    return lines[-1].strip("= ")
