"""Optimisers by name.

adamw  torch's, fused where the device allows
adamw8bit  torchao's, with eight-bit moments (tensors of fewer than 4096 numbers keep theirs whole)
muon   Muon for the matrices of the blocks, AdamW for all else (embeddings, biases, norms, first and last layers)
"""

import functools
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.distributed.tensor import DTensor

from .. import TrainerError
from ..config.sections import Training


def split(network: nn.Module, tensors: dict[str, nn.Parameter], optimizer: str) -> dict[str, list[str]]:
    """Names of the tensors by the optimiser that trains them."""
    if optimizer != "muon":
        return {optimizer: list(tensors)}
    lists = [name + "." for name, m in network.named_modules() if isinstance(m, nn.ModuleList)]
    inside = [name for name, p in tensors.items() if p.ndim == 2 and any(name.startswith(part) for part in lists)]
    return {"muon": inside, "adamw": [name for name in tensors if name not in set(inside)]}


def groups_of(
    network: nn.Module, tensors: dict[str, nn.Parameter], training: Training, second: str = "\0"
) -> list[dict[str, Any]]:
    """Parameter groups: muon's matrices, and the second time embedder (names beginning with `second`), may have learning
    rates of their own."""
    groups = []
    for kind, names in split(network, tensors, training.optimizer).items():
        rate = (training.matrix_lr or training.lr) if kind == "muon" else training.lr
        for own in (False, True):
            peak = (training.embedder_lr or rate) if own else rate
            if chosen := [name for name in names if name.startswith(second) == own]:
                groups.append(dict(kind=kind, params=[tensors[name] for name in chosen], lr=peak, peak=peak))
    return groups


def build(groups: list[dict[str, Any]], training: Training) -> list[optim.Optimizer]:
    """One optimiser for each kind among the groups ("kind", "params", "lr", "peak").  Raises TrainerError."""
    betas, weight_decay = training.betas, training.weight_decay
    kinds: dict[str, list[dict]] = {}
    for group in groups:
        kinds.setdefault(group["kind"], []).append(group)
    built = []
    for kind, own in kinds.items():
        if kind == "muon":
            built.append(Muon(own, weight_decay=weight_decay))
        elif kind == "adamw8bit":
            built.append(adamw8bit()(own, betas=betas, weight_decay=weight_decay))
        else:
            fused = all(p.device.type in ("cpu", "cuda") for group in own for p in group["params"])
            built.append(optim.AdamW(own, betas=betas, weight_decay=weight_decay, fused=fused))
    return built


class Muon(optim.Optimizer):
    """Keller Jordan's Muon (kellerjordan.github.io/posts/muon), learning rates matched to AdamW's as Moonlight does.

    The numbers are those of torch.optim.Muon(ns_steps=3, adjust_lr_fn="match_rms_adamw"), to rounding.  Matrices of one
    shape are orthogonalised together: a small model has many, and calling torch for each costs more than the arithmetic.
    """

    COEFFICIENTS = 3.4445, -4.7750, 2.0315
    ITERATIONS = 3  # enough for an update that need not be orthogonal to many digits
    TOGETHER = 2**22  # numbers stacked at once, which bounds the memory; a larger matrix goes alone

    def __init__(self, params, *, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, dict(weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  no closure is ever given
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((p.shape, p.device, p.dtype), []).append(p)
            for same in alike.values():
                count = max(1, self.TOGETHER // same[0].numel())
                for first in range(0, len(same), count):
                    self.update(same[first : first + count], group)

    def update(self, params: list[Tensor], group: dict) -> None:
        """One step of parameters of one shape (M, N)."""
        grads, momentum = [p.grad for p in params if p.grad is not None], group["momentum"]
        averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        updates = self.orthogonal(torch.stack(torch._foreach_lerp(grads, averages, momentum))).to(params[0])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, updates.unbind(), alpha=-group["lr"] * 0.2 * math.sqrt(max(params[0].shape)))

    def orthogonal(self, x: Tensor) -> Tensor:
        """The matrices x (B, M, N) with all singular values near 1, by Newton-Schulz iterations."""
        if x.device.type != "cpu":  # which has no fast bfloat16
            x = x.bfloat16()
        if tall := x.shape[-2] > x.shape[-1]:
            x = x.mT
        x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
        a, b, c = self.COEFFICIENTS
        for _ in range(self.ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x


def check_optimizer(name: str) -> None:
    """Raises TrainerError where this machine has no such optimiser."""
    if name == "adamw8bit" and not find_spec("torchao"):
        raise TrainerError("--optimizer adamw8bit: torchao is not installed; pip install torchao, or --optimizer adamw")


@functools.cache
def adamw8bit() -> Callable[..., optim.Optimizer]:
    """torchao's, which compiles its step; on a CPU that takes a C++ compiler and longer than it saves."""
    check_optimizer("adamw8bit")
    from torchao.optim import AdamW8bit

    class Eager8bit(AdamW8bit):
        def step(self, closure=None):
            on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
            with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
                return super().step(closure)

    return Eager8bit


def set_rate(optimizer: optim.Optimizer, share: float) -> None:
    """Give every group this share of its peak learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's must stay the tensor that it is
            group["lr"].fill_(group["peak"] * share)
        else:
            group["lr"] = group["peak"] * share


def tensors(optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """All that an optimiser remembers, as plain tensors (or sharded ones) that share its memory, by name."""
    found = {}
    for i, slot in optimizer.state_dict()["state"].items():
        for name, value in slot.items():
            quantised = hasattr(value, "__tensor_flatten__") and not isinstance(value, DTensor)
            parts = {f".{part}": getattr(value, part) for part in value.__tensor_flatten__()[0]} if quantised else {"": value}
            found |= {f"{i}.{name}{part}": tensor for part, tensor in parts.items()}
    return found


def prime(optimizer: optim.Optimizer, slots: set[int]) -> None:
    """Let an optimiser make its memory of these parameters (by number), which it does at a first step."""
    set_rate(optimizer, 0.0)
    every = [p for group in optimizer.param_groups for p in group["params"]]
    for i in slots:
        every[i].grad = torch.zeros_like(every[i])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
