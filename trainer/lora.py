"""Distil a model with a LoRA:  python -m trainer.lora --model digits   (all options: --help)"""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main("lora"))
