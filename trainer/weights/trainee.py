"""What is trained, and how it is written: a LoRA (with or without a second embedder) or all weights.

A Trainee holds the backbone's model and names its trained tensors.  Teachers are the same model run with other values
for those tensors (torch.func.functional_call): no copy of the weights, no adapter left active by mistake.
"""

import math
import re
from collections.abc import Mapping

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from twinflow.objective import Velocity
from twinflow.weights import Provenance, WeightsError

from .. import TrainerError
from ..backbones import Backbone
from ..config import Config
from ..training import optimizers
from . import sharding
from .block_swap import BlockSwap, blocks
from .quantise import quantise

PREFIX = "diffusion_model."  # of the second embedder's names in an adapter file; ComfyUI's own
LORA = re.compile(r"(.*)\.lora_([AB])\.default\.weight")


class VelocityModel(nn.Module):
    """A backbone's model as v(x_t, t, r, cond), so that a distributed wrapper sees one forward.

    dtype: "bf16" computes in it, whatever the weights are stored in.
    """

    def __init__(self, backbone: Backbone, model: nn.Module, time: str, dtype: str = "fp32"):
        super().__init__()
        self.backbone, self.model, self.time, self.dtype = backbone, model, time, dtype
        self._no_split_modules = sorted({type(block).__name__ for block in blocks(model).values()})  # accelerate's FSDP units

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            return self.backbone.velocity(self.model, x, t, r, cond, time=self.time)


class With:
    """A network run with other values for some of its tensors; never with gradient."""

    def __init__(self, network: nn.Module, values: Mapping[str, Tensor]):
        live = sharding.parameters(network)
        self.network, self.sharded = network, sharding.is_sharded(network)
        self.values = {name: sharding.share(value, live[name]) for name, value in values.items()}
        self.dropouts = [m for m in network.modules() if isinstance(m, nn.Dropout)]

    @torch.no_grad()
    def __call__(self, x, t, r, cond):
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
    """A network with its LoRA switched off.  At r = t a second embedder says nothing, so this is the model as it was."""

    def __init__(self, network: nn.Module, *, at_t: bool):
        self.network, self.at_t = network, at_t
        self.layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]

    @torch.no_grad()
    def __call__(self, x, t, r, cond):
        if self.at_t:  # undo the folding: ask at t itself
            r = torch.zeros_like(r)
        try:
            for layer in self.layers:
                layer.enable_adapters(False)
            return self.network(x, t, r, cond)
        finally:  # also restores requires_grad, before any backward
            for layer in self.layers:
                layer.enable_adapters(True)


