"""ComfyUI's classes of the backbones, one file each, named as in twinflow/backbones.  Every file holds one record, MODEL.

A network gets its second time embedder from the operations that ComfyUI passes in, so fp8, GGUF storage, LoRA and memory
management reach it as they reach every other layer.  The pair (t, r) travels beside the time of the unchanged forward.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ...twinflow.backbones import Backbone
from ...twinflow.time_embedding import TwoTimeEmbedder
from ..time_conditioning import for_two_embedders


@dataclass(frozen=True)
class Model:
    """config, base: the stock classes of comfy.supported_models and comfy.model_base.  network: with two time embedders.

    settings: what to change in the detected configuration for a network of these widths (see Backbone.widths), nothing for a
    published size; raises KeyError for tensors of another model.  shapes: of the file's tensors, by diffusers' names.
    small: the plain network, where the stock one cannot be built with such settings.
    taken_for: what else ComfyUI's detection calls a file of this backbone (its image_model), guessing by what is absent.
    """

    config: type
    base: type
    network: type
    settings: Callable[[dict, Mapping[str, tuple[int, ...]]], dict]
    small: type | None = None
    taken_for: tuple[str, ...] = ()


class TwoTimes(nn.Module):
    """Before a stock network among a class's bases: with the backbone's second time embedder, which takes the pair (t, r).

    kind: of the module that takes the pair.  Whether times are signed is the record's, until the Model Loader finds a file that
    names its own.
    """

    backbone: ClassVar[Backbone]
    kind: ClassVar[type[TwoTimeEmbedder]] = TwoTimeEmbedder
    has_second_embedder: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = "_forward" if hasattr(cls, "_forward") else "forward"  # inside the wrappers that other packs put around it
        setattr(cls, name, with_pair(getattr(cls, name)))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        entry = replace(self.backbone.native_time, kind=self.kind, init="copy")  # the weights come from a file
        entry.install(self)
        entry.of(self).signed = self.backbone.signed_time

    def beside(self, arguments: Mapping[str, Any]) -> Any:
        """What the second time embedder gets besides the time, from the arguments of the forward."""
        return None


def with_pair(stock: Callable) -> Callable:
    """The stock forward, conditioned on (t, r) where the sampler gives a target time."""
    parameters = inspect.signature(stock).parameters
    names = list(parameters)[3:]  # after self, x and timesteps; their order changed between versions
    if "transformer_options" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(f"{stock.__qualname__} takes no transformer_options, in which t and r travel")

    @functools.wraps(stock)
    def forward(self, x, timesteps, *args, **kwargs):
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        time = for_two_embedders(arguments.get("transformer_options") or {})
        if time is None:
            return stock(self, x, timesteps, *args, **kwargs)
        t, r = time.pair(timesteps, self.backbone.native_scale)
        embedder = self.backbone.native_time.of(self)
        return embedder.at(t, r, stock, self, x, timesteps, *args, beside=self.beside(arguments), **kwargs)

    return forward
