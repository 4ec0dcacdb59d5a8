"""Runs of the real trainer, as small as they come."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.cli import main

ROOT = Path(__file__).parents[2]
TINY = ["--model", "digits", "--threads", "1", "--base-steps", "6", "--base-batch", "16", "--steps", "8", "--batch", "16",
        "--warmup", "2", "--save-every", "2", "--sample-every", "4", "--log-every", "1", "--evaluate", "40"]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with two finished runs, digits-lora and digits-full, of the same base."""
    out = tmp_path_factory.mktemp("runs")
    for mode in ("lora", "full"):
        assert main(mode, [*TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a run of seconds."""
    return TINY


@pytest.fixture
def start():
    """start("lora", option, ...): a tiny run as a process of its own."""

    def run(mode: str, *options) -> subprocess.Popen:
        command = [sys.executable, "-m", f"trainer.{mode}", *TINY, *map(str, options)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run