class Trainee:
    """model becomes trainable in place, as config.mode and config.time say.

    network: the VelocityModel.  tensors: its trained parameters by name, in a fixed order.
    """

    def __init__(self, backbone: Backbone, model: nn.Module, config: Config):
        self.backbone, self.config = backbone, config
        model.requires_grad_(False)
        if config.dtype == "bf16" and config.mode == "lora":
            nn.Module.to(model, torch.bfloat16)  # diffusers' own `to` warns of what it would keep in float32
        self.time = config.time if config.mode == "lora" else "two"
        second = backbone.second_embedder.install(model) if self.time == "two" else None
        if config.mode == "lora":
            targets = backbone.lora_targets(model, config.targets)
            quantise(model, config.quantize)
            add_lora(model, targets, config)
        else:
            model.requires_grad_(True)
            for name in backbone.idle(model):
                model.get_submodule(name).requires_grad_(False)
        if second is not None:
            second.requires_grad_(True)
        for p in model.parameters():
            if p.requires_grad:  # bf16 would swallow small updates
                p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
        if config.checkpointing:
            model.enable_gradient_checkpointing()
        self.network = VelocityModel(backbone, model, self.time, config.dtype)
        self.tensors = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.count = sum(p.numel() for p in self.network.parameters())
        if config.block_swap > (most := len(blocks(model))):
            raise TrainerError(f"--block-swap is {config.block_swap}; expected at most {most}, the blocks of {backbone.name}")
        self.swap = BlockSwap(model, config.block_swap) if config.block_swap else None
        self._base = None
        if config.mode == "full" and (config.guide == "base"):
            self._base = {name: p.detach().clone() for name, p in self.tensors.items()}

    def groups(self) -> list[dict]:
        """Optimiser groups: the second embedder, and muon's matrices, may learn at rates of their own."""
        config, second = self.config, f"model.{self.backbone.second_embedder.name}."
        groups = []
        for kind, names in optimizers.split(self.network, self.tensors, config.optimizer).items():
            rate = (config.matrix_lr or config.lr) if kind == "muon" else config.lr
            for own, names_of in (
                (False, [n for n in names if not n.startswith(second)]),
                (True, [n for n in names if n.startswith(second)]),
            ):
                peak = (config.embedder_lr or rate) if own else rate
                if names_of:
                    groups.append(dict(kind=kind, params=[self.tensors[n] for n in names_of], lr=peak, peak=peak))
        return groups

    def base(self) -> Velocity:
        """The frozen model that training started from, asked for its instantaneous velocity."""
        if self.config.mode == "full":
            return With(self.network, self._base)
        return WithoutLora(self.network, at_t=self.time == "fold" and self.config.base_time == "t")

    def complete(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These values of the trained tensors and, of all weights, those that are not trained, too."""
        return {**(self.network.state_dict() if self.config.mode == "full" else {}), **values}

    def file(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the weights file for these values of the trained tensors, under the file's names."""
        values = {name.removeprefix("model."): v for name, v in self.complete(values).items()}
        if self.config.mode == "full":
            return self.backbone.to_file(values)
        out, second, scale = {}, {}, lora_scale(self.config)
        for name, value in values.items():
            if match := LORA.fullmatch(name):
                module, half = match.groups()
                out[f"{self.backbone.prefix}{module}.lora_{half}.weight"] = value * scale if half == "B" else value
            else:
                second[name] = value
        return out | {PREFIX + name: value for name, value in self.backbone.to_file(second).items()}

    def provenance(self, step: int) -> Provenance:
        config = self.config
        rank = config.rank if config.mode == "lora" else None
        return Provenance(self.time, self.backbone.base_model, rank, self.backbone.sampling, step, config.hash())


def lora_scale(config: Config) -> float:
    alpha = config.rank if config.alpha is None else config.alpha
    return alpha / (math.sqrt(config.rank) if config.rslora else config.rank)


def add_lora(model: nn.Module, targets: list[str], config: Config) -> None:
    """PEFT's LoRA on exactly these modules, float32, B zero: the model still says what it said."""
    pattern = "|".join(re.escape(name) for name in targets)  # a list would also match by suffix
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=lora_scale(config) * config.rank,
        lora_dropout=config.dropout,
        target_modules=pattern,
    )
    peft.inject_adapter_in_model(settings, model)
    for name, p in model.named_parameters():
        if ".lora_" in name:
            p.data = p.data.float()


def load_adapter(backbone: Backbone, model: nn.Module, tensors: Mapping[str, Tensor], path) -> str:
    """Put an adapter file's tensors (as Trainee.file writes them) into a plain model, in place; returns its time rule.

    The LoRA is merged into the weights.  Raises WeightsError for a tensor that fits nowhere.
    """
    names = {name: name.removeprefix(backbone.prefix).removeprefix(PREFIX) for name in tensors}
    tensors = backbone.from_file({names[name]: t for name, t in tensors.items()})
    second = {n: t for n, t in tensors.items() if n.startswith(backbone.second_embedder.name + ".")}
    if second:
        backbone.second_embedder.install(model)
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in second.items():
            if name not in state or state[name].shape != value.shape:
                raise WeightsError(f"{path}: {name!r} {tuple(value.shape)} does not fit {backbone.name}")
            state[name].copy_(value)
        for name in [n for n in tensors if n.endswith(".lora_A.weight")]:
            module = name.removesuffix(".lora_A.weight")
            weight, up = state.get(module + ".weight"), tensors.get(module + ".lora_B.weight")
            if weight is None or up is None or weight.shape != (len(up), tensors[name].shape[1]):
                raise WeightsError(f"{path}: the LoRA of {module!r} does not fit {backbone.name}: it is of another model")
            weight.add_(up.to(weight) @ tensors[name].to(weight))
    return "two" if second else "fold"


def check_fits(tensors: Mapping[str, tuple[str, tuple[int, ...]]], model: nn.Module, path) -> None:
    """Raises TrainerError unless a file has exactly the model's tensors, in its shapes."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise TrainerError(
                f"{path}: has no {name!r}; expected a {type(model).__name__} of this size: it is of another model"
            )
        if tensors[name][1] != shape:
            raise TrainerError(f"{path}: {name!r} is {tensors[name][1]}; expected {shape}: it is of another size")
