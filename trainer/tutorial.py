"""Three objectives from one base, side by side:  python -m trainer.tutorial   (minutes on any CPU; all options: --help)

A small base is trained on handwritten digits, from nothing, and distilled for equally many steps by flow matching, by RCGM
(consistency alone) and by TwinFlow (consistency and the twin).  The picture shows what one and two steps of each draw from
the same noise, as the paper's own tutorial does.
"""

import argparse
import sys
from pathlib import Path

from . import console

OBJECTIVES = {"flow-matching": "flow matching", "rcgm": "RCGM", "twinflow": "TwinFlow"}
SHOWN = 1, 2  # NFE
ACROSS = 4


def run() -> int:
    """Returns the exit code (see console.started)."""
    return console.started("trainer.tutorial", main)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code (see console.guarded)."""
    return console.guarded(lambda: tutorial(parser().parse_args(argv)))


def parser() -> argparse.ArgumentParser:
    parser = console.Parser(
        prog="python -m trainer.tutorial", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="PATH", help="folder of the runs [runs]")
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="optimiser steps of each objective [500]")
    parser.add_argument("--base-steps", type=int, default=1500, metavar="N", help="those of the base, which is kept [1500]")
    parser.add_argument("--evaluate", type=int, default=1000, metavar="N", help="samples for each line of the tables [1000]")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads [1]")
    return parser


def tutorial(asked: argparse.Namespace) -> None:
    from .config.resolving import resolve
    from .runs.run import run  # only now: diffusers and peft take seconds to import

    folders = {}
    for number, (preset, title) in enumerate(OBJECTIVES.items(), 1):
        settings = resolve(
            "full",
            dict(
                model="digits", name=f"tutorial-{preset}", out=asked.out, preset=preset, guidance=1.0, ema=0.0,
                steps=asked.steps, base_steps=asked.base_steps, evaluate=asked.evaluate, threads=asked.threads,
            ),
            notify=lambda line: None,
        )  # fmt: skip
        print(f"== {number} of {len(OBJECTIVES)}: {title}")
        run(settings)
        folders[title] = settings.folder
    path = asked.out / "tutorial.png"
    picture(folders, path)
    print(f"drew {path}: {', '.join(f'{n} NFE' for n in SHOWN)} of each, from the same noise")


def picture(folders: dict[str, Path], path: Path) -> None:
    """Rows by digit, columns by objective and NFE, the base at many steps last; from the samples that the runs judged."""
    from twinflow.weights import load

    from .runs import drawing
    from .runs.quality import COLUMNS

    def rows(folder: Path, stage: str, nfe: int) -> list:
        kept = load(folder / f"samples_{stage}_{nfe}nfe.safetensors")
        return [kept["images"][kept["labels"] == digit][:ACROSS] for digit in kept["labels"].unique()]

    columns = {f"{title}, {n} NFE": rows(folder, "distilled", n) for title, folder in folders.items() for n in SHOWN}
    stage, nfe = COLUMNS[-1]
    columns[f"{stage}, {nfe} NFE"] = rows(next(iter(folders.values())), stage, nfe)
    drawing.grid(columns, path)


if __name__ == "__main__":
    sys.exit(run())
