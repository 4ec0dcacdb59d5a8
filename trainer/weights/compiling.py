"""torch.compile, block by block: the blocks of a transformer are alike, so little is compiled, and it is used by all.

In place, so that no name changes.  Only the blocks: what stands around them changes from step to step (how many rows a role
has, with and without gradient, the student's weights and the teacher's).
"""

import torch
from torch import nn

from .. import TrainerError
from .block_swap import blocks_of

VARIANTS = 64  # of one piece of code: shapes of buckets, with and without gradient, student and teacher


def check_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Raises TrainerError where this machine cannot compile."""
    try:
        torch.compile(lambda x: (2 * x + 1).sum(), backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler and its parts raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        wanted = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        raise TrainerError(f"--compile: PyTorch cannot compile here ({lines[0]}); expected {wanted}, or no --compile") from None


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile each block when it is first used; what cannot be compiled runs as it is."""
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, max(VARIANTS, getattr(torch._dynamo.config, limit)))
    for block in blocks_of(model).values():
        block.compile(backend=backend)
