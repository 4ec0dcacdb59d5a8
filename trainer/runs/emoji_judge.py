"""What generated emoji are worth: whether they are what was asked for, and how far they are from real ones, in pixels."""

import torch
from torch import Tensor

from ..data.emoji import Pictures, split
from .judge import frechet_distance, neighbour_metrics

COMPONENTS = 64  # of the pixels of real pictures, in which distances are taken


def floats(pictures: Pictures) -> Tensor:
    """(N, 3, 32, 32) in [0, 1]."""
    return pictures.pixels.float() / 255


def sharpness(images: Tensor) -> float:
    """The mean difference of a pixel from its four neighbours."""
    around = images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
    return (images[..., 1:-1, 1:-1] - around / 4).abs().mean().item()


class Judge:
    """Compares with the pictures that are trained on; those that are held out set the scale of distances."""

    def __init__(self):
        self.real, self.unseen = split()
        x = floats(self.real)
        self.pixels, self.sharpness = x.flatten(1), sharpness(x)
        self.mean = self.pixels.mean(0)
        self.axes = torch.linalg.eigh(self.pixels.T.cov()).eigenvectors[:, -COMPONENTS:]
        self.scale = frechet_distance(self.components(floats(self.unseen)), self.components(x))

    def components(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - self.mean) @ self.axes

    def metrics(self, images: Tensor, captions: list[str]) -> dict[str, float]:
        """images: (N, 3, 32, 32) in [0, 1].  captions: what was asked for, all of pictures that are trained on.

        asked: share whose nearest real picture bears this caption (name: up to skin tones).  frechet: in units where the
        held-out pictures have 1.  recall, precision: in the same components.  nearest: mean distance to that picture, and
        sharpness: 1 is that of real ones.
        """
        distance, row = torch.cdist(images.flatten(1), self.pixels).min(1)
        names = dict(zip(self.real.captions, self.real.names))
        found = [(self.real.captions[i], self.real.names[i]) for i in row.tolist()]
        share = lambda hits: sum(hits) / len(captions)
        real, made = self.components(self.pixels), self.components(images)
        near = neighbour_metrics(real, made)
        return {
            "asked": share(caption == own for (caption, _), own in zip(found, captions)),
            "name": share(name == names[own] for (_, name), own in zip(found, captions)),
            "frechet": frechet_distance(made, real) / self.scale,
            "recall": near["recall"],
            "precision": near["precision"],
            "nearest": distance.mean().item(),
            "sharpness": sharpness(images) / self.sharpness,
        }
