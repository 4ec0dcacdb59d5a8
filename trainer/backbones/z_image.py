"""Z-Image: the velocity of diffusers' own ZImageTransformer2DModel, unmodified.

It counts time towards the data and predicts data - noise, so time is turned round on the way in and the sign on the way
out.  cond is (embeds (B, L, D), mask (B, L) bool).
"""

import torch
from torch import Tensor

from twinflow.time_embedding import fold, stack, to_signal


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two") -> Tensor:
    """v (B, C, H, W) from t to r, both (B,) and 1 at the noise, in the model's dtype.  H and W are even.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any Z-Image, as a classic LoRA wants.
    """
    embeds, mask = cond
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.x_pad_token.dtype  # never quantised, never under a LoRA
    # float64: the model scales the times by 1000 before the embedder takes their difference
    times = stack(to_signal(t).double(), to_signal(r).double()) if time == "two" else to_signal(fold(t, r))
    out = model(
        x=list(x.to(dtype).unsqueeze(2)),
        t=times,
        cap_feats=[e[m] for e, m in zip(embeds.to(dtype), mask.bool(), strict=True)],
        return_dict=False,
    )[0]
    return -torch.stack(list(out)).squeeze(2)
