"""Fresh noise between steps that follows each row's first noise, for hosts that tell a sampler nothing else of the seed."""

import hashlib

import torch
from torch import Tensor


def row_seeds(seed: int, start: Tensor) -> list[str]:
    """What fresh noise hangs on: the seed and what each row started from, which it keeps when it is taken out of its batch.

    start: the noise, or the latents where none is added; on the CPU.  Equal rows are told apart by their order.
    """
    rows = [hashlib.blake2b(row.float().contiguous().numpy().tobytes(), digest_size=8).hexdigest() for row in start]
    return [f"{seed} {row} {rows[:i].count(row)}" for i, row in enumerate(rows)]


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
