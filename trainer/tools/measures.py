"""What pictures of one prompt from several seeds say of a network: how near they are to others, and how varied.

Distances of pairs from one noise, beside those of pairs from different noise, which are the yardstick: 0 is the same picture,
1 is as far as another picture of the same prompt.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from .features import Features, distances


class Seen(NamedTuple):
    """Of N pictures: features (N, D), and pixels (N, P) scaled so that half the squared distance is the mean squared one."""

    features: Tensor
    pixels: Tensor


def seen(images: Tensor, features: Features) -> Seen:
    """Of images (N, 1 or 3, H, W) in [0, 1]."""
    rgb = images.float().expand(-1, 3, -1, -1)
    pixels = rgb.flatten(1)
    return Seen(torch.cat([features.of(part) for part in rgb.split(16)]), pixels * (2 / pixels.shape[1]) ** 0.5)


def nearness(own: Seen, other: Seen) -> dict[str, float | None]:
    """Mean distances of N pictures from N others of the same noises (feature, pixel: root mean square), and, where there are
    two or more, from those of other noises."""
    found: dict[str, float | None] = {}
    for name, a, b in (("feature", own.features, other.features), ("pixel", own.pixels, other.pixels)):
        between = distances(a, b).sqrt() if name == "pixel" else distances(a, b)
        found[name], found[f"{name}_other"] = between.diagonal().mean().item(), apart(between)
    return found


def diversity(own: Seen) -> float | None:
    """Mean distance of two pictures, in features; None of one alone."""
    return apart(distances(own.features, own.features))


def apart(between: Tensor) -> float | None:
    """The mean of a matrix (N, N) without its diagonal."""
    n = len(between)
    return between[~torch.eye(n, dtype=torch.bool)].mean().item() if n > 1 else None


def mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Over prompts, with its standard error where there are two or more."""
    known = [v for v in values if v is not None]
    if not known:
        return None, None
    return fmean(known), stdev(known) / len(known) ** 0.5 if len(known) > 1 else None


def share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
