"""Qwen-Image-2.1: the velocity of diffusers' own QwenImage21Transformer2DModel, unmodified.

Its time is that of the noise, in [0, 1].  Each place of its latents is one token, behind those of the text, which hear time 0.
cond is (embeds (B, L, D), mask (B, L) bool).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, BatchEncoding, Qwen3VLForConditionalGeneration

from twinflow.backbones import qwen_image_21 as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .diffusers_model import DiffusersBackbone
from .images import ImageCodec
from .shifts import Shift
from .sizes import Size
from .sources import class_of

SLOT = 4  # places of the latents that one place of the mask stands for
TURBO = "qwen-image-2.1-turbo"


class RgbaCodec(ImageCodec):
    """Of an autoencoder with an alpha channel: images are opaque, and pictures lie on white."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        return super().encode_image(F.pad(pixels, (0, 0, 0, 0, 0, 1), value=1.0))

    def decode(self, latents: Tensor) -> Tensor:
        colours, alpha = super().decode(latents).split([3, 1], dim=1)
        return colours * alpha + (1 - alpha)


class QwenImage21(DiffusersBackbone):
    core = known.BACKBONE
    pixels, factor = 32, 16
    prefix = "transformer."  # ComfyUI's stock LoRA loader knows the parts of its fused layers by diffusers' names
    transformer_class, pipeline_class = "QwenImage21Transformer2DModel", "QwenImage21Pipeline"
    vae_class, codec = "AutoencoderKLQwenImage21", RgbaCodec
    text_parts = ("text_encoder", "processor")
    single = {"text_encoder": "qwen3-vl", "vae": "rgba-vae"}
    own_attention = True  # while it is trained, whatever backend is set
    license = "Qwen Research License, not for commercial use: https://huggingface.co/Qwen/Qwen-Image-2.1/blob/main/LICENSE"
    presets = {
        "attention": r"transformer_blocks\..*\.attn\..*",
        "attention+mlp": r"transformer_blocks\..*\.(attn|img_mlp)\..*",
    }
    sizes = dict.fromkeys(known.BACKBONE.models, Size(dict(), channels=64, text=16.3))

    def __init__(self, name: str):
        super().__init__(name)
        self.shift = Shift() if name == TURBO else Shift(low=(256, 0.5), high=(8192, 0.9))

    def recipe(self, mode: str) -> dict[str, Any]:
        """Turbo without guidance: it is distilled in."""
        return dict(guidance=1.0) if self.name == TURBO else {}

    def velocity(self, model: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """H and W are even.  Row by row: padding would move an image away from its text, as all rows share their positions."""
        embeds, mask = cond
        lengths = mask.sum(1).tolist()
        one = lambda i: self.row(model, x[i : i + 1], t[i : i + 1], embeds[i : i + 1, : lengths[i]])
        embedder = self.core.time.of(model) if self.core.time.installed(model) else None
        return torch.cat(embedder.row_by_row(one, len(x)) if embedder else [one(i) for i in range(len(x))])

    def row(self, model: Any, x: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        dtype, (h, w) = model.txt_in.text_norm.weight.dtype, x.shape[2:]  # never quantised, never under a LoRA
        out = model(
            hidden_states=x.flatten(2).mT.to(dtype),
            encoder_hidden_states=embeds.to(dtype),
            timestep=t,
            return_dict=False,
            **layout(embeds, (h, w)),
        )[0]
        return out[:, embeds.shape[1] :].mT.unflatten(2, (h, w))

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        w = self.core.widths(shapes)
        return dict(
            in_channels=w["channels"],
            out_channels=w["channels"],
            num_layers=w["layers"],
            attention_head_dim=w["head"],
            num_attention_heads=w["heads"],
            context_in_dim=w["text"],
            mlp_ratio=w["mlp"],
            axes_dims_rope=list(w["axes"]),
        )

    def inputs(self, model: Any, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        side = pixels // self.factor
        text = self.text(model.config.context_in_dim, dtype)
        return dict(
            hidden_states=torch.zeros(1, side**2, model.config.in_channels, dtype=dtype),
            encoder_hidden_states=text,
            timestep=torch.zeros(1),
            **layout(text, (side, side)),
        )

    def pipeline(self, root: Path, parts: tuple[str, ...], **given: Any) -> Any:
        dtype = given.pop("torch_dtype", None)
        if "text_encoder" in parts:
            given["text_encoder"] = Qwen3VLForConditionalGeneration.from_pretrained(root / "text_encoder", dtype=dtype)
        elif "text_encoder" in given:
            given["text_encoder"] = Encoder(given["text_encoder"])
        given["processor"] = Processor(AutoTokenizer.from_pretrained(root / "processor"))
        cls = class_of(self.pipeline_class)
        return cls(**dict.fromkeys(cls._get_signature_keys(cls)[0]) | given)

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        embeds, _, _ = pipeline.encode_prompt(text, device=device)
        return Prompt(text, embeds[0])


def layout(text: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Of a sequence of a text (1, L, D) and the image that it is of, height and width in places of its latents."""
    slots = torch.arange(text.shape[1] + size[0] * size[1] // SLOT, device=text.device) >= text.shape[1]
    return dict(img_shapes=[[(1, *size)]], img_mask=slots[None])


class Processor:
    """A text for the encoder.  transformers' own does the same, but wants torchvision for pictures and videos."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], **options) -> BatchEncoding:
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: list[dict], **_) -> list[list[int]]:
        """The tokens of messages that are one text each, of which the pipeline wants the number."""
        turns = (f"<|im_start|>{m['role']}\n{m['content'][0]['text']}<|im_end|>\n" for m in messages)
        return [self.tokenizer("".join(turns)).input_ids]


class Encoder(nn.Module):
    """A language model, as the pipeline asks it."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


BACKBONES = {name: QwenImage21(name) for name in known.BACKBONE.models}
