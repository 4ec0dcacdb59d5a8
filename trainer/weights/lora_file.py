"""LoRA files of any layout, and our adapters, under the names of the model that is trained (see twinflow.adapter)."""

from collections.abc import Container
from pathlib import Path

from torch import nn

from twinflow import adapter
from twinflow.adapter import Adapter, Pair

from ..backbones import Backbone

__all__ = ["Adapter", "Pair", "read_adapter"]


def read_adapter(
    path: Path, backbone: Backbone, model: nn.Module, option: str = "--init ", leave: Container[str] = ()
) -> Adapter:
    """The file's LoRA and second time embedder, without layers whose output nothing uses.  model: maybe without weights.

    option: what named the file, for messages.  leave: names of tensors that are not read.  Raises WeightsError.
    """
    return adapter.read_adapter(path, backbone.core, model, backbone.idle(model), option, leave)
