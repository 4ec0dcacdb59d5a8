"""Numbers recorded from the released TwinFlow code; TWINFLOW_GOLDENS names another directory of the same format."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from twinflow import schedule
from twinflow.time_embedding import fold

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


def part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def net(weights, *, folded=False):
    """The recorded network: linear layers in the order of their names with tanh between them."""
    layers = sorted({name.split(".")[0] for name in weights})

    def velocity(x, t, r, cond):
        times = [fold(t, r)[:, None]] if folded else [t[:, None], r[:, None]]
        h = torch.cat([x.flatten(1), *times, *cond], 1)
        for layer in layers:
            h = torch.tanh(h) if layer != layers[0] else h
            h = h @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        return h.view_as(x)

    return velocity


def check_step(where, loss, trained, tensors, prefix, names):
    """Loss to 2e-5 and every gradient to 1e-4 of its largest entry."""
    gradients = torch.autograd.grad(loss, list(trained.values()))
    want = tensors[prefix + "loss"].item()
    assert abs(loss.item() - want) <= 2e-5 * max(1, abs(want)), (where, loss.item(), want)
    for name, gradient in zip(trained, gradients, strict=True):
        want = tensors[f"{prefix}grad/{names(name)}"]
        error = ((gradient - want).abs().max() / want.abs().max().clamp_min(1e-3)).item()
        assert error <= 1e-4, (where, name, error)


def released_times(steps, gaps, warp, dtype):
    """The schedule as the released sampler computes it, in the dtype of its latents."""
    s = schedule.kumaraswamy(schedule.positions(steps, *gaps).to(dtype), *warp)
    return torch.cat([1 - s, s.new_zeros(1)])


@pytest.fixture(scope="session")
def tools():
    """What the replays of the training recordings share."""
    return SimpleNamespace(part=part, net=net, check_step=check_step, times=released_times)
