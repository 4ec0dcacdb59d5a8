"""Record Qwen-Image-2.1, tiny and random, in float32 (see by_hand).

    python tests/goldens/record_qwen21.py tests/goldens/data

The row of time 0 that the class puts behind those of the batch, for the text, gets E(0) alone.
"""

import math
import sys
from pathlib import Path

import by_hand
import diffusers
import torch
from torch.nn import functional as F

CONFIG = dict(
    in_channels=64, out_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=24,
    axes_dims_rope=[4, 6, 6],
)  # fmt: skip
TOKENS, SIDE = 5, 4
FIRST = "time_text_embed."


def record(folder: Path) -> None:
    torch.manual_seed(0)
    model = diffusers.QwenImage21Transformer2DModel(**CONFIG).eval()
    drawn = lambda p: (torch.randn_like(p) * (0.1 if p.ndim == 1 else 1 / p.shape[-1] ** 0.5)).bfloat16()
    weights = {name: drawn(p) + name.endswith(("norm_q.weight", "norm_k.weight")) for name, p in model.state_dict().items()}
    weights["modulation.1.weight"] /= 4  # or bfloat16 alone is a tenth away
    weights |= {name.replace(FIRST, "time_text_embed_2."): drawn(p) for name, p in weights.items() if name.startswith(FIRST)}
    exact = {name: p.float() for name, p in weights.items()}
    model.load_state_dict({name: p for name, p in exact.items() if not name.startswith("time_text_embed_2.")})
    x, noise = torch.randn(2, 64, SIDE, SIDE), torch.randn(2, 2, 64, SIDE, SIDE)
    embeds = torch.randn(2, TOKENS, CONFIG["context_in_dim"])
    slots = torch.tensor([False] * TOKENS + [True] * (SIDE**2 // 4)).expand(2, -1)

    def embedded(t, second):
        frequencies = torch.exp(-math.log(1e4) * torch.arange(128, dtype=torch.float32) / 128)
        angles = 1000 * t[:, None] * frequencies
        one, two = (exact[f"time_text_embed{'_2' * second}.timestep_embedder.linear_{i}.weight"] for i in (1, 2))
        return F.silu(torch.cat([angles.cos(), angles.sin()], -1) @ one.T) @ two.T

    def forward(x, t, temb):
        whole = torch.cat([temb, embedded(torch.zeros(1), False)])
        hook = model.time_text_embed.register_forward_hook(lambda *_: whole)
        shapes = [[(1, SIDE, SIDE)]] * len(x)
        out = model(x.flatten(2).mT, embeds, t, shapes, slots, return_dict=False)[0]
        hook.remove()
        return out[:, TOKENS:].mT.unflatten(2, (SIDE, SIDE))

    tensors = dict(x=x, noise_bank=noise, c0=embeds, c1=torch.ones(2, TOKENS))
    by_hand.write(folder, "qwen21", CONFIG, weights, tensors, embedded, forward)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
