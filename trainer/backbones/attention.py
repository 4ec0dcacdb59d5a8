"""Attention by another library, through diffusers' own dispatcher: checked on a small example before anything else is done.

What counts is what comes out: the result and the gradients of PyTorch's attention, to the precision of bf16.  So a library
that is not installed, or that has no backward pass, or takes no mask where the model needs one, costs one line.
"""

import logging
from typing import Any

import torch
from diffusers.models import attention_dispatch
from torch import Tensor, nn

from .. import TrainerError

USUAL = "sdpa"  # PyTorch's, which every model has
CLOSE = 0.05  # relative error of a result or gradient in bf16


def names() -> list[str]:
    return [USUAL, *(own.value for own in attention_dispatch.AttentionBackendName)]


def check(name: str, model: nn.Module, masked: bool, device: torch.device, own: bool = False) -> None:
    """Raises TrainerError where training with this attention cannot be.

    model: of the kind that is trained, weights or none.  masked: whether it masks padded text.  own: whether it asks no other
    while it is trained.
    """
    if name == USUAL:
        return
    if name not in names():
        raise TrainerError(f"--attention is {name!r}; expected one of {', '.join(names())}")
    if own or not processors(model):
        raise TrainerError(
            f"--attention {name}: diffusers' {type(model).__name__} calls PyTorch's attention itself; expected "
            f"--attention {USUAL}"
        )
    try:
        found = example(name, masked, device)
    except Exception as error:  # each library has its own, and each means that it cannot be used
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainerError(f"--attention {name}: cannot be used here ({why}); expected --attention {USUAL}") from None
    for what, ours, wanted in zip(("result", *"qkv"), found, example("native", masked, device), strict=True):
        if ours is None:
            raise TrainerError(f"--attention {name}: has no backward pass; expected --attention {USUAL} to train with")
        assert wanted is not None
        error = float((ours - wanted).norm() / wanted.norm())
        if not error < CLOSE:
            part = what if what == "result" else f"gradient of {what}"
            raise TrainerError(
                f"--attention {name}: its {part} is {error:.0%} from PyTorch's; expected --attention {USUAL} to train with"
            )


def example(name: str, masked: bool, device: torch.device) -> list[Tensor | None]:
    """The result of attention over 96 tokens, and the gradients of q, k and v."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (
        torch.randn(2, 96, 2, 64, generator=generator).to(device, torch.bfloat16).requires_grad_(part < 3) for part in range(4)
    )
    mask = (torch.arange(96, device=device) < torch.tensor([[96], [80]], device=device))[:, None, None] if masked else None
    with attention_dispatch.attention_backend(name):
        out = attention_dispatch.dispatch_attention_fn(q, k, v, attn_mask=mask)
    if out.requires_grad:
        (out * weight).sum().backward()
    return [out.detach().float(), *(None if p.grad is None else p.grad.float() for p in (q, k, v))]


def use(model: nn.Module, name: str) -> None:
    """Let the model's attention go that way, which check() has looked at."""
    if name == USUAL:
        return
    chosen: Any = model
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level, logger.level = logger.level, logging.ERROR  # it calls itself experimental
    active = attention_dispatch._AttentionBackendRegistry._active_backend
    try:
        chosen.set_attention_backend(name)
    finally:
        logger.setLevel(level)
        attention_dispatch._AttentionBackendRegistry._active_backend = active  # of this model alone, not of encoders


def processors(model: nn.Module) -> list[Any]:
    """Those of the model's attention layers that ask the dispatcher."""
    found = (getattr(module, "processor", None) for module in model.modules())
    return [processor for processor in found if hasattr(processor, "_attention_backend")]
