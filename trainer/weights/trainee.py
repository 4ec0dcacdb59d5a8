"""What is trained: a backbone's model as a velocity, with the tensors of it that change and how they are written to a file."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.objective import Condition, Velocity
from twinflow.time_embedding import fold
from twinflow.weights import Provenance

from .. import TrainerError
from ..backbones import Backbone, attention
from ..backbones.sources import in_dtype
from ..config.settings import Settings
from ..tensors import deferred, sharding
from . import lora
from .block_swap import BlockSwap, blocks_of
from .compiling import compile_blocks
from .quantise import quantise
from .teachers import WithoutLora, WithWeights


class VelocityModel(nn.Module):
    """A backbone's model as v(x_t, t, r, cond), so that a distributed wrapper sees one forward.

    time: "two" (its second time embedder) or "fold" (t - r / 2).  dtype: "bf16" computes in it, whatever the weights' is.
    """

    def __init__(self, backbone: Backbone, model: nn.Module, time: str, dtype: str = "fp32"):
        super().__init__()
        self.backbone, self.model, self.time, self.dtype = backbone, model, time, dtype
        # accelerate's FSDP units
        self._no_split_modules = sorted({type(block).__name__ for block in blocks_of(model).values()})

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            if self.time == "fold":
                return self.backbone.velocity(self.model, x, fold(t, r), cond)
            embedder = self.backbone.core.time.of(self.model)
            return embedder.at(t, r, self.backbone.velocity, self.model, x, t, cond)


class Plain:
    """A plain model (one time embedder, not distilled) as a Velocity: the instantaneous one, whatever r."""

    def __init__(self, backbone: Backbone, model: nn.Module):
        self.network, self.model = VelocityModel(backbone, model, "fold"), model

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        return self.network(x, t, torch.zeros_like(t), cond)


class Trainee:
    """model becomes trainable in place, as the settings' mode and time say.

    network: the VelocityModel.  tensors: its trained parameters by name, in a fixed order.  Raises TrainerError.
    """

    def __init__(self, backbone: Backbone, model: nn.Module, settings: Settings):
        self.backbone, self.settings = backbone, settings
        adapter, memory, is_lora = settings.adapter, settings.memory, settings.mode == "lora"
        model.requires_grad_(False)
        if memory.dtype == "bf16" and is_lora:
            in_dtype(model, torch.bfloat16)
        self.time = adapter.time if is_lora else "two"
        second = second_of(backbone, model) if self.time == "two" else None
        if is_lora:
            targets = backbone.lora_targets(model, adapter.targets)
            quantise(model, memory.quantize)
            lora.add(model, targets, adapter)
        else:
            model.requires_grad_(True)
            for name in backbone.idle(model):
                model.get_submodule(name).requires_grad_(False)
        if second is not None:
            second.requires_grad_(True)
        for p in model.parameters():
            if p.requires_grad:  # bf16 would swallow small updates
                p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
        if memory.checkpointing:
            checkpointed: Any = model
            checkpointed.enable_gradient_checkpointing()
        attention.use(model, memory.attention)
        if memory.compile:
            compile_blocks(model)
        self.network = VelocityModel(backbone, model, self.time, memory.dtype)
        self.tensors = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.count = sum(p.numel() for p in self.network.parameters())
        if memory.block_swap > (most := len(blocks_of(model))):
            raise TrainerError(f"--block-swap is {memory.block_swap}; expected at most {most}, the blocks of {backbone.name}")
        self.copy: WithWeights | None = None  # of all weights as they were, where a guide needs it
        self.swap = BlockSwap(model, memory.block_swap) if memory.block_swap else None
        self.init = ""  # what training started from, for the file's metadata

    @property
    def second(self) -> str:
        """What the names of the second time embedder's tensors begin with."""
        return f"model.{self.backbone.core.time.name}."

    def base(self) -> Velocity:
        """The frozen model that training starts from, for its instantaneous velocity; asked for before anything is trained."""
        if self.settings.mode == "full":  # a copy, sharded where the weights are by now
            live = sharding.parameters(self.network)
            self.copy = WithWeights(self.network, {name: live[name].detach().clone() for name in self.tensors})
            return self.copy
        return WithoutLora(self.network, at_t=self.time == "fold" and self.settings.guidance.base_time == "t")

    def before(self, step: int) -> Velocity | None:
        """The model as it was before training, for its instantaneous velocity (r = t); None where that is gone at this step."""
        if self.settings.mode == "lora":
            return WithoutLora(self.network, at_t=self.time == "fold")
        return self.copy or (WithWeights(self.network, {}) if step == 0 else None)

    def complete(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These values of the trained tensors and, of all weights, those that are not trained, too."""
        return {**(self.network.state_dict() if self.settings.mode == "full" else {}), **values}

    def file(self, values: Mapping[str, Tensor], wrap: Callable[[Tensor], Any] = lambda t: t) -> dict[str, Any]:
        """The tensors of the weights file for these values of the trained tensors, under the file's names.

        wrap: Deferred.of, where they are to be made later, one by one.
        """
        own = {name.removeprefix("model."): wrap(v) for name, v in self.complete(values).items()}
        if self.settings.mode == "full":
            return self.backbone.to_file(own)
        return lora.to_file(self.backbone, own, lora.scale(self.settings.adapter))

    def provenance(self, step: int) -> Provenance:
        settings, core = self.settings, self.backbone.core
        rank = settings.adapter.rank if settings.mode == "lora" else None
        return Provenance(
            self.time, core.name, rank, self.backbone.sampling, step, settings.hash(), init=self.init,
            license=self.backbone.license, trigger=settings.data.trigger.strip(),
        )  # fmt: skip


def second_of(backbone: Backbone, model: nn.Module) -> nn.Module:
    """The model's second time embedder, a new one where it has none."""
    time = backbone.core.time
    if time.installed(model):
        return model.get_submodule(time.name)
    deferred.fill(model.get_submodule(time.embedder))  # of which the new one is a copy
    return time.install(model)
