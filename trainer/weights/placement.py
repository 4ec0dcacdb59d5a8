"""Where a frozen encoder computes: whole on a device, or with layers that rest in host memory and visit it for each use.

accelerate's hooks move the visitors, so the numbers are those of an encoder that lies there whole.
"""

import torch
from accelerate import cpu_offload
from torch import nn

from .block_swap import blocks_of

ROOM = 2 * 2**30  # left free beside weights, for what they compute with


def free_bytes(device: torch.device) -> float:
    """What weights may take there; only of an NVIDIA or AMD card is it known."""
    return torch.cuda.mem_get_info(device)[0] - ROOM if device.type == "cuda" else float("inf")


def place(model: nn.Module, device: torch.device, room: float = float("inf")) -> int:
    """Put the model on the device, in at most `room` bytes of it; how many bytes of it stay away and visit.

    Blocks go away one by one, the last ones first; where the rest alone has no room, every layer does.
    """
    total, blocks = size_of(model), [block for holder in holders(model) for block in blocks_of(holder).values()]
    away: list[nn.Module] = []
    while total - sum(map(size_of, away)) + max(map(size_of, away), default=0) > room and len(away) < len(blocks):
        away.append(blocks[-1 - len(away)])
    if away and len(away) == len(blocks):
        away = [model]
    for module in away:
        cpu_offload(module, device)
    if not away:
        model.to(device)
        return 0
    gone = {id(inner) for module in away for inner in module.modules()}
    for module in model.modules():
        if id(module) not in gone:
            module._apply(lambda t: t.to(device), recurse=False)
    return sum(map(size_of, away))


def holders(model: nn.Module) -> list[nn.Module]:
    """The modules inside a model that have lists of layers; not those inside another's layer."""
    inner = [child for child in model.children() if not isinstance(child, nn.ModuleList)]
    return [model] * bool(blocks_of(model)) + [holder for child in inner for holder in holders(child)]


def size_of(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
