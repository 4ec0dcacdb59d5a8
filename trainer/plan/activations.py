"""What a forward keeps for its backward, counted by running the real classes on fake tensors: shapes without numbers."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from ..backbones import Backbone
from ..weights.block_swap import blocks_of


class Kept(NamedTuple):
    """Bytes for one row.  whole: without checkpointing.  outside: not in any block.  inputs: of all blocks.

    block: of the largest one.
    """

    whole: int
    outside: int
    inputs: int
    block: int

    def bytes(self, checkpointing: bool) -> int:
        """With checkpointing blocks keep their inputs only, and one at a time is run again."""
        return self.outside + self.inputs + self.block if checkpointing else self.whole


class Positions(TorchDispatchMode):
    """Over fake tensors: whole numbers and masks are real, for some classes look at them to lay out their tokens."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not all(type(t) is Tensor and counts(t) for t in given):
            return func(*args, **kwargs)
        if not given and not counts(made := func(*args, **kwargs)):
            return made
        with _disable_current_modes():
            return func(*args, **kwargs)


def counts(value: object) -> bool:
    """Whether it is a tensor of whole numbers, or a mask."""
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


class Lora(nn.Module):
    """What PEFT makes of a linear layer, as far as memory goes; PEFT itself cannot move fake tensors."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor, *args) -> Tensor:
        out = self.base(x)
        return (out + self.up(self.down(x.float())) * 1.0).to(out.dtype)


def count(backbone: Backbone, pixels: int, dtype: torch.dtype, targets: Iterable[str] = (), rank: int = 0) -> Kept:
    """Of one image of pixels x pixels; all weights trained, or with rank only a LoRA on the linear layers `targets`."""
    default = torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        try:
            torch.set_default_dtype(dtype)
            model = backbone.skeleton()
        finally:
            torch.set_default_dtype(default)
        if rank:
            model.requires_grad_(False)
            for name in targets:
                parent, _, child = name.rpartition(".")
                layer = model.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                setattr(model.get_submodule(parent), child, Lora(layer, rank))
        with Positions():
            return Counter(model.train())(backbone.inputs(model, pixels, dtype))


class Counter:
    """Counts what is saved for the backward, each storage once, by whether a block was running.

    Of blocks that are alike the first two run; the others keep what the second does, for the first may be the first to use
    what all of them share.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.blocks = list(blocks_of(model).values())
        self.held = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.seen: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice
        self.by_block: list[int] = []
        self.inputs: dict[int, torch.UntypedStorage] = {}
        self.repeated, self.out = 0, None  # bytes of blocks that did not run; what the last block gave

    def __call__(self, arguments: dict) -> Kept:
        hooks, forms = [], [form(block) for block in self.blocks]
        alike = [block for i, block in enumerate(self.blocks) if i > 1 and forms[i] == forms[i - 1] == forms[i - 2]]
        for block in alike:
            block.forward = self._again
        for block in self.blocks:
            hooks.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
            hooks.append(block.register_forward_hook(self._leave))
        with torch.autograd.graph.saved_tensors_hooks(self._save, lambda t: t):
            self.model(**arguments, return_dict=False)
        for hook in hooks:
            hook.remove()
        for block in alike:
            del block.forward
        whole = self._total()
        return Kept(whole, whole - sum(self.by_block), sum(s.nbytes() for s in self.inputs.values()), max(self.by_block))

    def _total(self) -> int:
        return sum(s.nbytes() for s in self.seen.values()) + self.repeated

    def _again(self, *args, **kwargs):
        """In place of the forward of a block that is like the one before it."""
        self.repeated += self.by_block[-1]
        return tree_map_only(Tensor, lambda t: torch.empty_like(t, requires_grad=t.requires_grad), self.out)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.held:
            self.seen[storage._cdata] = storage
        return tensor

    def _enter(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        self.before = self._total()
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(tensor, Tensor):
                    self.inputs[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

    def _leave(self, block: nn.Module, args: tuple, out: Any) -> None:
        self.by_block.append(self._total() - self.before)
        self.out = out


def form(block: nn.Module) -> list:
    """Equal for blocks that keep equally much."""
    return [type(block), *((name, p.shape, p.requires_grad) for name, p in block.named_parameters())]
