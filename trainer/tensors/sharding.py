"""Weights sharded over processes (FSDP2): gathered whole, shared out again, and lent other values for a forward.

Where nothing is sharded these do nothing but what their names say.  Every process must call them alike.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def shards(accelerator: Any) -> bool:
    """Whether accelerate is configured to shard."""
    return accelerator.distributed_type == "FSDP"


def is_sharded(network: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in network.modules())


def parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The network's parameters by name, sharded if they are; what is gathered is dropped."""
    reshard(network)
    return dict(network.named_parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share(full: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, where `like` is, and sharded as it is."""
    if not isinstance(like, DTensor) or isinstance(full, DTensor):
        return full.to(like.device)
    full = full.to(like.device_mesh.device_type)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)  # None: nothing is sent


def whole(tensor: Tensor) -> Tensor:
    """The tensor on every process, where its part is."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors made whole, one by one, on the CPU; only where `keep`, else nothing.  For small models only."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full
    return found


def processes() -> int:
    """How many train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def on_main(act: Callable[[], object]) -> None:
    """act() in the first process; an OSError of it is raised in all."""
    told: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            act()
        except OSError as error:
            told = [error.strerror or str(error)]
    distributed.broadcast_object_list(told)
    if told[0] is not None:
        raise OSError(told[0])


@torch.no_grad()
@contextmanager
def lent(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The sharded network with these values, sharded alike, for some of its parameters; then its own again.

    torch.func.functional_call cannot do it: FSDP computes with what it gathers from its own parameters.  A forward with
    gradient may be under way: its backward gathers anew.
    """
    if not values:
        yield
        return
    named = parameters(network)
    live, other = [local(named[name]) for name in values], [local(value) for value in values.values()]
    own = [tensor.clone() for tensor in live]
    torch._foreach_copy_(live, other)
    try:
        yield
    finally:
        reshard(network)
        torch._foreach_copy_(live, own)


def reshard(network: nn.Module) -> None:
    """Drop what is gathered, which the root keeps after a forward."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def told(value: bool) -> bool:
    """What the first process says."""
    said = [value]
    distributed.broadcast_object_list(said)
    return said[0]
