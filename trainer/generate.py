"""Images from a run, or from any TwinFlow file:  python -m trainer.generate runs/digits-lora --steps 2   (see --help)"""

import argparse
import sys
from pathlib import Path

from . import TrainerError, console


def run() -> int:
    """Returns the exit code (see console.started)."""
    return console.started("trainer.generate", main)


def main(argv: list[str] | None = None) -> int:
    """python -m trainer.generate RUN: images from a run's files.  Exit code 0, or 2 for bad input."""
    return console.guarded(lambda: command(argv))


def command(argv: list[str] | None) -> None:
    asked = parser().parse_args(argv)
    if (asked.run is None) == (asked.model is None):
        found = "neither a run nor --model" if asked.run is None else f"a run ({asked.run}) and --model {asked.model}"
        raise TrainerError(f"{found} is given; expected a run's folder, or --model NAME with --weights FILE")
    for name in ("weights",) if asked.run else ("checkpoint",):
        if getattr(asked, name) is not None:
            raise TrainerError(f"--{name} is for {'--model NAME' if asked.run else 'a run'}; leave it out")
    from .runs.generation import draw, of_run  # only now: PyTorch and diffusers take seconds to import
    from .tools.given import of_weights

    draw(asked, of_run if asked.run else of_weights)


def parser() -> argparse.ArgumentParser:
    p = console.Parser(
        prog="python -m trainer.generate",
        description="Draw images with a run or a TwinFlow file: each as a PNG that holds its prompt and settings, and a grid.",
        epilog="""examples (the last one draws the plain model, to compare):
  python -m trainer.generate runs/digits-lora --prompts 3 7 --steps 2 --output digits.png
  python -m trainer.generate --model qwen-image --weights FILE --prompts "a cat" --steps 2 --size 1328x1328 --output cats/
  python -m trainer.generate --model qwen-image --prompts "a cat" --steps 32 --guidance 4
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", type=Path, nargs="?", help="the run's folder; else --model")
    p.add_argument("--model", metavar="NAME", help="the model, as trainer.lora's --model names it, to draw without a run")
    p.add_argument(
        "--weights", metavar="FILE", help="a TwinFlow checkpoint (.safetensors, one of its shards, their folder, GGUF), an "
        "adapter, a LoRA, or a plain model; here or at the hub (default: the plain model, to compare)",
    )  # fmt: skip
    p.add_argument(
        "--checkpoint", metavar="N", help="weights of step N, or last (default: the finished ones; of a run under way: last)"
    )
    p.add_argument(
        "--prompts", nargs="+", default=[], metavar="TEXT",
        help="what to draw (digits: 0 to 9; default: all), also with --w --h --d (seed) --s (steps) behind it; or files of "
        "prompts, as trainer.lora's --prompts takes them",
    )  # fmt: skip
    p.add_argument("--reference", nargs="+", type=Path, default=[], metavar="FILE", help="images to edit (edit models)")
    p.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="network evaluations: one of the file's recommended settings (default: the first), or any with --style",
    )
    p.add_argument(
        "--size", metavar="WxH", help="in pixels (default: a square of the resolution trained at, or as the first reference)"
    )
    p.add_argument("--each", type=int, metavar="N", help="images a prompt (default: 5 of a run, else 1)")
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of a prompt's first image; the others have the next (default: %(default)s)",
    )
    p.add_argument(
        "--output", default="generated.png", metavar="PATH",
        help="PNG of the grid, beside a folder of that name with the images; the image itself where there is one only; or a "
        "folder for all (default: %(default)s)",
    )  # fmt: skip
    own = p.add_argument_group("sampling, in place of the file's settings")
    own.add_argument("--style", choices=("few", "any", "multi"), help="where each step aims: at the data, at its end, nowhere")
    own.add_argument("--stochasticity", metavar="X", help="share of fresh noise in a step, from 0 to 1; or sde, sde-first")
    own.add_argument("--gaps", metavar="X,X", help="1 - the first time, and the last one before 0, such as 0.001,0.5")
    own.add_argument("--warp", metavar="X,X,X", help="a, b, c of the schedule's warp; 1,1,1 is none")
    own.add_argument("--order", type=int, choices=(1, 2), help="evaluations a step")
    own.add_argument("--extrapolation", type=float, metavar="X", help="moves estimates away from those of the step before")
    own.add_argument("--guidance", type=float, metavar="X", help="CFG scale, of a plain model (in others it is trained in)")
    add_memory(p)
    return p


def add_memory(p: argparse.ArgumentParser) -> None:
    more = p.add_argument_group("model and memory (see also trainer.lora --help)")
    more.add_argument("--source", metavar="PATH", help="the base that an adapter is put on (default: as published)")
    more.add_argument("--encoders", metavar="PATH", help="text encoder and VAE (default: those of --source, or as published)")
    more.add_argument("--encoders-device", metavar="DEVICE", help="where the text encoder computes: auto, stream, cpu, cuda:1")
    more.add_argument("--encoders-dtype", metavar="KIND", help="of the text encoder: bf16, fp32, int8, nf4")
    more.add_argument("--dtype", choices=("bf16", "fp32"), help="of the transformer (default: as its file has it)")
    more.add_argument("--quantize", metavar="KIND", help="its blocks in fewer bits: int8, fp8, fp8-cast, nf4")
    more.add_argument("--block-swap", type=int, metavar="N", help="blocks whose weights stay in host memory until needed")


if __name__ == "__main__":
    sys.exit(run())
