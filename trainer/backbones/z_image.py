"""Z-Image: the velocity of diffusers' own ZImageTransformer2DModel, unmodified.

It counts time towards the data and predicts data - noise, so time is turned round on the way in and the sign on the way
out.  cond is (embeds (B, L, D), mask (B, L) bool).
"""

import torch
from torch import Tensor

from twinflow import layouts
from twinflow.path import widest
from twinflow.prompts import Prompt
from twinflow.time_embedding import SECOND_EMBEDDERS, fold, stack, to_signal

from .family import Family, axes, blocks


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two") -> Tensor:
    """v (B, C, H, W) from t to r, both (B,) and 1 at the noise, in the model's dtype.  H and W are even.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any Z-Image, as a classic LoRA wants.
    """
    embeds, mask = cond
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.x_pad_token.dtype  # never quantised, never under a LoRA
    # float64: the model scales the times by 1000 before the embedder takes their difference
    times = stack(*(widest(to_signal(k)) for k in (t, r))) if time == "two" else to_signal(fold(t, r))
    out = model(
        x=list(x.to(dtype).unsqueeze(2)),
        t=times,
        cap_feats=[e[m] for e, m in zip(embeds.to(dtype), mask.bool(), strict=True)],
        return_dict=False,
    )[0]
    return -torch.stack(list(out)).squeeze(2)


class ZImage(Family):
    name = base_model = "z-image"
    repository = "Tongyi-MAI/Z-Image"
    second_embedder = SECOND_EMBEDDERS["z-image"]
    layout = layouts.Z_IMAGE
    transformer_class, pipeline_class, vae_class = "ZImageTransformer2DModel", "ZImagePipeline", "AutoencoderKL"
    presets = {
        "attention": r"(layers|\w+_refiner)\..*\.attention\..*",
        "attention+mlp": r"(layers|\w+_refiner)\..*\.(attention|feed_forward)\..*",
    }
    velocity = staticmethod(velocity)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict:
        (head,), (dim,) = shapes["layers.0.attention.norm_q.weight"], shapes["cap_embedder.1.bias"]
        return dict(
            in_channels=shapes["all_x_embedder.2-1.weight"][1] // 4,
            dim=dim,
            n_layers=blocks(shapes, "layers.{}.attention.to_q.weight"),
            n_refiner_layers=blocks(shapes, "noise_refiner.{}.attention.to_q.weight"),
            n_heads=dim // head,
            n_kv_heads=dim // head,
            cap_feat_dim=shapes["cap_embedder.0.weight"][0],
            axes_dims=axes(head, head * 3 // 8),
            axes_lens=[1536, 512, 512],
        )

    def encode_prompt(self, pipeline, text: str) -> Prompt:
        (embeds,), _ = pipeline.encode_prompt([text], device=pipeline.device, do_classifier_free_guidance=False)
        return Prompt(text, embeds)


class Turbo(ZImage):
    name = "z-image-turbo"
    repository = "Tongyi-MAI/Z-Image-Turbo"

    def recipe(self, mode: str) -> dict:
        """Without guidance: it is distilled in."""
        return super().recipe(mode) | dict(guidance=1.0)


BACKBONE, TURBO = ZImage(), Turbo()
