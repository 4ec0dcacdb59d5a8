"""Z-Image: the velocity of diffusers' own ZImageTransformer2DModel, unmodified.

It counts time towards the data and predicts data - noise, so time is turned round on the way in and the sign on the way
out.  cond is (embeds (B, L, D), mask (B, L) bool).
"""

from typing import Any

import torch
from torch import Tensor

from twinflow.backbones import z_image as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt
from twinflow.time_embedding import to_signal

from .diffusers_model import DiffusersBackbone
from .shifts import Shift
from .sizes import KL_16, Size

SIZE = Size(dict(), channels=16, text=7.5, vae=KL_16)


class ZImage(DiffusersBackbone):
    core = known.BACKBONE
    transformer_class, pipeline_class, vae_class = "ZImageTransformer2DModel", "ZImagePipeline", "AutoencoderKL"
    single, vae_config = {"text_encoder": "qwen3", "vae": "kl"}, dict(scaling_factor=0.3611, shift_factor=0.1159)
    presets = {
        "attention": r"(layers|\w+_refiner)\..*\.attention\..*",
        "attention+mlp": r"(layers|\w+_refiner)\..*\.(attention|feed_forward)\..*",
    }
    sizes = {"z-image": SIZE, "z-image-turbo": SIZE}
    limits = {"the text encoder": 512}  # with the chat template around the caption

    def __init__(self, name: str):
        super().__init__(name)
        self.shift = Shift(3.0 if name == "z-image-turbo" else 6.0)

    def recipe(self, mode: str) -> dict[str, Any]:
        """Turbo without guidance: it is distilled in."""
        return dict(guidance=1.0) if self.name == "z-image-turbo" else {}

    def velocity(self, model: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """H and W are even."""
        embeds, mask = cond
        dtype = model.x_pad_token.dtype  # never quantised, never under a LoRA
        out = model(
            x=list(x.to(dtype).unsqueeze(2)),
            t=to_signal(t),
            cap_feats=[e[m] for e, m in zip(embeds.to(dtype), mask.bool(), strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(out)).squeeze(2)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        w = self.core.widths(shapes)
        return dict(
            in_channels=w["channels"],
            dim=w["dim"],
            n_layers=w["layers"],
            n_refiner_layers=w["refiners"],
            n_heads=w["heads"],
            n_kv_heads=w["heads"],
            cap_feat_dim=w["text"],
            axes_dims=list(w["axes"]),
            axes_lens=[1536, 512, 512],
        )

    def inputs(self, model: Any, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        x, text = self.latents(pixels, dtype), self.text(model.config.cap_feat_dim, dtype)
        return dict(x=list(x.unsqueeze(2)), t=torch.zeros(1), cap_feats=list(text))

    def count_tokens(self, pipeline: Any, text: str) -> dict[str, int]:
        message = [{"role": "user", "content": text}]
        options: dict[str, Any] = dict(tokenize=False, add_generation_prompt=True, enable_thinking=True)
        whole = pipeline.tokenizer.apply_chat_template(message, **options)
        return {"the text encoder": len(pipeline.tokenizer(whole, verbose=False).input_ids)}

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        (embeds,), _ = pipeline.encode_prompt([text], device=device, do_classifier_free_guidance=False)
        return Prompt(text, embeds)


BACKBONES = {name: ZImage(name) for name in known.BACKBONE.models}
