"""Latents from a trained network: the same sampler that the ComfyUI nodes use."""

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from twinflow import sampler
from twinflow.objective import Velocity
from twinflow.presets import Sampling
from twinflow.weights import Provenance, WeightsError, load, read_header

from . import TrainerError
from .backbones import Backbone, backbone
from .config import read_config
from .runs import drawing as report
from .weights.trainee import PREFIX, VelocityModel, load_adapter


def noise(rows: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Initial noise (rows, *shape); a row's noise depends on its number and the seed only."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + i)) for i in range(rows)])


@torch.no_grad()
def generate(
    velocity: Velocity, start: Tensor, cond: tuple[Tensor, ...], sampling: Sampling, *, seed: int = 0, chunk: int = 500
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
    if any(name.startswith((PREFIX, backbone.prefix)) for name in tensors):
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


def main(argv: list[str] | None = None) -> int:
    """python -m trainer.generate RUN: pictures from a finished run's files.  Exit code 0, or 2 for bad input."""
    p = argparse.ArgumentParser(
        prog="python -m trainer.generate",
        description="Draw pictures with a finished run, from its weights file.",
        epilog="python -m trainer.generate runs/digits-lora --prompts 3 7 --steps 2 --output digits.png",
    )
    p.add_argument("run", type=Path, help="the run's folder")
    p.add_argument("--prompts", nargs="+", default=[], metavar="TEXT", help="what to draw (digits: 0 to 9; default: all)")
    p.add_argument("--reference", nargs="+", type=Path, default=[], metavar="FILE", help="pictures to edit (edit models)")
    p.add_argument("--steps", type=int, help="network evaluations: one of the file's recommended settings (default: the first)")
    p.add_argument(
        "--size", metavar="WxH", help="in pixels (default: a square of the resolution trained at, or as the first reference)"
    )
    p.add_argument("--each", type=int, default=5, help="pictures a prompt (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the initial noise (default: %(default)s)")
    p.add_argument("--output", type=Path, default=Path("generated.png"), help="PNG to write (default: %(default)s)")
    try:
        draw(p.parse_args(argv))
    except (TrainerError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(args: argparse.Namespace) -> None:
    config = read_config(args.run)
    model, weights = backbone(config.model), args.run / f"{config.name}.safetensors"
    provenance = Provenance.from_metadata(read_header(weights).metadata)
    by_steps = {s.steps: s for s in provenance.sampler}
    steps = args.steps or next(iter(by_steps))
    if steps not in by_steps:
        raise TrainerError(f"--steps {steps}: {weights} recommends settings for {', '.join(map(str, by_steps))} steps")
    if args.each < 1:
        raise TrainerError(f"--each is {args.each}; expected 1 or more")
    size, device = size_of(args.size, config, model), Accelerator().device
    conditions = model.conditions(config, args.run, args.prompts, args.reference, device)
    network = load_trained(model, model.plain(config, args.run), weights).to(device)
    shape = model.shape(network.model, size)
    if args.reference and not args.size:  # as large as the picture that is edited
        shape = next(iter(conditions.values()))[-len(args.reference)].shape[1:]
    start = noise(len(conditions) * args.each, shape, args.seed).split(args.each)
    latents = []
    for x, cond in zip(start, tqdm(conditions.values(), desc="drawing", unit="prompt")):
        cond = tuple(c.expand(args.each, *c.shape[1:]) for c in cond)
        latents.append(generate(network, x.to(device), cond, by_steps[steps], seed=args.seed, chunk=model.chunk))
    del network
    made = model.pictures(config, latents, device)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report.grid({f"{config.name}, {steps} NFE": made}, args.output, least=64)
    print(f"drew {args.output}")


def size_of(text: str | None, config, model: Backbone) -> tuple[int, int]:
    """(height, width) of what --size says.  Raises TrainerError."""
    if text is None:
        return config.resolution, config.resolution
    width, by, height = text.partition("x")
    multiple = getattr(model, "pixels", 0)
    if not multiple:
        raise TrainerError(f"--size means nothing to {model.name}; leave it out")
    if (
        not (by and width.isdecimal() and height.isdecimal() and int(width) and int(height))
        or int(width) % multiple
        or int(height) % multiple
    ):
        raise TrainerError(f"--size is {text!r}; expected WIDTHxHEIGHT, both multiples of {multiple}, such as 1024x768")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
