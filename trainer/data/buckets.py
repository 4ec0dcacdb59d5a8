"""Aspect buckets: the sizes that images are cut to, all of about resolution x resolution pixels."""

import math
from dataclasses import dataclass

from .. import TrainerError


@dataclass(frozen=True)
class Buckets:
    """multiple: what both sides are multiples of.  aspect: the longest side may be this often the shortest; 1: a square."""

    resolution: int
    multiple: int
    aspect: float

    def __post_init__(self):
        if self.resolution < self.multiple:
            raise TrainerError(f"resolution is {self.resolution}; expected at least {self.multiple}, the model's smallest side")
        if self.aspect < 1:
            raise TrainerError(f"aspect is {self.aspect:g}; expected 1 (squares only) or more, such as 2")

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels: for every height the widest that has at most the square's area, and the transposed."""
        side, found = self.resolution // self.multiple, set()
        for a in range(1, side + 1):
            b = side * side // a
            if b <= self.aspect * a:
                found |= {(a, b), (b, a)}
        return sorted((a * self.multiple, b * self.multiple) for a, b in found)

    def nearest(self, height: float, width: float) -> tuple[int, int]:
        """The size that cuts least off an image of this shape; of equals the largest."""
        wanted = math.log(width / height)
        return min(self.sizes(), key=lambda s: (round(abs(math.log(s[1] / s[0]) - wanted), 9), -s[0] * s[1]))

    def parse(self, aspects: str) -> list[tuple[int, int]]:
        """The sizes for aspects such as "1:1,16:9" (width:height).  Raises TrainerError."""
        try:
            pairs = [tuple(float(n) for n in text.split(":")) for text in aspects.split(",")]
            return [self.nearest(height, width) for width, height in pairs]
        except (ValueError, ZeroDivisionError):
            raise TrainerError(
                f"aspects is {aspects!r}; expected width:height, comma-separated, such as 1:1,3:4,16:9"
            ) from None
