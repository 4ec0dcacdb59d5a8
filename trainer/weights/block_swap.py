"""Block swap: the frozen weights of some transformer blocks rest in host memory and visit the device for each use.

Written for training: under gradient checkpointing a block runs twice, forward and again in the backward pass, and its
weights visit both times.  Each visit puts a new parameter into the module and takes it out afterwards, so what autograd
saved of the visit stays valid until that block's backward is done, and no longer.  While the weights are away the module
has None in their place: `.to(device)` does not move them, and nothing can compute with them by mistake.
Trained weights (LoRA) and their optimiser stay on the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks by name: what stands in the lists that are the model's own children."""
    lists = {name: child for name, child in model.named_children() if isinstance(child, nn.ModuleList)}
    return {f"{name}.{i}": block for name, child in lists.items() for i, block in enumerate(child)}


@dataclass
class Weight:
    """One frozen weight of a block: where it belongs, and its values on the host."""

    module: nn.Module
    name: str
    host: Tensor

    def arrive(self, device: torch.device) -> None:
        values = self.host.to(device, non_blocking=True, copy=True)
        self.module._parameters[self.name] = nn.Parameter(values, requires_grad=False)

    def leave(self) -> None:
        self.module._parameters[self.name] = None


class BlockSwap:
    """Sends the frozen weights of the first `count` blocks to the host; from then on they visit.  See the module."""

    def __init__(self, model: nn.Module, count: int):
        self.weights: list[list[Weight]] = []
        for block in list(blocks_of(model).values())[:count]:
            own = [
                Weight(module, name, to_host(p))
                for module in block.modules()
                for name, p in module._parameters.items()
                if p is not None and not p.requires_grad
            ]
            for weight in own:
                weight.leave()
            block.register_forward_pre_hook(lambda _, args, kwargs, own=own: arrive(own, args, kwargs), with_kwargs=True)
            # always: the recomputation ends in an exception as soon as it has made what the backward needs
            block.register_forward_hook(lambda *_, own=own: leave(own), always_call=True)
            self.weights.append(own)


def to_host(p: nn.Parameter) -> Tensor:
    host = p.detach().to("cpu")
    return host.pin_memory() if type(host) is Tensor and torch.cuda.is_available() else host


def arrive(weights: list[Weight], args: tuple, kwargs: dict) -> None:
    device = next(v.device for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
    for weight in weights:
        weight.arrive(device)


def leave(weights: list[Weight]) -> None:
    for weight in weights:
        weight.leave()
