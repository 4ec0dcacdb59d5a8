"""Distil a model with a LoRA:  python -m trainer.lora --model digits   (all options: --help)"""

import sys

from .cli import main


def run() -> int:
    """Returns the exit code (see cli.main)."""
    return main("lora")


if __name__ == "__main__":
    sys.exit(run())
