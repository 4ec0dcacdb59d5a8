"""Latents from a trained network: the same sampler that the ComfyUI nodes use."""

import torch
from torch import Tensor, nn

from twinflow import sampler
from twinflow.objective import Velocity
from twinflow.presets import Sampling
from twinflow.weights import Provenance, WeightsError, load, read_header

from .adapters import PREFIX, VelocityModel, load_adapter
from .backbones import Backbone

CHUNK = 500  # rows sampled at once


def noise(rows: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Initial noise (rows, *shape); a row's noise depends on its number and the seed only."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + i)) for i in range(rows)])


@torch.no_grad()
def generate(velocity: Velocity, start: Tensor, cond: tuple[Tensor, ...], sampling: Sampling, *, seed: int = 0) -> Tensor:
    """Latents (B, ...) from the noise `start` (B, ...), under cond with the batch first."""
    generator, times, out = torch.Generator().manual_seed(seed), sampling.times(), []
    for first in range(0, len(start), CHUNK):
        part = slice(first, first + CHUNK)
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


def load_trained(backbone: Backbone, model: nn.Module, path) -> VelocityModel:
    """A network from the plain model (changed in place) and a file of ours: an adapter, or full weights."""
    header = read_header(path)
    provenance = Provenance.from_metadata(header.metadata)
    if provenance is None or provenance.base_model != backbone.base_model:
        found = "none" if provenance is None else repr(provenance.base_model)
        raise WeightsError(
            f"{path}: its base model is {found}; expected a file that trainer.lora or trainer.full wrote for {backbone.name}"
        )
    tensors = load(path)
    if any(name.startswith(PREFIX) for name in tensors):
        return VelocityModel(backbone, model, load_adapter(backbone, model, tensors, path))
    backbone.second_embedder.install(model)
    model.load_state_dict(backbone.from_file(tensors))
    return VelocityModel(backbone, model, "two")


class Plain:
    """A plain model (one time embedder, nothing distilled) as a Velocity: the instantaneous one, whatever r."""

    def __init__(self, backbone: Backbone, model: nn.Module):
        self.network = VelocityModel(backbone, model, "fold")

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, cond) -> Tensor:
        return self.network(x, t, torch.zeros_like(t), cond)
