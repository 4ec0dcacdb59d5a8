"""Images from a run's files:  python -m trainer.generate runs/digits-lora --steps 2   (all options: --help)"""

import argparse
import sys
from pathlib import Path

from . import console


def run() -> int:
    """Returns the exit code (see console.started)."""
    return console.started("trainer.generate", main)


def main(argv: list[str] | None = None) -> int:
    """python -m trainer.generate RUN: images from a run's files.  Exit code 0, or 2 for bad input."""
    return console.guarded(lambda: command(argv))


def command(argv: list[str] | None) -> None:
    asked = parser().parse_args(argv)
    from .runs.generation import draw  # only now: PyTorch and diffusers take seconds to import

    draw(asked)


def parser() -> argparse.ArgumentParser:
    p = console.Parser(
        prog="python -m trainer.generate",
        description="Draw images with a run: each as a PNG that holds its prompt and settings, and a grid of all.",
        epilog="python -m trainer.generate runs/digits-lora --prompts 3 7 --steps 2 --output digits.png",
    )
    p.add_argument("run", type=Path, help="the run's folder")
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
        help="network evaluations: one of the file's recommended settings (default: the first)",
    )
    p.add_argument(
        "--size", metavar="WxH", help="in pixels (default: a square of the resolution trained at, or as the first reference)"
    )
    p.add_argument("--each", type=int, default=5, metavar="N", help="images a prompt (default: %(default)s)")
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
    return p


if __name__ == "__main__":
    sys.exit(run())
