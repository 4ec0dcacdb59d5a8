"""Latents from a trained network, with the sampler that the ComfyUI nodes use, and networks from files."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinflow import sampler
from twinflow.objective import Condition, Velocity
from twinflow.presets import Sampling
from twinflow.weights import Provenance, WeightsError, load, read_header

from .. import TrainerError
from ..backbones import Backbone
from . import lora
from .block_swap import BlockSwap, blocks_of
from .quantise import quantise
from .trainee import VelocityModel


def noise(rows: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Initial noise (rows, *shape); a row's noise depends on its number and the seed only."""
    numbers = [seed * 1_000_003 + i for i in range(rows)]
    numbers = [n if -(2**63) <= n < 2**64 else n % 2**63 for n in numbers]  # as large as PyTorch takes them
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n in numbers])


@torch.no_grad()
def generate(
    velocity: Velocity, start: Tensor, cond: Condition, sampling: Sampling, *, seed: int = 0, chunk: int = 500
) -> Tensor:
    """Latents (B, ...) from the noise `start` (B, ...), under cond with the batch first; chunk: rows at once."""
    generator, times, out = torch.Generator().manual_seed(seed), sampling.times(), []
    for first in range(0, len(start), chunk):
        part = slice(first, first + chunk)
        c = tuple(tensor[part].to(start.device) for tensor in cond)
        out.append(
            sampler.sample(
                lambda x, t, r, c=c: velocity(x, t, r, c),
                start[part],
                times,
                noise_like=lambda x: torch.randn(x.shape, generator=generator),
                **sampling.options(),
            )
        )
    return torch.cat(out)


class Guided:
    """A Velocity under classifier-free guidance: v(empty) + scale (v(cond) - v(empty)).

    empty: the unconditional condition, of one row.
    """

    def __init__(self, velocity: Velocity, empty: Condition, scale: float):
        self.velocity, self.empty, self.scale = velocity, empty, scale

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        made = self.velocity(x, t, r, cond)
        if self.scale == 1:
            return made
        empty = self.velocity(x, t, r, tuple(c.to(x.device).expand(len(x), *c.shape[1:]) for c in self.empty))
        return empty + self.scale * (made - empty)


def ready(network: Any, quantize: str, swap: int, device: torch.device, name: str) -> Any:
    """A Velocity of weights that are merged, on the device, its blocks in fewer bits or partly in host memory.

    Raises TrainerError.
    """
    model: nn.Module = network.model
    model.requires_grad_(False)
    if swap > (most := len(blocks_of(model))):
        raise TrainerError(f"--block-swap is {swap}; expected at most {most}, the blocks of {name}")
    quantise(model, quantize)
    if swap:
        BlockSwap(model, swap)
    model.to(device)
    return network


def load_trained(backbone: Backbone, model: nn.Module, path: str | Path) -> VelocityModel:
    """A network from the plain model (changed in place) and a file of ours: an adapter, or full weights."""
    header = read_header(path)
    provenance = Provenance.from_metadata(header.metadata)
    if provenance is None or provenance.base_model != backbone.core.name:
        found = "none" if provenance is None else repr(provenance.base_model)
        raise WeightsError(
            f"{path}: its base model is {found}; expected a file that trainer.lora or trainer.full wrote for {backbone.name}"
        )
    tensors = load(path)
    if any(name.startswith((lora.PREFIX, backbone.prefix)) for name in tensors):
        return VelocityModel(backbone, model, lora.merge(backbone, model, tensors, path))
    if not backbone.core.time.installed(model):
        backbone.core.time.install(model)
    model.load_state_dict(backbone.from_file(tensors))
    return VelocityModel(backbone, model, "two")
