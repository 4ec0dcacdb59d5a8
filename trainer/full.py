"""Distil all weights of a model:  python -m trainer.full --model digits   (all options: --help)"""

import sys

from .cli import main


def run() -> int:
    """Returns the exit code (see cli.main)."""
    return main("full")


if __name__ == "__main__":
    sys.exit(run())
