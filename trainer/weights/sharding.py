"""Weights sharded over processes (FSDP2): gathered whole, shared out again, and lent other values for a forward.

Where nothing is sharded these do nothing but what their names say.  Every process must call them alike.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(network: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in network.modules())


def parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The network's parameters by name, sharded if they are; what is gathered is dropped."""
    reshard(network)
    return dict(network.named_parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, where `like` is, and sharded as it is."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole.to(like.device)
    whole = whole.to(like.device_mesh.device_type)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)  # None: nothing is sent


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors made whole, one by one, on the CPU; only where `keep`, else nothing."""
    whole = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = full
    return whole


@torch.no_grad()
@contextmanager
def lent(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The sharded network with these values, sharded alike, for some of its parameters; then its own again.

    torch.func.functional_call cannot do it: FSDP computes with what it gathers from its own parameters.  A forward with
    gradient may be under way: its backward gathers anew.
    """
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
