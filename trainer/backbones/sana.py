"""SANA: the velocity of diffusers' own SanaTransformer2DModel, unmodified.

It hears the noise time times 1000.  cond is (embeds (B, L, D), mask (B, L) bool).
"""

from torch import Tensor

from twinflow.time_embedding import fold, stack


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two") -> Tensor:
    """v (B, C, H, W) from t to r, both (B,), in the model's dtype.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any SANA, as a classic LoRA wants.
    """
    embeds, mask = cond
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.scale_shift_table.dtype  # never quantised, never under a LoRA
    times = stack(t, r) if time == "two" else fold(t, r)
    return model(
        hidden_states=x.to(dtype),
        timestep=times * 1000,
        encoder_hidden_states=embeds.to(dtype),
        encoder_attention_mask=mask.to(dtype),
        return_dict=False,
    )[0]
