"""Distil all weights of a model:  python -m trainer.full --model digits   (all options: --help)"""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main("full"))
