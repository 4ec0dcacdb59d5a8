"""Train the base of a small model from nothing:  python -m trainer.base --model emoji   (all options: --help)"""

import sys

from .cli import main


def run() -> int:
    """Returns the exit code (see cli.main)."""
    return main("base")


if __name__ == "__main__":
    sys.exit(run())
