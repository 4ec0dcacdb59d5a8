"""What the steps cost, for the trackers: images a second, memory, learning rates."""

import sys
import time
from collections.abc import Sequence

import psutil
import torch
from torch import optim


class Meters:
    """rows: images of a step, of all processes.  What lies between two steps (saves, samples, validation) is not timed."""

    def __init__(self, rows: int, device: torch.device, optimizers: Sequence[optim.Optimizer]):
        self.rows, self.device, self.optimizers = rows, device, optimizers
        self.steps, self.seconds, self.began = 0, 0.0, 0.0

    def begin(self) -> None:
        self.began = time.perf_counter()

    def end(self) -> None:
        self.steps, self.seconds = self.steps + 1, self.seconds + time.perf_counter() - self.began

    def read(self) -> dict[str, float]:
        """By name; images a second are those since the last call, memory in GiB is the device's at its highest so far."""
        values = self.rates() | {"images_per_second": self.rows * self.steps / max(self.seconds, 1e-9)}
        self.steps, self.seconds = 0, 0.0
        values["memory_host_gib"] = psutil.Process().memory_info().rss / 2**30
        if self.device.type == "cuda":
            values["memory_device_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return values

    def rates(self) -> dict[str, float]:
        """The learning rates: lr is that of the first group; of a kind's second group, which is the second time embedder's,
        lr_embedder; else lr_<kind>."""
        found: dict[str, float] = {}
        seen = set()
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            kind = group.get("kind", "")
            name = "lr" if not found else f"lr_{'embedder' if kind in seen else kind}"
            found.setdefault(name, float(group["lr"]))
            seen.add(kind)
        return found


def most_memory(device: torch.device) -> str:
    """That this process has taken at its highest so far, in words."""
    told = f"{highest_resident() / 2**30:.1f} GiB of host memory"
    return told + (f", {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB on {device}" if device.type == "cuda" else "")


def highest_resident() -> float:
    """Bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
