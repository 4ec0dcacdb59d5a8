"""The GPUs at hand, as far as the plan is concerned."""

import os
from typing import NamedTuple

import torch


class Card(NamedTuple):
    """total, free: bytes.  capability: of NVIDIA's counting.  built: the architectures that this PyTorch has code for."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]
    built: tuple[str, ...]

    @property
    def level(self) -> str:
        return f"{self.capability[0]}.{self.capability[1]}"

    @property
    def is_supported(self) -> bool:
        """Code runs on later cards of its generation, and what is compiled when it is needed on any later one."""
        major, minor = self.capability
        for name in self.built:
            kind, _, number = name.rstrip("af").partition("_")
            if not number.isdigit():
                return True  # of another maker's
            own = divmod(int(number), 10)
            if own <= (major, minor) and (kind == "compute" or own[0] == major):
                return True
        return not self.built


def card() -> Card | None:
    """The CUDA card of this process; None where there is none."""
    if not torch.cuda.is_available():
        return None
    number = int(os.environ.get("LOCAL_RANK", "0"))
    about, (free, total) = torch.cuda.get_device_properties(number), torch.cuda.mem_get_info(number)
    return Card(about.name, total, free, (about.major, about.minor), tuple(torch.cuda.get_arch_list()))


def has_gpu() -> bool:
    return torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")


def cards() -> int:
    """Over which FSDP shards."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return max(1, int(os.environ.get("WORLD_SIZE", "1"))) if fsdp else 1
