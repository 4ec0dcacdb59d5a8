"""Tensors that are made only when they are asked for: what is done to them before, such as joining q, k and v, is noted.

So a weights file of any size is written one tensor at a time, whatever its names and layout make of the model's tensors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import sharding


class Deferred:
    """A tensor that make() gives.  outline: its shape and dtype, on the meta device.

    Functions and methods of torch that return tensors give further deferred ones; all others see the outline.
    """

    def __init__(self, outline: Tensor, make: Callable[[], Tensor]):
        self.outline, self.make = outline, make

    @classmethod
    def of(cls, tensor: Tensor) -> Any:
        """The tensor, made whole where it is sharded; typed as what it stands for."""
        return cls(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), lambda: sharding.whole(tensor))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outline = function(*replaced(args, lambda d: d.outline), **kwargs)
        make = lambda: function(*replaced(args, lambda d: d.make()), **kwargs)
        if isinstance(outline, (tuple, list)):
            return tuple(cls(part, lambda i=i: make()[i]) for i, part in enumerate(outline))
        return cls(outline, make) if isinstance(outline, Tensor) else outline

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.outline, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: Deferred.__torch_function__(getattr(Tensor, name), (), (self, *args), kwargs)

    def __mul__(self, factor: float) -> Any:
        return Deferred.__torch_function__(torch.mul, (), (self, factor))


def replaced(value: Any, what: Callable[[Deferred], Tensor]) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(replaced(v, what) for v in value)
    return what(value) if isinstance(value, Deferred) else value


def outlines(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: t.outline if isinstance(t, Deferred) else t for name, t in tensors.items()}


def made(tensors: Iterable[Any]) -> Iterator[Tensor]:
    """One after the other; where they are sharded every process must take all of them."""
    for tensor in tensors:
        yield tensor.make() if isinstance(tensor, Deferred) else tensor
