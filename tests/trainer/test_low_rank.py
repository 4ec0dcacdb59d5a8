"""A matrix as a product of low rank, on both roads, against all its singular values."""

import pytest
import torch

from trainer.tools.low_rank import factors


def matrix(rows, columns, decay=0.9, rank=None):
    """With singular values decay^i."""
    g = torch.Generator().manual_seed(3)
    n = rank or min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(side, n, generator=g, dtype=torch.float64))[0] for side in (rows, columns))
    return (u * decay ** torch.arange(n, dtype=torch.float64) @ v.T).float()


@pytest.mark.parametrize("rows, columns", [(24, 40), (400, 300)])  # exact; and by projection, where the rank is small
@pytest.mark.parametrize("rank", [1, 8, 30])
def test_of_a_rank_it_is_the_best_there_is(rows, columns, rank):
    m = matrix(rows, columns)
    found = factors(m, rank=rank)
    s = torch.linalg.svdvals(m.double())
    best = float(s[:rank].square().sum() / s.square().sum())
    assert len(found.down) == min(rank, rows) == found.up.shape[1]
    rest = (m - found.up @ found.down).double().square().sum() / m.double().square().sum()
    assert found.kept == pytest.approx(1 - float(rest), abs=1e-5) == pytest.approx(best, abs=1e-5)
    assert torch.equal(found.up, factors(m, rank=rank).up)


@pytest.mark.parametrize("rows, columns", [(24, 40), (500, 300)])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_the_least_rank_that_keeps_an_energy(rows, columns, energy):
    m = matrix(rows, columns)
    shares = (s := torch.linalg.svdvals(m.double()).square()).cumsum(0) / s.sum()
    found = factors(m, energy=energy)
    assert len(found.down) == int((shares < energy).sum()) + 1 and found.kept >= energy


def test_a_matrix_of_low_rank_comes_out_whole():
    m = matrix(400, 300, rank=5)
    for found in (factors(m, rank=64), factors(m, energy=0.9999999)):
        assert len(found.down) == 5
        torch.testing.assert_close(found.up @ found.down, m, rtol=1e-4, atol=1e-6)
