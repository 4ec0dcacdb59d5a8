"""Tensors that are made only when they are asked for: what is done to them before, such as joining q, k and v, is noted.

So a weights file of any size is written one tensor at a time, whatever its names and layout make of the model's tensors.  And
so is a model read that is to be sharded: its parameters wait on the meta device (wait) until every process keeps its part of
them (share_out), one after the other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


def wait(parameter: nn.Parameter, value: Any) -> None:
    """The parameter is to have this value (deferred), in this dtype or another that it gets before the value is made."""
    parameter.data = value.outline
    vars(parameter)["value"] = value


def value_of(parameter: nn.Parameter) -> Tensor:
    """What it holds, made where it waits."""
    value = vars(parameter).get("value")
    return parameter.detach() if value is None else value.make().to(parameter.dtype)


def waits(parameter: nn.Parameter) -> bool:
    return "value" in vars(parameter)


def change(parameter: nn.Parameter, how: Callable[[Tensor], Tensor]) -> None:
    """how: is done to the value, in the parameter's dtype, when it is made; of the same shape and dtype."""
    value, dtype = vars(parameter)["value"], parameter.dtype
    wait(parameter, Deferred(parameter.data, lambda: how(value.make().to(dtype))))


def fill(module: nn.Module) -> None:
    """Make what waits in a small module, as new parameters."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if waits(parameter):
                setattr(part, name, nn.Parameter(value_of(parameter), parameter.requires_grad))


def waiting(network: nn.Module) -> dict[str, Deferred]:
    """The values of the parameters that wait, by name."""
    return {name: vars(p)["value"] for name, p in network.named_parameters() if waits(p)}


@torch.no_grad()
def share_out(network: nn.Module, values: Mapping[str, Deferred]) -> None:
    """Give the sharded network what was waiting() in it before.  Every process makes it all and keeps its part."""
    live = dict(network.named_parameters())
    parts = {name: sharding.share(value.make(), live[name]).to(live[name].dtype) for name, value in values.items()}
    network.load_state_dict(parts, strict=False, assign=True)
