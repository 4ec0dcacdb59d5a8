"""Seconds of a training step by attention and with compiled blocks, on whatever this machine has.

    python benchmarks/attention_compile.py [--device cuda] [--attention sdpa,flash,xformers] [--width 512 --blocks 4 --side 32]

A LoRA with a second time embedder on a transformer of Qwen-Image's class, checkpointing on: one forward and backward.  An
attention that cannot be used here is a line.  The first step of a compiled model, which compiles, is printed apart.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer import TrainerError  # noqa: E402
from trainer.backbones import attention, backbone  # noqa: E402
from trainer.config.flat import from_flat  # noqa: E402
from trainer.weights.trainee import Trainee  # noqa: E402

TOKENS = 64


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--attention", default="sdpa,_native_math,flash,sage,xformers")
    for name, default in dict(width=512, blocks=4, side=32, batch=1, repeats=5).items():
        p.add_argument(f"--{name}", type=int, default=default)
    own = p.parse_args()
    torch.set_num_threads(1)
    device, known = torch.device(own.device), backbone("qwen-image")
    heads = dict(num_attention_heads=own.width // 128, attention_head_dim=128, joint_attention_dim=own.width)
    x, t = torch.randn(own.batch, 16, 2 * own.side, 2 * own.side, device=device), torch.full((own.batch,), 0.5, device=device)
    text = torch.randn(own.batch, TOKENS, own.width, device=device)
    cond = text, torch.ones(own.batch, TOKENS, dtype=torch.bool, device=device)
    print(f"{device}: {own.blocks} blocks of width {own.width}, {own.side**2} + {TOKENS} tokens, bf16, median of {own.repeats}")
    for name, compiled in [*((name, False) for name in own.attention.split(",")), ("sdpa", True)]:
        model = QwenImageTransformer2DModel(num_layers=own.blocks, **heads)
        try:
            attention.check(name, model, False, device)
        except TrainerError as error:
            print(error)
            continue
        made = Trainee(known, model, from_flat(dict(model="qwen-image", rank=8, attention=name, compile=compiled)))
        made.network.to(device)
        took = []
        for _ in range(own.repeats + 1):
            began = time.perf_counter()
            made.network(x, t, t / 2, cond).float().square().mean().backward()
            torch.cuda.synchronize() if device.type == "cuda" else None
            took.append(time.perf_counter() - began)
        print(f"{name}{', compiled' * compiled:10s} {statistics.median(took[1:]):7.3f} s a step, {took[0]:6.1f} s the first")


if __name__ == "__main__":
    main()
