"""Record Krea 2, tiny and random, in float32 (see by_hand).

    python tests/goldens/record_krea2.py tests/goldens/data

Feed-forwards are as wide as ComfyUI's class makes them: two thirds of the model's width, times 4, up to the next 128.
"""

import math
import sys
from pathlib import Path

import by_hand
import diffusers
import torch
from torch.nn import functional as F

CONFIG = dict(
    in_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=128,
    text_hidden_dim=16, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=128,
    axes_dims_rope=[4, 6, 6],
)  # fmt: skip
TOKENS, SIDE, TAPS = 5, 4, 12


def record(folder: Path) -> None:
    torch.manual_seed(0)
    model = diffusers.Krea2Transformer2DModel(**CONFIG).eval()
    weights = {}
    for name, p in model.state_dict().items():
        weights[name] = (torch.randn_like(p) * (0.1 if p.ndim == 1 else 1 / p.shape[-1] ** 0.5)).bfloat16()
    first = {name: p for name, p in weights.items() if name.startswith("time_embed.")}
    for name, p in first.items():
        spread = 0.1 if p.ndim == 1 else 1 / p.shape[-1] ** 0.5
        weights[name.replace("time_embed", "time_embed_2")] = (torch.randn_like(p) * spread).bfloat16()
    exact = {name: p.float() for name, p in weights.items()}
    model.load_state_dict({name: p for name, p in exact.items() if not name.startswith("time_embed_2.")})
    x, noise = torch.randn(2, 16, 2 * SIDE, 2 * SIDE), torch.randn(2, 2, 16, 2 * SIDE, 2 * SIDE)
    embeds = torch.randn(2, TOKENS, TAPS * CONFIG["text_hidden_dim"])
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(SIDE * 1.0), torch.arange(SIDE * 1.0))
    positions = torch.cat([torch.zeros(TOKENS, 3), grid])

    def embedded(t, second):
        layer = lambda x, i: F.linear(x, *(exact[f"time_embed{'_2' * second}.linear_{i}.{end}"] for end in ("weight", "bias")))
        frequencies = torch.exp(-math.log(1e4) * torch.arange(128, dtype=torch.float32) / 128)  # rounded as the class does
        angles = 1000 * t[:, None, None] * frequencies
        return layer(F.gelu(layer(torch.cat([angles.cos(), angles.sin()], -1), 1), approximate="tanh"), 2)

    def forward(x, t, temb):
        hook = model.time_embed.register_forward_hook(lambda *_: temb)
        patches = F.pixel_unshuffle(x, 2).flatten(2).mT  # of 2 x 2, channels outermost
        out = model(patches, embeds.unflatten(-1, (TAPS, -1)), t, positions, return_dict=False)[0]
        hook.remove()
        return F.pixel_shuffle(out.mT.unflatten(-1, (SIDE, SIDE)), 2)

    tensors = dict(x=x, noise_bank=noise, c0=embeds, c1=torch.ones(2, TOKENS))
    by_hand.write(folder, "krea2", CONFIG, weights, tensors, embedded, forward)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
