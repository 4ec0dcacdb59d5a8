"""Recordings of models that the paper's code does not have, in the format of its own.

What the time embedder of diffusers' unmodified class gives is replaced by E(t) + (t - r) E_r(r), written out; the one sample is
two steps of the few-step sampler, written out likewise.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor

COMBOS = {
    "pair0": ([0.999, 0.999], [0.0, 0.0]),
    "pair4": ([0.0, 0.0], [0.0, 0.0]),
    "pair5": ([0.75, 0.75], [0.75, 0.75]),
    "pair12": ([-0.3, -0.3], [-0.3, -0.3]),
    "pair16": ([0.9, 0.3], [0.2, 0.3]),
    "lora0": ([0.999, 0.999], [0.0, 0.0]),
    "lora16": ([0.9, 0.3], [0.2, 0.3]),
}
TIMES = (0.999, 0.6, 0.0)  # of two steps with gaps of 0.001 and 0.6


@torch.no_grad()
def write(
    folder: Path,
    name: str,
    config: dict,
    weights: dict[str, Tensor],
    tensors: dict[str, Tensor],
    embedded: Callable[[Tensor, bool], Tensor],
    forward: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    """tensors: x, noise_bank and conditions.  embedded(time, second): of a time embedder.  forward(x, t, embedding)."""
    tensors, combos = dict(tensors), {}

    def both(t: Tensor, r: Tensor) -> Tensor:
        there = embedded(r, True)
        return embedded(t, False) + (t - r).view(-1, *[1] * (there.ndim - 1)) * there

    for tag, (t, r) in COMBOS.items():
        t, r, folded = torch.tensor(t), torch.tensor(r), tag.startswith("lora")
        temb = embedded(t - r / 2, False) if folded else both(t, r)
        tensors |= {f"{tag}/temb": temb, f"{tag}/out": forward(tensors["x"], t, temb)}
        combos[tag] = dict(t=t.tolist(), tt=r.tolist(), lora=folded)
    at, samples = tensors["x"], [tensors["x"]]
    for i, (t, following) in enumerate(zip(TIMES, TIMES[1:], strict=False)):
        time = torch.full((len(at),), t)
        data = at - t * forward(at, time, both(time, 0 * time))
        samples.append(data)
        at = (1 - following) * data + following * tensors["noise_bank"][i]
    case = dict(
        api="twinflow", style="few", sampling_order=1, extrapol_ratio=0.0, time_dist_ctrl=[1.0, 1.0, 1.0], sampling_steps=2,
        stochast_ratio=1.0, rfba_gap_steps=[0.001, 0.6],
    )  # fmt: skip
    sample = "sample/few2_gap0.6/float32"
    tensors[f"{sample}/samples"] = torch.stack(samples)
    by = Path(sys.argv[0]).name
    about = dict(config=config, diffusers=diffusers.__version__, by=by, combos=combos, samples={sample: case})
    (folder / f"{name}.json").write_text(json.dumps(about))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"{name}.safetensors")
    save_file({name: p.bfloat16().contiguous() for name, p in weights.items()}, folder / f"{name}_weights.safetensors")
