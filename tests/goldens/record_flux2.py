"""Record FLUX.2 klein, tiny and random, in float32 (see by_hand).

python tests/goldens/record_flux2.py tests/goldens/data
"""

import math
import sys
from pathlib import Path

import by_hand
import diffusers
import torch
from torch.nn import functional as F

CONFIG = dict(
    in_channels=128, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
    axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
)  # fmt: skip
TOKENS, SIDE = 512, 4
FIRST, SECOND = "time_guidance_embed.timestep_embedder.linear_{}.weight", "time_guidance_embed_2.linear_{}.weight"


def embedded(weights, key, t):
    """The time embedder of these weights at t (B,)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128) / 128)  # rounded as the class does: 1000 t makes 1e-7 visible
    angles = 1000 * t[:, None] * frequencies
    hidden = F.silu(torch.cat([angles.cos(), angles.sin()], 1) @ weights[key.format(1)].T)
    return hidden @ weights[key.format(2)].T


def record(folder: Path) -> None:
    torch.manual_seed(0)
    model = diffusers.Flux2Transformer2DModel(**CONFIG).eval()
    weights = {}
    for name, p in model.state_dict().items():
        spread = 0.1 if p.ndim == 1 else 1 / p.shape[-1] ** 0.5
        weights[name] = ((p.ndim == 1) + torch.randn_like(p) * spread).bfloat16()
    weights |= {
        SECOND.format(i): torch.randn_like(weights[FIRST.format(i)]) / weights[FIRST.format(i)].shape[1] ** 0.5 for i in (1, 2)
    }
    exact = {name: p.float() for name, p in weights.items()}
    model.load_state_dict({name: p for name, p in exact.items() if not name.startswith("time_guidance_embed_2")})
    x, noise = torch.randn(2, 128, SIDE, SIDE), torch.randn(2, 2, 128, SIDE, SIDE)
    embeds = torch.randn(2, TOKENS, CONFIG["joint_attention_dim"])
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(SIDE * 1.0), torch.arange(SIDE * 1.0), torch.zeros(1))
    words = torch.cartesian_prod(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.arange(TOKENS * 1.0))

    def forward(x, t, temb):
        hook = model.time_guidance_embed.register_forward_hook(lambda *_: temb)
        out = model(x.flatten(2).mT, embeds, t, ids, words, return_dict=False)[0]
        hook.remove()
        return out.mT.reshape(x.shape)

    tensors = dict(x=x, noise_bank=noise, c0=embeds, c1=torch.ones(2, TOKENS))
    ours = lambda t, second: embedded(exact, SECOND if second else FIRST, t)
    by_hand.write(folder, "flux2", CONFIG, weights, tensors, ours, forward)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
