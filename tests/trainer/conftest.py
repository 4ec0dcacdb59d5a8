"""Runs of the real trainer, as small as they come."""

import functools
from pathlib import Path

import pytest
import torch

from trainer.cli import main
from trainer.runs import quality

from ..processes import Started

ROOT = Path(__file__).parents[2]
TINY = ["--model", "digits", "--threads", "1", "--base-steps", "6", "--base-batch", "16", "--steps", "8", "--batch", "16",
        "--warmup", "2", "--save-every", "2", "--sample-every", "0", "--log-every", "1", "--evaluate", "0"]  # fmt: skip
LOOKED_AT = ["--sample-every", "8", "--sample-base", "2", "--evaluate", "40"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_judge():
    """Trained once, and not for each run that is judged: it is always the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "Judge", functools.cache(quality.Judge))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with two finished runs, digits-lora and digits-full, of the same base, judged and with samples."""
    out = tmp_path_factory.mktemp("runs")
    for mode in ("lora", "full"):
        assert main(mode, [*TINY, *LOOKED_AT, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a run of seconds."""
    return TINY


@pytest.fixture
def start(tmp_path_factory):
    """start("lora", option, ...): a tiny run as a process of its own."""
    files = tmp_path_factory.mktemp("printed")
    return lambda mode, *options: Started(f"trainer.{mode}", *TINY, *options, files=files)
