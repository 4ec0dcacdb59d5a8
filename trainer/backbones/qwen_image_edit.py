"""Qwen-Image-Edit Plus, 2509 and 2511: Qwen-Image that sees one or more reference images.

Their latents are further patches beside those of x, each image with positions of its own: cond is (embeds, mask) and
the latents of each reference.  The text encoder sees them, too.  2511 modulates their patches as at time 0.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as plus
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature, Qwen2VLImageProcessor

from twinflow.backbones import qwen_image_edit as known
from twinflow.prompts import Prompt

from .diffusers_model import PipelineEncoder, load_part
from .qwen_image import QwenImage
from .sizes import Size

IMAGE, VISION = "<|image_pad|>", "<|vision_start|>"
TIME_ZERO = "__index_timestep_zero__"  # how ComfyUI tells 2511: an empty tensor of this name in the file


class QwenImageEdit(QwenImage):
    core = known.BACKBONE
    pipeline_class = "QwenImageEditPlusPipeline"
    edits = True
    flags, markers = ("zero_cond_t",), (TIME_ZERO,)
    limits = {}  # its pipeline cuts nothing
    sizes = dict.fromkeys(known.BACKBONE.models, Size(dict(), channels=16, text=15.4, references=1))

    def load(self, source: str = "", *, dtype: torch.dtype | None = None, distilled: Path | str | None = None) -> nn.Module:
        model = super().load(source, dtype=dtype, distilled=distilled)
        for name, mark in self.marks(model).items():
            model.register_buffer(name, mark)  # so it is in the weights file
        return model

    def marks(self, model: Any) -> dict[str, Tensor]:
        return {TIME_ZERO: torch.zeros(0)} if getattr(model.config, "zero_cond_t", False) else {}

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict:
        return super().architecture(shapes) | ({"zero_cond_t": True} if TIME_ZERO in shapes else {})

    def text_encoder(self, source: str = "", *, dtype: torch.dtype = torch.bfloat16, device: Any = "cpu") -> PipelineEncoder:
        encoder, root = super().text_encoder(source, dtype=dtype, device=device), self.parts_of(source, ("processor",))
        pipeline = encoder.pipeline
        images = load_part(lambda: Qwen2VLImageProcessor.from_pretrained(root / "processor"), root, ("processor",))
        pipeline.processor = Processor(images, pipeline.tokenizer)
        config = pipeline.text_encoder.config  # a single file has none
        config.image_token_id, config.vision_start_token_id = pipeline.tokenizer.convert_tokens_to_ids([IMAGE, VISION])
        pipeline.text_encoder.register_forward_pre_hook(tell_images, with_kwargs=True)
        return encoder

    def text_files(self, source: str) -> list[Path]:
        return super().text_files(source) + list((self.parts_of(source, ("processor",)) / "processor").glob("*"))

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device, references: Sequence[Tensor] = ()) -> Prompt:
        """references: images (3, H, W) in [-1, 1]; the encoder sees them at the size that the pipeline gives them."""
        seen = [at_condition_size(pipeline, image) for image in references]
        embeds, _ = pipeline.encode_prompt(text, image=seen or None, device=device)
        return Prompt(text, embeds[0])


def at_condition_size(pipeline: Any, image: Tensor) -> Image.Image:
    shown = Image.fromarray(((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())
    width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, shown.width / shown.height)
    return pipeline.image_processor.resize(shown, height, width)


class Processor:
    """Pictures and text for the encoder.  transformers' own does the same, but wants torchvision for videos."""

    def __init__(self, processor: Qwen2VLImageProcessor, tokenizer: Any):
        self.processor, self.tokenizer = processor, tokenizer

    def __call__(self, text: list[str], images: list[Image.Image] | None, **options) -> BatchFeature:
        """Each <|image_pad|> becomes as many as its image has tokens."""
        seen = dict(self.processor(images=images, return_tensors="pt")) if images else {}
        counts = iter((seen["image_grid_thw"].prod(1) // self.processor.merge_size**2).tolist() if images else ())
        fill = lambda parts: parts[0] + "".join("<|image_pad|>" * next(counts) + part for part in parts[1:])
        text = [fill(line.split("<|image_pad|>")) for line in text]
        return BatchFeature(dict(self.tokenizer(text, **options)) | seen)


def tell_images(encoder: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """transformers 5 gives images their two-dimensional positions only if told where they are; the pipeline does not."""
    if "mm_token_type_ids" in inspect.signature(encoder.forward).parameters:
        kwargs["mm_token_type_ids"] = (kwargs["input_ids"] == encoder.config.image_token_id).int()
    return args, kwargs


BACKBONES = {name: QwenImageEdit(name) for name in known.BACKBONE.models}
