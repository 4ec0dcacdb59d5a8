"""What a run puts on disk, in bytes: the cache of encodings, training states, weights files."""

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from ..backbones import Backbone
from ..config.settings import DTYPES, Settings
from .memory import OPTIMIZERS, Trained, numbers, skeleton, text_width, trained

LETTERS = 3  # of a caption to a token, at least; so that no cache is thought larger than it gets


class Files(NamedTuple):
    """Files of one kind: bytes of each, and how many there are at most."""

    each: int
    most: int

    @property
    def total(self) -> int:
        return self.each * self.most


def states(backbone: Backbone, settings: Settings) -> Files:
    """Checkpoints to go on from; one more than is kept while it is written."""
    training = settings.training
    tensors = tensors_of(backbone, settings)
    copy = sum(t.numbers * t.width for t in tensors)
    averages = bool(training.ema) + bool(training.weights_ema)
    size = copy * (1 + averages) + sum(map(OPTIMIZERS[training.optimizer], tensors))
    return Files(size, min(settings.logging.keep, saves(settings)) + 1)


def weights(backbone: Backbone, settings: Settings) -> Files:
    """Weights files: one of every save, as many as are kept, and one that is being written."""
    wanted = settings.output.save_dtype
    width = DTYPES[settings.memory.dtype if wanted == "auto" else wanted].itemsize
    count = sum(t.numbers for t in tensors_of(backbone, settings))
    if settings.mode == "full":
        count = numbers(skeleton(backbone), "\0")
    return Files(count * width, min(settings.logging.keep_weights or saves(settings), saves(settings)) + 1)


def tensors_of(backbone: Backbone, settings: Settings) -> list[Trained]:
    return trained(backbone, settings.mode, settings.adapter.rank, settings.adapter.targets, settings.adapter.time)


def saves(settings: Settings) -> int:
    return ceil(settings.training.steps / settings.logging.save_every)


def cache(backbone: Backbone, settings: Settings, rows: Iterable[tuple[str, int]]) -> int:
    """At least what rows of these captions and resolutions take, each image once."""
    size, wide = backbone.size, settings.torch_dtype.itemsize
    images = (not settings.objective.image_free) + size.references
    width = text_width(skeleton(backbone))
    latents = lambda pixels: images * size.channels * (pixels // backbone.factor) ** 2
    tokens = lambda text: min(len(text) // LETTERS, size.tokens)
    return wide * sum(latents(pixels) + tokens(text) * width for text, pixels in rows)
