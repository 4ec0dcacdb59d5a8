"""Teachers and guides: the network that is trained, run with other weights or without its LoRA; no copy of the weights."""

from collections.abc import Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from twinflow.objective import Condition

from ..tensors import sharding


class WithWeights:
    """A network run with other values for some of its tensors; never with gradient."""

    def __init__(self, network: nn.Module, values: Mapping[str, Tensor]):
        live = sharding.parameters(network)
        self.network, self.sharded = network, sharding.is_sharded(network)
        self.values = {name: sharding.share(value, live[name]) for name, value in values.items()}
        self.dropouts = [m for m in network.modules() if isinstance(m, nn.Dropout)]

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        training = [m.training for m in self.dropouts]
        try:
            for m in self.dropouts:
                m.training = False
            if self.sharded:
                with sharding.lent(self.network, self.values):
                    return self.network(x, t, r, cond)
            return torch.func.functional_call(self.network, self.values, (x, t, r, cond))
        finally:
            for m, was in zip(self.dropouts, training):
                m.training = was


class WithoutLora:
    """A network with its LoRA switched off.  At r = t a second time embedder adds nothing: this is the model as it was."""

    def __init__(self, network: nn.Module, *, at_t: bool):
        self.network, self.at_t = network, at_t
        self.layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        if self.at_t:  # undo the folding: ask at t itself
            r = torch.zeros_like(r)
        try:
            for layer in self.layers:
                layer.enable_adapters(False)
            return self.network(x, t, r, cond)
        finally:  # also restores requires_grad, before any backward
            for layer in self.layers:
                layer.enable_adapters(True)
