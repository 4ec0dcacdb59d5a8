"""The two-sample test: alike is .5, apart is 1, and pairs that nearly agree are not told by heart."""

import torch

from trainer.runs.two_sample import auc


def noise(rows, seed):
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_what_is_alike_and_what_is_not():
    before = torch.get_rng_state()
    assert 0.35 < auc(noise(200, 0), noise(200, 1)) < 0.65
    assert auc(noise(200, 0), noise(200, 1) * 0.5) > 0.99
    assert torch.equal(before, torch.get_rng_state())


def test_pairs_that_nearly_agree():
    a = noise(200, 0)
    assert 0.35 < auc(a, (a + 0.001 * noise(200, 1)).clamp(0, 1)) < 0.65
