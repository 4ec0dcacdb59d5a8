"""FLUX.2 klein: the velocity of diffusers' own Flux2Transformer2DModel, unmodified.

Its time is the noise's, in [0, 1].  Latents are squares of 2 x 2 of its autoencoder's, normalised per channel, one a token.
cond is (embeds (B, L, D), mask) and, for editing, the latents of each reference image (B, C, h, w), which may differ in size
from each other and from x and are further tokens, of the same time.  Padding is attended to, as in the base, so the mask is
not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinflow.backbones import flux2_klein as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .. import TrainerError
from .diffusers_model import DiffusersBackbone
from .images import ImageCodec
from .shifts import Shift
from .sizes import Size

APART = 10  # of two images on the first axis of their positions
EDITS = ("flux2-klein-edit",)
SIZE = Size(
    dict(num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False),
    channels=128,
    text=7.5,
    tokens=512,
)


@dataclass(frozen=True)
class Empirical(Shift):
    """The pipeline's own line, which depends on the number of its steps, whatever the scheduler's settings say.

    Source: diffusers' compute_empirical_mu.
    """

    steps: int = 50

    def of(self, tokens: int) -> float:
        few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666  # at 10 steps, at 200
        mu = many if tokens > 4300 else few + (many - few) * (self.steps - 10) / 190
        return float(torch.tensor(mu).exp())

    def beside(self, source: str) -> "Shift":
        return self


class SquaresCodec(ImageCodec):
    """The latents (B, 4 C, h / 2, w / 2) are squares of the autoencoder's C channels, by the mean and spread that it keeps."""

    def __init__(self, vae: Any):
        self.vae, self.video = vae.eval().requires_grad_(False), False
        self.shift = vae.bn.running_mean.float().view(1, -1, 1, 1)
        self.scale = (vae.bn.running_var.float().view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()

    def normalised(self, z: Tensor) -> Tensor:
        return super().normalised(F.pixel_unshuffle(z, 2))

    def raw(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(super().raw(latents), 2)


class Flux2Klein(DiffusersBackbone):
    core = known.BACKBONE
    pixels = factor = 16
    prefix = "transformer."  # diffusers' names, all that ComfyUI's stock LoRA loader maps to the fused layers
    transformer_class, pipeline_class, vae_class = "Flux2Transformer2DModel", "Flux2KleinPipeline", "AutoencoderKLFlux2"
    codec = SquaresCodec
    single = {"text_encoder": "qwen3", "vae": "kl-squares"}
    presets = {
        "attention": r"(single_)?transformer_blocks\..*\.attn\..*",
        "attention+mlp": r"(single_)?transformer_blocks\..*\.(attn|ff|ff_context)\..*",
    }
    sizes = {name: replace(SIZE, references=int(name in EDITS)) for name in known.BACKBONE.models}
    masked = False
    limits: ClassVar[dict[str, int]] = {"the text encoder": 512}  # with the chat template around the caption

    def __init__(self, name: str):
        super().__init__(name)
        self.edits = name in EDITS
        self.shift = Empirical(steps=4 if name == "flux2-klein-distilled" else 50)

    def recipe(self, mode: str) -> dict[str, Any]:
        """The distilled model without guidance: it is distilled in."""
        return dict(guidance=1.0) if self.name == "flux2-klein-distilled" else {}

    def load(self, source: str = "", *, dtype: torch.dtype | None = None, distilled: Path | str | None = None) -> nn.Module:
        model: Any = super().load(source, dtype=dtype, distilled=distilled)
        if model.config.guidance_embeds:
            raise TrainerError(
                f"model source {str(distilled or source)!r}: is FLUX.2 dev, which takes a guidance scale as an input; expected "
                f"{self.core.title}"
            )
        return model

    def velocity(self, model: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The plain model rounds t to its own dtype."""
        embeds, _, *references = cond
        images, tokens = [x, *references], x.shape[2] * x.shape[3]
        dtype = model.transformer_blocks[0].attn.norm_q.weight.dtype  # never quantised, never under a LoRA
        out = model(
            hidden_states=torch.cat([image.flatten(2).mT for image in images], 1).to(dtype),
            encoder_hidden_states=embeds.to(dtype),
            timestep=t,
            img_ids=positions([image.shape[2:] for image in images], x.device),
            txt_ids=words(embeds.shape[1], x.device),
            return_dict=False,
        )[0]
        return out[:, :tokens].mT.reshape(x.shape)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        w = self.core.widths(shapes)
        return dict(
            patch_size=1,
            in_channels=w["channels"],
            num_layers=w["layers"],
            num_single_layers=w["singles"],
            attention_head_dim=w["head"],
            num_attention_heads=w["heads"],
            joint_attention_dim=w["text"],
            timestep_guidance_channels=w["features"],
            mlp_ratio=w["mlp"],
            axes_dims_rope=list(w["axes"]),
            guidance_embeds="time_guidance_embed.guidance_embedder.linear_1.weight" in shapes,
        )

    def inputs(self, model: Any, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        side = pixels // self.factor
        sizes = [(side, side)] * (1 + self.size.references)
        text = self.text(model.config.joint_attention_dim, dtype)
        return dict(
            hidden_states=torch.zeros(1, len(sizes) * side**2, model.config.in_channels, dtype=dtype),
            encoder_hidden_states=text,
            timestep=torch.zeros(1),
            img_ids=positions(sizes, text.device),
            txt_ids=words(text.shape[1], text.device),
        )

    def count_tokens(self, pipeline: Any, text: str) -> dict[str, int]:
        message = [{"role": "user", "content": text}]
        options: dict[str, Any] = dict(tokenize=False, add_generation_prompt=True, enable_thinking=False)
        whole = pipeline.tokenizer.apply_chat_template(message, **options)
        return {"the text encoder": len(pipeline.tokenizer(whole, verbose=False).input_ids)}

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device, references: Sequence[Tensor] = ()) -> Prompt:
        """With its padding, which the transformer uses.  The text encoder does not see the references."""
        embeds, _ = pipeline.encode_prompt(text, device=device)
        return Prompt(text, embeds[0])


def positions(sizes: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Of the tokens (N, 4) of images of these heights and widths: which image, row, column, 0."""
    one = lambda number: torch.tensor([number], device=device)
    line = lambda number: torch.arange(number, device=device)
    return torch.cat([torch.cartesian_prod(one(APART * i), line(h), line(w), one(0)) for i, (h, w) in enumerate(sizes)])


def words(number: int, device: Any) -> Tensor:
    """Positions of a text's tokens (L, 4): 0, 0, 0 and which."""
    return F.pad(torch.arange(number, device=device)[:, None], (3, 0))


BACKBONES = {name: Flux2Klein(name) for name in known.BACKBONE.models}
