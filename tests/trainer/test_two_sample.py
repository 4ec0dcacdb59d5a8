"""The two-sample test: alike is .5, apart is 1, and pairs that nearly agree are not told by heart."""

import torch

from trainer.runs.two_sample import FEWEST, auc, told_apart

ROWS = 60


def noise(rows, seed):
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_what_is_alike_and_what_is_not():
    before = torch.get_rng_state()
    assert 0.35 < auc(noise(ROWS, 0), noise(ROWS, 1)) < 0.65
    assert auc(noise(ROWS, 0), noise(ROWS, 1) * 0.5) > 0.99
    assert torch.equal(before, torch.get_rng_state())


def test_pairs_that_nearly_agree():
    a = noise(ROWS, 0)
    assert 0.35 < auc(a, (a + 0.001 * noise(ROWS, 1)).clamp(0, 1)) < 0.65


def test_a_column_of_a_table():
    few, base = noise(FEWEST - 1, 0), noise(FEWEST, 1)
    assert [told_apart(a, b) for a, b in ((base, base), (base, None), (few, base), (base, few))] == [""] * 4
    assert told_apart(noise(FEWEST, 0) * 0.2, base) > 0.9
