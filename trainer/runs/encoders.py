"""The encoders of an image model as the settings want them: their number format, where they compute, what names their output.

The text encoder and the autoencoder are never in memory together: who asked for one drops it before the other is opened.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import TrainerError
from ..backbones import Backbone
from ..backbones.images import tile
from ..backbones.sources import is_hub_id
from ..config.settings import DTYPES, Settings
from ..weights import placement, quantise

END = 2**20  # bytes at either end of a file that tell it from others
GIB = 2**30


def text_encoder(known: Backbone, settings: Settings, device: torch.device) -> Callable[..., Any]:
    """encode_text of the text encoders, loaded and put where the settings say.  Raises TrainerError.

    device: of the run; what --encoders-device means is seen against it.
    """
    target = check(settings, device)
    kind, where = text_dtype(settings), settings.data.encoders_device
    quantised = kind in quantise.PACKAGE
    dtype = settings.torch_dtype if quantised else DTYPES[kind]
    encoder = known.text_encoder(source_of(known, settings), dtype=dtype)
    away = 0
    for module in getattr(encoder, "modules", ()):
        if quantised:
            for holder in placement.holders(module):
                quantise.quantise(holder, kind)
        free = {"auto": placement.free_bytes(target), "stream": 0.0}.get(where, float("inf"))
        away += placement.place(module, target, float("inf") if quantised else free)
    encoder.device = target
    if away and where == "auto":
        print(
            f"the text encoder has no room on {target}: {away / GIB:.1f} GiB of it stay in host memory and visit; "
            "--encoders-dtype int8 or nf4 would be faster"
        )
    return guarded(encoder.encode_text, target, "captions", "--encoders-device stream, or --encoders-device cpu")


def image_codec(known: Backbone, settings: Settings, device: torch.device) -> Callable[..., Any]:
    """encode_image of the autoencoder, in the settings' number format.  Raises TrainerError."""
    codec = known.image_codec(source_of(known, settings), dtype=DTYPES[settings.data.vae_dtype], device=device)
    if settings.data.vae_tiling:
        tile(codec.vae)
    return guarded(codec.encode_image, device, "images", "--encode-batch 1, --vae-dtype bf16, --vae-tiling")


def identities(known: Backbone, settings: Settings) -> tuple[str, str]:
    """What tells the output of the text encoder and that of the autoencoder from others', wherever their files lie."""
    source, own = source_of(known, settings), settings.data
    kind = text_dtype(settings)
    texts = [kind] if kind not in DTYPES or DTYPES[kind] != settings.torch_dtype else []
    images = [own.vae_dtype] * (own.vae_dtype != "fp32") + ["tiled"] * own.vae_tiling
    text = " ".join([known.core.name, identity(known.text_files(source)), *texts])
    return text, " ".join([known.core.name, identity(known.image_files(source)), *images])


def source_of(known: Backbone, settings: Settings) -> str:
    """Where the encoders come from; what --encoders lacks, from --source where that is a whole model."""
    asked, source = settings.data.encoders, settings.data.source
    if asked and getattr(known, "single", None) and (Path(source).expanduser().is_dir() or is_hub_id(source)):
        return f"{asked}\n{source}" if source else asked
    return asked or source


def text_dtype(settings: Settings) -> str:
    return settings.memory.dtype if settings.data.encoders_dtype == "auto" else settings.data.encoders_dtype


def check(settings: Settings, device: torch.device) -> torch.device:
    """Where the text encoder computes.  Raises TrainerError where this machine cannot do as the settings say."""
    asked, kind = settings.data.encoders_device, text_dtype(settings)
    if kind in quantise.PACKAGE:
        quantise.check_quantisation(kind, "--encoders-dtype")
    if asked in ("auto", "stream"):
        return device
    target = torch.device(asked)
    module = getattr(torch, target.type, None)
    count = module.device_count() if target.type != "cpu" and module is not None else 0
    if target.type != "cpu" and (target.index or 0) >= count:
        seen = f"{count} such" if count else "none"
        raise TrainerError(f"--encoders-device {asked}: PyTorch sees {seen} here; expected auto, stream or cpu")
    return target


def guarded(encode: Callable[..., Any], device: torch.device, what: str, help: str) -> Callable[..., Any]:
    """encode, whose running out of the card's memory is one line."""

    def encoded(*arguments: Any) -> Any:
        try:
            return encode(*arguments)
        except torch.OutOfMemoryError:
            raise TrainerError(f"{device} has too little memory free to encode {what}; expected {help}") from None

    return encoded


def identity(files: list[Path]) -> str:
    """A hash that tells these weights and settings from others, wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted((path for path in files if path.is_file()), key=lambda path: path.parts[-2:]):
        with open(path, "rb") as file:
            start, size = file.read(END), path.stat().st_size
            file.seek(max(0, size - END))
            digest.update(repr((path.name, size)).encode() + start + file.read())
    return digest.hexdigest()[:16]
