"""What the pictures that the pack draws itself have in common: colours, letters, and the way to IMAGE."""

import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor

BACKGROUND, GRID, INK, DIM = (24, 26, 30), (52, 56, 64), (214, 218, 224), (140, 146, 156)
BLUE, ORANGE = (86, 180, 233), (230, 159, 0)


def letters(size: float):
    """A font of about this many pixels."""
    try:
        return ImageFont.load_default(max(10, round(size)))
    except (TypeError, OSError):  # before Pillow 10.1, or built without FreeType: one small size
        return ImageFont.load_default()


def tensor_of(image: Image.Image) -> Tensor:
    """IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255)[None]
