"""Muon is torch's, matrix by matrix, however many of a shape are worked on together."""

import pytest
import torch

from trainer.training import optimizers
from trainer.training.optimizers import Muon

SHAPES = [(8, 8), (6, 20), (20, 6), (6, 20), (6, 20), (1, 7)]


def trained(make, steps=5):
    """The parameters after some steps of an optimiser under gradients that depend on the step only."""
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]
    optimizer = make(params)
    for _ in range(steps):
        for p in params[:-1]:  # the last one gets no gradient
            p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    return params, optimizer


def ours(params):
    return Muon([dict(params=params, lr=0.1, peak=0.1)], weight_decay=0.1)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_the_numbers_are_those_of_torch():
    theirs = dict(lr=0.1, weight_decay=0.1, ns_steps=3, adjust_lr_fn="match_rms_adamw")
    expected, _ = trained(lambda params: torch.optim.Muon(params, **theirs))
    for p, q in zip(trained(ours)[0], expected):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-3)  # torch computes in bfloat16


def test_how_many_are_stacked_changes_nothing(monkeypatch):
    expected, _ = trained(ours)
    monkeypatch.setattr(Muon, "TOGETHER", 1)
    for p, q in zip(trained(ours)[0], expected):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


def test_its_memory_goes_into_a_checkpoint_and_back():
    params, optimizer = trained(ours)
    kept = {name: t.clone() for name, t in optimizers.tensors(optimizer).items()}
    assert set(kept) == {f"{i}.momentum_buffer" for i in range(len(SHAPES) - 1)}, "none where there was no gradient"
    fresh = ours(params)
    optimizers.prime(fresh, set(range(len(SHAPES) - 1)))
    assert {name: t.shape for name, t in optimizers.tensors(fresh).items()} == {name: t.shape for name, t in kept.items()}
