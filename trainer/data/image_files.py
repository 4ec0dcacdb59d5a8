"""Images from bytes to pixels: upright, opaque, cut to a bucket's size.  Nothing here is random."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

SUFFIXES = (  # of images, also of such as Pillow cannot read
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jfif", ".jpe", ".apng", ".jp2", ".j2k",
    ".jpx", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".psd", ".jxl", ".heic", ".heif", ".hif", ".exr", ".hdr", ".svg",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
)  # fmt: skip
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF
BITS = 258  # TIFF: of a value
STACKED = ("MPO", "PSD")  # kinds whose other pictures are a phone's depth and brightness, or layers that make up the first
MOST = 2**29  # pixels of an image that is decoded, more than phones take: Pillow's own limit is a sixth of that
Image.MAX_IMAGE_PIXELS = None  # opened() has it


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


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The image, not yet decoded.  Raises Broken, also for what goes wrong within."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EXIF and the like, which would say no file's name
            if not data:
                raise Broken("the file is empty")
            with Image.open(BytesIO(data)) as image:
                if image.width * image.height > MOST:
                    raise Broken(f"{image.width} x {image.height} pixels, more than {MOST // 10**6} million")
                if (image.format, image.mode) == ("TIFF", "I"):
                    raise Broken("grey values with a sign, or of 32 bits, whose white no file tells; save it with 8 or 16 bits")
                yield image
    except (MemoryError, Broken):
        raise
    except Exception as error:  # decoders raise anything for damaged files
        raise Broken(reason(error)) from None


def size(data: bytes) -> tuple[int, int]:
    """Height and width of the upright image, from its header alone.  Raises Broken."""
    with opened(data) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(ORIENTATION) in ON_ITS_SIDE else (height, width)


def remarks(data: bytes) -> list[str]:
    """What is in the file and not in the pixels.  Raises Broken."""
    found = []
    with opened(data) as image:
        if getattr(image, "is_animated", False) and image.format not in STACKED:
            found.append("image of several frames or pages, of which the first is used")
        if (profile := image.info.get("icc_profile")) and not is_srgb(profile):
            found.append("image with a colour profile, whose numbers are taken as sRGB's")
    return found


def is_srgb(profile: bytes) -> bool:
    """Also of a profile for grey; one that cannot be read says nothing."""
    try:
        own: Any = ImageCms.ImageCmsProfile(BytesIO(profile)).profile
        return "srgb" in (own.profile_description or "").lower() or own.xcolor_space.strip() == "GRAY"
    except (OSError, ValueError):
        return True


def pixels(data: bytes, size: tuple[int, int]) -> Tensor:
    """The image as (3, H, W) in [-1, 1]: scaled to cover size (H, W), the centre cut out.  Raises Broken."""
    with opened(data) as image:
        bits = image.tag_v2.get(BITS, (16,))[0] if isinstance(image, TiffImageFile) else 16
        image = opaque(ImageOps.exif_transpose(image), bits)
        scale = max(size[0] / image.height, size[1] / image.width)
        left, top = (image.width - size[1] / scale) / 2, (image.height - size[0] / scale) / 2
        box = (max(0, left), max(0, top), min(image.width, image.width - left), min(image.height, image.height - top))
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def opaque(image: Image.Image, bits: int = 16) -> Image.Image:
    """As RGB, transparency laid over white.  bits: of whole numbers that have more than 8."""
    if image.mode.startswith("I"):  # which Pillow would clip to 8
        image = Image.fromarray((np.clip(np.asarray(image), 0, 2**bits - 1) >> bits - 8).astype(np.uint8))
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
