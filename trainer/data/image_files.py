"""Images from bytes to pixels: upright, opaque, cut to a bucket's size.  Nothing here is random."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (  # of images, also of such as Pillow cannot read
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jfif", ".jpe", ".apng", ".jp2", ".j2k",
    ".jpx", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".psd", ".jxl", ".heic", ".heif", ".hif", ".exr", ".hdr", ".svg",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF


class Broken(Exception):
    """An image that cannot be decoded; the message says why."""


@cache
def readable() -> frozenset[str]:
    """Those of the suffixes that Pillow reads here; the packages pillow-heif and pillow-jxl-plugin teach it more."""
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    if find_spec("pillow_jxl"):
        import_module("pillow_jxl")  # registers itself
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(known.intersection(SUFFIXES))


def size(data: bytes) -> tuple[int, int]:
    """Height and width of the upright image, from its header alone.  Raises Broken."""
    try:
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(ORIENTATION) in ON_ITS_SIDE else (height, width)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything for damaged files
        raise Broken(reason(error)) from None


def pixels(data: bytes, size: tuple[int, int]) -> Tensor:
    """The image as (3, H, W) in [-1, 1]: scaled to cover size (H, W), the centre cut out.  Raises Broken."""
    try:
        with Image.open(BytesIO(data)) as image:
            image = opaque(ImageOps.exif_transpose(image))
            scale = max(size[0] / image.height, size[1] / image.width)
            left, top = (image.width - size[1] / scale) / 2, (image.height - size[0] / scale) / 2
            box = (max(0, left), max(0, top), min(image.width, image.width - left), min(image.height, image.height - top))
            image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)
            array = np.array(image)
    except MemoryError:
        raise
    except Exception as error:
        raise Broken(reason(error)) from None
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1


def opaque(image: Image.Image) -> Image.Image:
    """As RGB, transparency laid over white."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 8
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        image = Image.fromarray(from_floats(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_floats(values: np.ndarray) -> np.ndarray:
    """Bytes of grey values of unknown range: up to 1, 255 or 65535, by the largest; what lies outside is clipped."""
    values = np.nan_to_num(values, posinf=0)
    white = next((most for most in (1.0, 255.0) if values.max(initial=0) <= most), 65535.0)
    return np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)


def reason(error: Exception) -> str:
    return str(error).split("<_io")[0].strip() or type(error).__name__  # without the address that Pillow adds
