"""Fresh noise between steps that follows each row's first noise, for hosts that tell a sampler nothing else of the seed.

A host decides a row's first noise by the seed and the row's index (in ComfyUI: batch_index), so what follows from that noise
is the same for a row alone, in a batch, and in any order of rows.
"""

import hashlib

import torch
from torch import Tensor


def row_seeds(seed: int, noise: Tensor) -> list[str]:
    """What the fresh noise of each row hangs on: the seed and the row's first noise, to the bit; never its place in the batch.

    noise: (B, ...), on the CPU.  A row without any has the seed alone: nothing tells which row of the seed's noise it was, and
    its latent is not the same to the last bit for a row alone and in a batch.
    """
    found = [row.float().contiguous() for row in noise]
    digests = [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).hexdigest() if row.any() else "" for row in found]
    return [f"{seed} {digest} 0" for digest in digests]  # the 0 stays, so that a seed draws what it always drew


class FreshNoise:
    """Noise that depends on the rows' seeds and the draw only: not on the device, nor on the neighbours."""

    def __init__(self, seeds: list[str]):
        self.seeds, self.draw = seeds, 0

    def __call__(self, x: Tensor) -> Tensor:
        rows = [torch.randn(x.shape[1:], generator=self.generator(seed)) for seed in self.seeds]
        self.draw += 1
        return torch.stack(rows).to(x.device, non_blocking=True)

    def generator(self, seed: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{seed} {self.draw}".encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
