"""What the steps cost, for the trackers: images a second, memory, learning rates."""

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
