"""Images from a run's files:  python -m trainer.generate runs/digits-lora --steps 2   (all options: --help)"""

import argparse
import sys
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from twinflow.weights import Provenance, read_header

from . import TrainerError, console
from .backbones import Backbone, backbone
from .config import Settings, read_settings
from .runs import drawing, run_of
from .weights import files
from .weights.inference import generate, load_trained, noise


def main(argv: list[str] | None = None) -> int:
    """python -m trainer.generate RUN: images from a run's files.  Exit code 0, or 2 for bad input."""
    p = argparse.ArgumentParser(
        prog="python -m trainer.generate",
        description="Draw images with a run, from its weights file.",
        epilog="python -m trainer.generate runs/digits-lora --prompts 3 7 --steps 2 --output digits.png",
    )
    p.add_argument("run", type=Path, help="the run's folder")
    p.add_argument(
        "--checkpoint", metavar="N", help="weights of step N, or last (default: the finished ones; of a run under way: last)"
    )
    p.add_argument("--prompts", nargs="+", default=[], metavar="TEXT", help="what to draw (digits: 0 to 9; default: all)")
    p.add_argument("--reference", nargs="+", type=Path, default=[], metavar="FILE", help="images to edit (edit models)")
    p.add_argument("--steps", type=int, help="network evaluations: one of the file's recommended settings (default: the first)")
    p.add_argument(
        "--size", metavar="WxH", help="in pixels (default: a square of the resolution trained at, or as the first reference)"
    )
    p.add_argument("--each", type=int, default=5, help="images a prompt (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the initial noise (default: %(default)s)")
    p.add_argument("--output", type=Path, default=Path("generated.png"), help="PNG to write (default: %(default)s)")
    if argv is None:
        console.utf8()
    return console.guarded(lambda: draw(p.parse_args(argv)))


def draw(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise TrainerError(f"--output {args.output}: is a folder; expected a file, such as {args.output / 'generated.png'}")
    if not -(2**63) <= args.seed < 2**63:
        raise TrainerError(f"--seed is {args.seed}; expected a number of at most 63 bits")
    settings = read_settings(args.run)
    known, name = backbone(settings.model), settings.run.name
    kind, weights = run_of(known), chosen(args.run, name, args.checkpoint)
    provenance = Provenance.from_metadata(read_header(weights).metadata)
    if provenance is None:
        raise TrainerError(f"{weights}: has no twinflow metadata; expected a file that trainer.lora or trainer.full wrote")
    by_steps = {s.steps: s for s in provenance.sampler}
    steps = args.steps or next(iter(by_steps))
    if steps not in by_steps:
        raise TrainerError(f"--steps {steps}: {weights} recommends settings for {', '.join(map(str, by_steps))} steps")
    if args.each < 1:
        raise TrainerError(f"--each is {args.each}; expected 1 or more")
    size, device = size_of(args.size, settings, known), Accelerator().device
    conditions = kind.conditions(settings, args.run, args.prompts, args.reference, device)
    network = load_trained(known, kind.plain(settings, args.run), weights).to(device)
    shape = known.shape(network.model, size)
    if args.reference and not args.size:  # as large as the image that is edited
        shape = next(iter(conditions.values()))[-len(args.reference)].shape[1:]
    start = noise(len(conditions) * args.each, shape, args.seed).split(args.each)
    latents = []
    for x, cond in zip(start, tqdm(conditions.values(), desc="drawing", unit="prompt")):
        cond = tuple(c.expand(args.each, *c.shape[1:]) for c in cond)
        latents.append(generate(network, x.to(device), cond, by_steps[steps], seed=args.seed, chunk=known.chunk))
    del network
    made = kind.images(settings, latents, device)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    drawing.grid({f"{name}, {steps} NFE": made}, args.output, least=64)
    print(f"drew {args.output}")


def chosen(run: Path, name: str, checkpoint: str | None) -> Path:
    """The run's weights file that --checkpoint says.  Raises TrainerError."""
    final, steps = files.final(run, name), files.by_step(run, name)
    if checkpoint is None and final.exists():
        return final
    if not steps:
        if checkpoint == "last" and final.exists():
            return final
        asked = f"--checkpoint {checkpoint}" if checkpoint else str(final)
        raise TrainerError(f"{asked}: is not there; expected a run that was saved once: train for longer, or --save-every less")
    last = max(steps)
    if checkpoint is None:
        print(f"{run} is not finished; drawing from the weights of step {last}")
    step = last if checkpoint in (None, "last") else int(checkpoint) if checkpoint.isdecimal() else -1
    if step not in steps:
        raise TrainerError(f"--checkpoint is {checkpoint}; expected last, or a step among {', '.join(map(str, steps))}")
    return steps[step]


def size_of(text: str | None, settings: Settings, known: Backbone) -> tuple[int, int]:
    """(height, width) of what --size says.  Raises TrainerError."""
    if text is None:
        return settings.data.resolution, settings.data.resolution
    width, by, height = text.partition("x")
    multiple = known.pixels
    if "data" in known.unread:
        raise TrainerError(f"--size means nothing to {known.name}; leave it out")
    if (
        not (by and width.isdecimal() and height.isdecimal() and int(width) and int(height))
        or int(width) % multiple
        or int(height) % multiple
    ):
        raise TrainerError(f"--size is {text!r}; expected WIDTHxHEIGHT, both multiples of {multiple}, such as 1024x768")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
