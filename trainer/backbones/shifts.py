"""How a model's own pipeline moves its times towards noise: t to s t / (1 + (s - 1) t), the more the larger the image.

Source: diffusers' FlowMatchEulerDiscreteScheduler (time_shift, exponential) and the pipelines' calculate_shift.  What only the
steps of sampling know (shift_terminal) is left out.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from twinflow.plain_json import loads


@dataclass(frozen=True)
class Shift:
    """factor: s, where it is fixed.  low, high: else two points (tokens of an image, log s) of the line that it lies on."""

    factor: float = 1.0
    low: tuple[float, float] | None = None
    high: tuple[float, float] = (4096, 1.15)

    def of(self, tokens: int) -> float:
        """s for an image of so many tokens."""
        if self.low is None:
            return self.factor
        (a, start), (b, end) = self.low, self.high
        return math.exp(start + (end - start) * (tokens - a) / (b - a))

    def beside(self, source: str) -> "Shift":
        """That of a source that has a scheduler's settings of its own, a folder as diffusers saves it; else this one."""
        try:
            own = loads((Path(source).expanduser() / "scheduler" / "scheduler_config.json").read_text("utf-8"))
            if not own.get("use_dynamic_shifting"):
                return Shift(float(own.get("shift", own.get("flow_shift", 1.0))))
            low = own.get("base_image_seq_len", 256), own.get("base_shift", 0.5)
            return Shift(low=low, high=(own.get("max_image_seq_len", 4096), own.get("max_shift", 1.15)))
        except (OSError, ValueError, TypeError, AttributeError):
            return self
