"""Optimisers by name.

adamw  torch's, fused where the device allows
muon   torch's Muon for the matrices of the blocks, AdamW for all else (embeddings, biases, norms, first and last layers)
"""

from torch import nn, optim

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
        else:
            fused = all(p.device.type in ("cpu", "cuda") for group in own for p in group["params"])
            built.append(optim.AdamW(own, betas=betas, weight_decay=weight_decay, fused=fused))
    return built
