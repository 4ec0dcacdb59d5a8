"""A matrix as the product of two of low rank: by singular values, only as many as are asked for."""

from typing import NamedTuple

import torch
from torch import Tensor

MORE = 16  # columns that the random projection has beyond the rank
TURNS = 4  # of its power iteration
FIRST = 32  # rank that is tried first for an energy
LEAST = 1e-6  # of the largest singular value: what is smaller is rounding


class Factors(NamedTuple):
    """up (out, rank) @ down (rank, in) stands for the matrix.  kept: the share of its energy (squares of its numbers)."""

    up: Tensor
    down: Tensor
    kept: float


def factors(matrix: Tensor, rank: int | None = None, energy: float = 1.0) -> Factors:
    """Of a float32 matrix that is not zero: of this rank, or (None) of the least rank that keeps this share of its energy.

    The projection is random with a fixed seed, and the energy is that of the very product that is returned (Halko, Martinsson,
    Tropp 2011, algorithm 4.4, and exact where the rank is no small part of the matrix's).
    """
    total, most = float(matrix.square().sum(dtype=torch.float64)), min(matrix.shape)
    size = min(rank or FIRST, most)
    while True:
        u, s, v = decomposed(matrix, size)
        shares = s.double().square().cumsum(0) / total
        if rank is not None or len(s) == most or float(shares[-1]) >= energy:
            break
        size = min(2 * size, most)
    wanted = rank or int((shares < energy).sum()) + 1
    r = max(1, min(wanted, len(s), int((s > LEAST * s[0]).sum())))
    root = s[:r].sqrt()
    return Factors(u[:, :r] * root, root[:, None] * v[:, :r].T, min(1.0, float(shares[r - 1])))


def decomposed(matrix: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, s, v of at least so many singular values; of all, where the short way is none."""
    if 4 * (size + MORE) > min(matrix.shape):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vh.T
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=size + MORE, niter=TURNS)
    return u[:, :size], s[:size], v[:, :size]
