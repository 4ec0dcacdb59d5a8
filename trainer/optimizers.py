"""Optimisers by name.

adamw  torch's, fused where the device allows
adamw8bit  torchao's, with eight-bit moments (tensors of fewer than 4096 numbers keep theirs whole)
muon   torch's Muon for the matrices of the blocks, AdamW for all else (embeddings, biases, norms, first and last layers)
"""

import functools
from importlib.util import find_spec

import torch
from torch import Tensor, nn, optim
from torch.distributed.tensor import DTensor

from . import TrainerError


def split(network: nn.Module, tensors: dict[str, nn.Parameter], optimizer: str) -> dict[str, list[str]]:
    """Names of the tensors by the optimiser that trains them."""
    if optimizer != "muon":
        return {optimizer: list(tensors)}
    lists = [name + "." for name, m in network.named_modules() if isinstance(m, nn.ModuleList)]
    inside = [name for name, p in tensors.items() if p.ndim == 2 and any(name.startswith(part) for part in lists)]
    return {"muon": inside, "adamw": [name for name in tensors if name not in set(inside)]}


def build(groups: list[dict], *, betas: tuple[float, float], weight_decay: float) -> list[optim.Optimizer]:
    """One optimiser for each kind among the groups ("kind", "params", "lr", "peak").  Raises TrainerError."""
    kinds: dict[str, list[dict]] = {}
    for group in groups:
        kinds.setdefault(group["kind"], []).append(group)
    built = []
    for kind, own in kinds.items():
        if kind == "muon":
            if not hasattr(optim, "Muon"):
                raise TrainerError("--optimizer muon needs torch 2.9 or newer; expected adamw, or pip install -U torch")
            # 3 iterations are enough for an update that need not be orthogonal to many digits
            built.append(optim.Muon(own, weight_decay=weight_decay, ns_steps=3, adjust_lr_fn="match_rms_adamw"))
        elif kind == "adamw8bit":
            built.append(adamw8bit()(own, betas=betas, weight_decay=weight_decay))
        else:
            fused = all(p.device.type in ("cpu", "cuda") for group in own for p in group["params"])
            built.append(optim.AdamW(own, betas=betas, weight_decay=weight_decay, fused=fused))
    return built


def check(name: str) -> None:
    """Raises TrainerError where this machine has no such optimiser."""
    if name == "adamw8bit" and not find_spec("torchao"):
        raise TrainerError("--optimizer adamw8bit: torchao is not installed; pip install torchao, or --optimizer adamw")


@functools.cache
def adamw8bit() -> type[optim.Optimizer]:
    """torchao's, which compiles its step; on a CPU that takes a C++ compiler and longer than it saves."""
    check("adamw8bit")
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
