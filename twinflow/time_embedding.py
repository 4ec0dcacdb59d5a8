"""Time conditioning: how a backbone that takes one time is given both, t (where x_t lies) and r (where the velocity leads).

Second time embedder (t, r): the pair travels beside the backbone's own time argument, for the length of one forward, and its
time embedder E answers E(t) + (t - r) E_r(r).  No forward is rewritten, and no host's rounding of t reaches either embedder.
Folding (one time embedder, a classic LoRA): the backbone is asked at the single time t - r / 2.
Source: the released TwinFlow code; what differs between backbones stands in twinflow/backbones.
"""

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .path import like, widest

Result = TypeVar("Result")
TIME_RULES = ("two", "fold")  # of a file: a second time embedder (t, r), or folding


def fold(t: Tensor, r: Tensor) -> Tensor:
    """The single time t - r / 2 that stands for the pair where there is one time embedder only."""
    return t - r / 2


def to_signal(t: Tensor) -> Tensor:
    """Z-Image's time, which counts towards the data: sgn(t) (1 - |t|).

    sgn(0) = 0 sends r = 0 to 0, the noise end; the released weights were trained and served so, hence so do we.
    """
    return t.sign() * (1 - t.abs())


def sinusoid(time: Tensor, width: int = 256, period: float = 10_000.0) -> Tensor:
    """[cos | sin] features (B, width) of time (B,), in float32: for hosts that compute them outside their time embedder."""
    half = width // 2
    frequencies = torch.exp(-math.log(period) * torch.arange(half, dtype=torch.float32, device=time.device) / half)
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Pair(NamedTuple):
    """t and r (B,).  beside: what the second time embedder gets besides its time, where its host does not give it."""

    t: Tensor
    r: Tensor
    beside: Any = None


class _Waiting(threading.local):
    """The pair of the forward that this thread is making, until its time embedder is called."""

    pair: Pair | None = None

    def __deepcopy__(self, memo: dict) -> "_Waiting":
        return _Waiting()

    def __reduce__(self):
        return _Waiting, ()


# PyTorch 2.6 cannot compile what follows; 2.13 is the oldest that was seen to.  Before it a compiled model has a break there.
COMPILED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
_outside_graphs = (lambda forward: forward) if COMPILED else torch.compiler.disable


class TwoTimeEmbedder(nn.Module):
    """E(t) + (t - r) E_r(r), in place of a backbone's time embedder E; E_r is `target`, which the backbone holds itself.

    Within at(t, r, call, ...) the first call of this module uses the pair; any other call is E's own.  At r = t it equals E
    to the last bit.  The submodules of E stay registered here under their old names, so that checkpoints and LoRAs find them.
    """

    def __init__(self, base: nn.Module, target: nn.Module, entry: "SecondEmbedder"):
        super().__init__()
        if own := [name for name, _ in (*base.named_parameters(recurse=False), *base.named_buffers(recurse=False))]:
            raise ValueError(
                f"the time embedder {type(base).__name__} has parameters or buffers of its own ({', '.join(own)}), which would "
                "lose their names here; expected one that keeps them in submodules"
            )
        self._modules = base._modules  # the same dict: a layer that PEFT replaces here is replaced there
        self._held = (base, target)  # in a tuple, or their parameters would be registered a second time
        self._waiting = _Waiting()
        self.entry, self.signed = entry, True

    def at(self, t: Tensor, r: Tensor, call: Callable[..., Result], *args: Any, beside: Any = None, **kwargs: Any) -> Result:
        """call(*args, **kwargs), a forward of the backbone, conditioned on t and r, both (B,), with t = 1 at the noise.

        The times are used as they are given, float32 or wider, for this thread and this forward only; a forward within a
        forward leaves the outer one its pair.  Gradient checkpointing of a whole forward goes around this call, not into it.
        """
        outer = self.expect(Pair(t, r, beside))
        try:
            return call(*args, **kwargs)
        finally:
            self.expect(outer)

    def row_by_row(self, call: Callable[[int], Result], rows: int) -> list[Result]:
        """call(i), a forward of the i-th of so many rows alone, for each of them, with its own of the pair that waits."""
        pair = self.expect(None)
        if pair is None:
            return [call(i) for i in range(rows)]
        return [self.at(pair.t[i : i + 1], pair.r[i : i + 1], call, i, beside=pair.beside) for i in range(rows)]

    def expect(self, pair: Pair | None) -> Pair | None:
        """For hosts whose forward cannot be made within at: the pair of the next one, or none; returns the one before."""
        before, self._waiting.pair = self._waiting.pair, pair
        return before

    @_outside_graphs
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        base, _ = self._held
        pair = self._waiting.pair
        if pair is None:
            return base(*args, **kwargs)
        self._waiting.pair = None  # a second call in the same forward is of other rows (reference images)
        own, target, gap = self.entry.times(pair, self.signed)
        asked = lambda time, whole: self._with_time(args, time, whole)
        there = self.second(pair, asked(target, False), kwargs)
        here = base(*asked(own, True), **kwargs)
        if isinstance(here, tuple):
            return tuple(self._sum(a, b, gap) for a, b in zip(here, there, strict=True))
        return self._sum(here, there, gap)

    def second(self, pair: Pair, args: tuple, kwargs: dict) -> Any:
        """The output of the second time embedder."""
        return self._held[1](*args, **kwargs)

    def _with_time(self, args: tuple, time: Tensor, whole: bool) -> tuple:
        """The host's arguments with the time in its place; whole: with the host's further rows, which belong to no sample."""
        given = args[self.entry.argument]
        if self.entry.sinusoid is not None:
            time = self.entry.sinusoid(time).to(given.dtype)
        n, rest = len(time), given.shape[1:]
        time = time.reshape(n, *(1,) * (given.ndim - time.ndim), *time.shape[1:]).expand(n, *rest)
        if whole and len(given) > n:
            more = given[n:] if self.entry.rows == "first" else given[:-n]
            parts = (time, more.to(time.dtype)) if self.entry.rows == "first" else (more.to(time.dtype), time)
            time = torch.cat(parts)
        return (*args[: self.entry.argument], time, *args[self.entry.argument + 1 :])

    def _sum(self, here: Tensor, there: Tensor, gap: Tensor) -> Tensor:
        there = there * like(gap, there).to(there.dtype)
        if (more := len(here) - len(there)) == 0:
            return here + there
        zeros = there.new_zeros(more, *there.shape[1:])
        return here + torch.cat([there, zeros] if self.entry.rows == "first" else [zeros, there])


