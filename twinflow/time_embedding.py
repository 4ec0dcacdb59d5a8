"""How a backbone hears both times, t (where x_t lies) and r (where the velocity leads).

Two embedders: (t, r) travel through the backbone stacked in the last dimension of its time argument and part only at
its time embedder, so no forward is rewritten.  One embedder (a classic LoRA): the pair is folded into t - r / 2.
Source: the released TwinFlow code; its formulas per backbone stand in SECOND_EMBEDDERS.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def stack(t: Tensor, r: Tensor, *, through: torch.dtype | None = None) -> Tensor:
    """Both times as one argument, shape (B, 2): what TwoTimeEmbedder takes apart.

    through: a dtype to which the backbone casts its time argument.  A float32 time does not fit into bfloat16 (.999
    becomes 1), so each time then travels as three terms that do, shape (B, 6), and is summed at the embedder.
    """
    times = torch.stack([t, r], dim=-1)
    if through in (None, torch.float32, torch.float64):
        return times
    terms, rest = [], times.float()
    for _ in range(3):  # 3 x 8 bits of mantissa hold float32's 24
        terms.append(rest.bfloat16().float())
        rest = rest - terms[-1]
    return torch.stack(terms, dim=-1).flatten(-2)


def fold(t: Tensor, r: Tensor) -> Tensor:
    """The single time t - r / 2 that stands for the pair where there is one embedder only."""
    return t - r / 2


def to_signal(t: Tensor) -> Tensor:
    """Z-Image's time, which counts towards the data: sgn(t) (1 - |t|).

    sgn(0) = 0 sends r = 0 to 0, the noise end; the released weights were trained and served so, hence so do we.
    """
    return t.sign() * (1 - t.abs())


class TwoTimeEmbedder(nn.Module):
    """e(t) + (t - r) e_r(r), in place of the embedder e; e_r is `target`, which the backbone holds under its own name.

    At r = t, or given one time only (B,), it is e exactly.  The submodules of e stay registered here under their old
    names, so that checkpoints and LoRAs still find them.  scale: what the backbone multiplied the times with.
    """

    def __init__(self, base: nn.Module, target: nn.Module, scale: float = 1.0):
        super().__init__()
        self._modules = base._modules  # the same dict: a layer that PEFT replaces here is replaced there
        self._held = (base, target)  # in a tuple, or their parameters would be registered a second time
        self.scale = scale

    def forward(self, times: Tensor, *args, **kwargs):
        base, target = self._held
        if times.ndim == 1:
            return base(times, *args, **kwargs)
        if times.shape[-1] != 2:
            times = times.float().unflatten(-1, (2, -1)).sum(-1)
        t, r = times.unbind(-1)
        return self.combine(base, target, t, r, *args, **kwargs)

    def combine(self, base, target, t, r, *args, **kwargs):
        gap = ((t - r) / self.scale)[:, None]
        here, there = base(t, *args, **kwargs), target(r, *args, **kwargs)
        if isinstance(here, tuple):  # Sana: the modulation and the embedding
            return tuple(a + b * gap.to(b.dtype) for a, b in zip(here, there))
        return here + there * gap.to(there.dtype)


class IntervalEmbedder(TwoTimeEmbedder):
    """Z-Image's: e(u) + |u - w| e_r(w - u), with u and w the times t and r as to_signal gives them.

    signed: e hears u; the released code feeds |u|, which is the same for t >= 0 but makes (t, t) and (-t, -t)
    indistinguishable and the fake twin dead.  False reproduces that.
    """

    signed = True

    def combine(self, base, target, t, r, *args, **kwargs):
        gap = ((t - r) / self.scale).abs()[:, None]
        here, there = base(t if self.signed else t.abs(), *args, **kwargs), target(r - t, *args, **kwargs)
        return here + there * gap.to(there.dtype)


@dataclass(frozen=True)
class SecondEmbedder:
    """Where a backbone's second time embedder sits and how it starts.

    embedder: name of the backbone's own time embedder.  name: of the second one (the released checkpoints' key).
    scale: what the times are multiplied with before they reach it.  init: "copy" of the first, or "normal" (0, 0.02).
    """

    embedder: str
    name: str
    kind: type[TwoTimeEmbedder] = TwoTimeEmbedder
    scale: float = 1.0
    init: str = "copy"

    def install(self, backbone: nn.Module) -> nn.Module:
        """Give the backbone its second embedder, in place; returns that embedder.  Weights load as usual afterwards."""
        if hasattr(backbone, self.name):
            raise ValueError(f"{type(backbone).__name__} already has {self.name!r}; a second embedder is installed once")
        base = getattr(backbone, self.embedder)
        target = copy.deepcopy(base)
        if self.init == "normal":
            for name, p in target.named_parameters():
                nn.init.zeros_(p) if name.endswith("bias") else nn.init.normal_(p, std=0.02)
        setattr(backbone, self.name, target)
        setattr(backbone, self.embedder, self.kind(base, target, self.scale))
        return target


SECOND_EMBEDDERS: dict[str, SecondEmbedder] = {
    "qwen-image": SecondEmbedder("time_text_embed", "time_text_embed_2"),
    "z-image": SecondEmbedder("t_embedder", "t_embedder_2", IntervalEmbedder, scale=1000.0),
    "sd3.5": SecondEmbedder("time_text_embed", "time_text_embed_2", scale=1000.0, init="normal"),
    "sana": SecondEmbedder("time_embed", "time_embed_2", scale=1000.0, init="normal"),
}

TIME_RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"two": stack, "fold": fold}
