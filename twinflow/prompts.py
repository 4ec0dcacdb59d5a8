"""Prompt embeddings on disk, so that a checkpoint can be tried without its text encoder.

One safetensors file: `<name>.embeds` (L, D), unpadded, and `<name>.pooled` (P,) where the backbone has one; the metadata
key `twinflow.prompts` maps every name to its text.
"""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from .plain_json import loads
from .weights import WeightsError, load, read_header, save


class Prompt(NamedTuple):
    """text, its token embeddings (L, D), and its pooled embedding (P,) or None."""

    text: str
    embeds: Tensor
    pooled: Tensor | None = None


def save_prompts(path: str | os.PathLike, prompts: Mapping[str, Prompt]) -> None:
    tensors = {f"{name}.embeds": p.embeds for name, p in prompts.items()}
    tensors |= {f"{name}.pooled": p.pooled for name, p in prompts.items() if p.pooled is not None}
    save(tensors, path, {"twinflow.prompts": json.dumps({name: p.text for name, p in prompts.items()})})


def load_prompts(path: str | os.PathLike) -> dict[str, Prompt]:
    """The prompts by name.  Raises WeightsError for a file that holds none."""
    texts = read_header(path).metadata.get("twinflow.prompts")
    if texts is None:
        raise WeightsError(
            f"{path}: holds no prompts (no 'twinflow.prompts' in its metadata); expected the trainer's prompts.safetensors"
        )
    tensors = load(path)
    try:
        found = {
            name: Prompt(text, tensors[f"{name}.embeds"], tensors.get(f"{name}.pooled")) for name, text in loads(texts).items()
        }
        for name, own in found.items():
            parts = {(own.embeds, 2)} | ({(own.pooled, 1)} if own.pooled is not None else set())
            if not isinstance(own.text, str) or any(t.ndim != n or not t.is_floating_point() for t, n in parts):
                raise ValueError(f"{name!r} is no text with embeddings (L, D)")
            if not all(t.float().isfinite().all() for t, _ in parts):
                raise ValueError(f"{name!r} has values that are not numbers (NaN or infinity)")
        return found
    except (KeyError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: the list of prompts does not fit the tensors ({error}): write the file again") from None
