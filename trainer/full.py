"""Distil all weights of a model:  python -m trainer.full --model digits   (all options: --help)"""

import sys

from . import console


def run() -> int:
    """Returns the exit code (see console.started)."""
    return console.started("trainer.full", command)


def command() -> int:
    from .cli import main  # not before a first line is there, and Ctrl-C is answered with one

    return main("full")


if __name__ == "__main__":
    sys.exit(run())
