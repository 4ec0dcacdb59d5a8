"""The memory of what is not training: encoding before it, and sample grids, which decode while the model lies on the card.

Counted on fake tensors: all that lives at a time while the published autoencoder's real class runs.  Text encoders are taken at
their published size; a prompt adds little to it.
"""

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..backbones import Backbone
from ..config.settings import DTYPES, Settings

GIB = 2**30
TILE = 512  # pixels of a side, see backbones.images.tile
VISITS = 2.5 * GIB  # of text encoders whose layers visit the card: the largest layer, the embeddings, what they compute with
STORED = {"int8": 1.1, "nf4": 0.7}  # bytes of a weight, with the embeddings, which stay as they are


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.bytes = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self.drop, key, size).atexit = False

    def drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.bytes -= size


@cache
def images(backbone: Backbone, pixels: int, batch: int, dtype: torch.dtype, tiled: bool, decode: bool) -> int:
    """Bytes that the autoencoder and its run on so many square images take; nothing where there is no autoencoder."""
    if not backbone.size.has_encoders:
        return 0
    default = torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        try:
            torch.set_default_dtype(dtype)
            codec = backbone.codec_skeleton()
        finally:
            torch.set_default_dtype(default)
        weights = sum(p.numel() * p.element_size() for p in codec.vae.parameters())
        run: Callable[[Tensor], Any] = codec.decode if decode else codec.encode_image
        cut = min(pixels, TILE) if tiled else pixels  # the tiles' results are put together as blends, row by row
        side, channels = (cut // backbone.factor, backbone.size.channels) if decode else (cut, 3)
        with Live() as live:
            run(torch.zeros(batch, channels, side, side))
    return weights + live.most + (2 * batch * 3 * 4 * pixels**2 if tiled else 0)


def stages(backbone: Backbone, settings: Settings, pixels: int) -> dict[str, float]:
    """Bytes on the card by what is encoded."""
    size, own = backbone.size, settings.data
    if not size.has_encoders:
        return {}
    kind = settings.memory.dtype if own.encoders_dtype == "auto" else own.encoders_dtype
    whole, where = text(backbone, settings), own.encoders_device
    visits = where == "stream" or (where == "auto" and kind in DTYPES)
    found = {}
    if where != "cpu":
        about = f"{kind}; {whole / GIB:.1f} GiB, what has no room visits" if visits else kind
        found[f"captions ({about})"] = min(whole, VISITS) if visits else whole
    if not settings.objective.image_free or backbone.edits:
        tiled = ", tiled" if own.vae_tiling else ""
        found[f"images ({own.vae_dtype}{tiled}, batch {own.encode_batch})"] = images(
            backbone, pixels, own.encode_batch, DTYPES[own.vae_dtype], own.vae_tiling, False
        )
    return found


def text(backbone: Backbone, settings: Settings) -> float:
    """Bytes of the text encoders' weights where they compute."""
    kind = settings.memory.dtype if settings.data.encoders_dtype == "auto" else settings.data.encoders_dtype
    width = DTYPES[kind].itemsize if kind in DTYPES else STORED[kind]
    return backbone.size.text * GIB * width / 2


def text_in_host(backbone: Backbone, settings: Settings) -> float:
    """Bytes of them as they are loaded; some may stay."""
    return backbone.size.text * GIB * settings.torch_dtype.itemsize / 2


def decoding(backbone: Backbone, pixels: int) -> int:
    """Bytes on the card beside the model, for the pictures of a sample grid."""
    return images(backbone, pixels, 1, torch.float32, True, True)
