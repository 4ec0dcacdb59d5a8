"""Train the base of a small model from nothing:  python -m trainer.base --model emoji   (all options: --help)"""

import sys

from . import console


def run() -> int:
    """Returns the exit code (see console.started)."""
    return console.started("trainer.base", command)


def command() -> int:
    from .cli import main  # not before a first line is there, and Ctrl-C is answered with one

    return main("base")


if __name__ == "__main__":
    sys.exit(run())
