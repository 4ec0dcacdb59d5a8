"""SD3.5: the velocity of diffusers' own SD3Transformer2DModel, unmodified.

It hears the noise time times 1000.  cond is (embeds (B, L, D), pooled (B, P)); padding is attended to, as in the base.
"""

from torch import Tensor

from twinflow.time_embedding import fold, stack


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two") -> Tensor:
    """v (B, C, H, W) from t to r, both (B,), in the model's dtype.  H and W are even.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any SD3, as a classic LoRA wants.
    """
    embeds, pooled = cond
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.pos_embed.proj.weight.dtype
    times = stack(t, r) if time == "two" else fold(t, r)
    return model(
        hidden_states=x.to(dtype),
        timestep=times * 1000,
        encoder_hidden_states=embeds.to(dtype),
        pooled_projections=pooled.to(dtype),
        return_dict=False,
    )[0]
