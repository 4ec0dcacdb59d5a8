"""Record FLUX.2 klein, which the paper's code does not have, in the format of its recordings.

    python tests/goldens/record_flux2.py tests/goldens/data

diffusers' unmodified class, tiny and random, in float32.  What its time embedder gives is replaced by E(t) + (t - r) E_r(r),
written out here; its one sample is two steps of the few-step sampler, written out likewise.
"""

import json
import math
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

CONFIG = dict(
    in_channels=128, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
    axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
)  # fmt: skip
TOKENS, SIDE = 512, 4
COMBOS = {
    "pair0": ([0.999, 0.999], [0.0, 0.0]),
    "pair4": ([0.0, 0.0], [0.0, 0.0]),
    "pair5": ([0.75, 0.75], [0.75, 0.75]),
    "pair12": ([-0.3, -0.3], [-0.3, -0.3]),
    "pair16": ([0.9, 0.3], [0.2, 0.3]),
    "lora0": ([0.999, 0.999], [0.0, 0.0]),
    "lora16": ([0.9, 0.3], [0.2, 0.3]),
}
FIRST, SECOND = "time_guidance_embed.timestep_embedder.linear_{}.weight", "time_guidance_embed_2.linear_{}.weight"
TIMES = (0.999, 0.6, 0.0)  # of two steps with gaps of 0.001 and 0.6


def embedded(weights, key, t):
    """The time embedder of these weights at t (B,)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128) / 128)  # rounded as the class does: 1000 t makes 1e-7 visible
    angles = 1000 * t[:, None] * frequencies
    hidden = F.silu(torch.cat([angles.cos(), angles.sin()], 1) @ weights[key.format(1)].T)
    return hidden @ weights[key.format(2)].T


@torch.no_grad()
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
    tensors, combos = dict(x=x, noise_bank=noise, c0=embeds, c1=torch.ones(2, TOKENS)), {}

    def forward(x, t, temb):
        hook = model.time_guidance_embed.register_forward_hook(lambda *_: temb)
        out = model(x.flatten(2).mT, embeds, t, ids, words, return_dict=False)[0]
        hook.remove()
        return out.mT.reshape(x.shape)

    for tag, (t, r) in COMBOS.items():
        t, r, folded = torch.tensor(t), torch.tensor(r), tag.startswith("lora")
        temb = embedded(exact, FIRST, t - r / 2 if folded else t)
        if not folded:
            temb = temb + (t - r)[:, None] * embedded(exact, SECOND, r)
        tensors |= {f"{tag}/temb": temb, f"{tag}/out": forward(x, t, temb)}
        combos[tag] = dict(t=t.tolist(), tt=r.tolist(), lora=folded)
    at, samples = x, [x]
    for i, (t, following) in enumerate(zip(TIMES, TIMES[1:], strict=False)):
        temb = embedded(exact, FIRST, torch.full((2,), t))
        temb = temb + t * embedded(exact, SECOND, torch.zeros(2))
        data = at - t * forward(at, torch.full((2,), t), temb)
        samples.append(data)
        at = (1 - following) * data + following * noise[i]
    case = dict(
        api="twinflow", style="few", sampling_order=1, extrapol_ratio=0.0, time_dist_ctrl=[1.0, 1.0, 1.0], sampling_steps=2,
        stochast_ratio=1.0, rfba_gap_steps=[0.001, 0.6],
    )  # fmt: skip
    name = "sample/few2_gap0.6/float32"
    tensors[f"{name}/samples"] = torch.stack(samples)
    about = dict(config=CONFIG, diffusers=diffusers.__version__, by="record_flux2.py", combos=combos, samples={name: case})
    (folder / "flux2.json").write_text(json.dumps(about))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "flux2.safetensors")
    save_file({name: p.bfloat16().contiguous() for name, p in weights.items()}, folder / "flux2_weights.safetensors")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
