"""Numbers recorded from the released TwinFlow code; TWINFLOW_GOLDENS names another directory of the same format."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def directory() -> Path:
    return Path(os.environ.get("TWINFLOW_GOLDENS") or Path(__file__).parent / "data")


@pytest.fixture(scope="session")
def golden(directory):
    """golden(name): the tensors and the index of that recording."""
    loaded = {}

    def load(name):
        if name not in loaded:
            tensors = load_file(directory / f"{name}.safetensors")
            loaded[name] = tensors, json.loads((directory / f"{name}.json").read_text())
        return loaded[name]

    return load


@pytest.fixture
def replayed(capsys):
    """replayed(n): says how many cases the test went through; none is a failure, since it would prove nothing."""

    def say(n):
        with capsys.disabled():
            print(f"\n{n} cases")
        assert n, "the goldens hold no case of this kind"

    return say