@dataclass(frozen=True)
class SecondEmbedder:
    """Where time enters a backbone's class, and its second time embedder.

    embedder: name of the class's own time embedder.  name: of the second one (the released checkpoints' key).
    scale: what the class multiplies the time with before it calls the embedder.
    view: the class's own count of time, of t (to_signal for Z-Image).  interval: the second embedder is asked for the length
    of the step, E(u) + |u - w| E_r(w - u) with u and w the views of t and r, not for r itself.
    argument: position of the time among the embedder's arguments.  rows: where the samples' rows stand when the class adds
    others (reference images, a zero row).  sinusoid: features of the scaled time, where the class computes them outside.
    init: weights of a new second embedder, a "copy" of the first or "normal" (0, 0.02) with zero biases.
    """

    embedder: str
    name: str
    scale: float = 1.0
    view: Callable[[Tensor], Tensor] | None = None
    interval: bool = False
    argument: int = 0
    rows: Literal["first", "last"] = "first"
    sinusoid: Callable[[Tensor], Tensor] | None = None
    init: Literal["copy", "normal"] = "copy"
    kind: type[TwoTimeEmbedder] = TwoTimeEmbedder

    def install(self, backbone: nn.Module) -> nn.Module:
        """Give the backbone a new second time embedder, in place; returns it.  Weights load as usual afterwards.

        Raises ValueError where there is one already, or where the first has parameters of its own.
        """
        if self.installed(backbone):
            raise ValueError(f"{type(backbone).__name__} already has {self.name!r}; a second time embedder is installed once")
        parent, name = self._parent(backbone, self.embedder)
        base = getattr(parent, name)
        target = copy.deepcopy(base)
        if self.init == "normal":
            for key, p in target.named_parameters():
                nn.init.zeros_(p) if key.endswith("bias") else nn.init.normal_(p, std=0.02)
        setattr(parent, name, self.kind(base, target, self))
        holder, second = self._parent(backbone, self.name)
        setattr(holder, second, target)
        return target

    def installed(self, backbone: nn.Module) -> bool:
        parent, name = self._parent(backbone, self.embedder)
        return isinstance(getattr(parent, name), TwoTimeEmbedder)

    def of(self, backbone: nn.Module) -> TwoTimeEmbedder:
        """The module that takes the pair.  Raises ValueError where no second time embedder is installed."""
        parent, name = self._parent(backbone, self.embedder)
        found = getattr(parent, name)
        if not isinstance(found, TwoTimeEmbedder):
            raise ValueError(
                f"{type(backbone).__name__} has no second time embedder; install one, load a file that has it, or fold t and r"
            )
        return found

    def times(self, pair: Pair, signed: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled times that the two embedders are asked at, and the factor of the second one's output; all (B,).

        signed: the released Z-Image code asks the first embedder at |u|, which is the same for t >= 0 but makes (t, t) and
        (-t, -t) indistinguishable and its fake trajectory useless; False reproduces that.
        """
        t, r = (k if self.view is None else self.view(k) for k in (pair.t, pair.r))
        own = (t if signed else t.abs()) * self.scale
        if not self.interval:
            return own, r * self.scale, t - r
        u, w = widest(t), widest(r)  # their difference is taken before any rounding
        return own, (w - u) * self.scale, (u - w).abs()

    @staticmethod
    def _parent(backbone: nn.Module, name: str) -> tuple[nn.Module, str]:
        path, _, last = name.rpartition(".")
        return backbone.get_submodule(path), last
