"""Runs of image models: encodings in a cache, each encoder in memory only while it encodes, and grids of samples."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from twinflow.objective import Condition, Velocity
from twinflow.weights import write_atomically

from .. import TrainerError, data
from ..backbones import Backbone
from ..backbones.images import tile
from ..config import Settings
from ..data import Cache, CachedData, DataRequest, Encoder
from ..data.buckets import Buckets
from ..data.image_files import Broken, pixels
from ..data.image_files import size as size_of
from ..training.log import Log
from ..weights.inference import generate, noise
from . import encoders

SHOWN = 4  # prompts of a sample grid, where the user names none
WIDEST = 512  # pixels of an image in a sample grid


@dataclass
class PreparedImages:
    """model: the plain transformer, frozen.  shown: prompts of the sample grids, with the image's size and condition."""

    model: nn.Module
    data: CachedData
    validation: CachedData | None
    settings: Settings
    shown: list[tuple[str, tuple[int, int], Condition]]


class ImageRun:
    """A Run (see the package) of a backbone with text and image encoders."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def prepare(self, settings: Settings, folder: Path, accelerator: Accelerator, log: Log) -> PreparedImages:
        """Rows and prompts encoded, then the transformer loaded.  Raises TrainerError."""
        wanted, logged = settings.data, settings.logging
        self.backbone.outline(wanted.source, fetch=True)  # of the hub's files, too, a fault is found before hours of encoding
        held: list[nn.Module] = []  # the transformer, once it is loaded: images that are not read still have a shape

        def rows(purpose: str, source: str, **changes: Any) -> CachedData:
            made, found = data.prepare(
                self.request(settings, source, **changes), cache, self.backbone.collate,
                latents=lambda h, w: self.backbone.shape(held[0], (h, w)),
                share=(accelerator.process_index, accelerator.num_processes), wait=accelerator.wait_for_everyone,
            )  # fmt: skip
            if accelerator.is_main_process:
                accelerator.print(f"{purpose}: {found}")
                found.write(folder / f"rows-{purpose}.json")
            return made

        cache = self.cache(settings, accelerator.device)
        train = rows("training", wanted.data, dataset=wanted.dataset, caption_dropout=wanted.caption_dropout)
        validation = rows("validation", logged.validation) if logged.validation else None
        shown = rows("prompts", logged.prompts, image_free=True, trigger="", shuffle_tags=1) if logged.prompts else train
        dtype = settings.torch_dtype if settings.mode == "lora" else None
        held.append(self.backbone.load(wanted.source, dtype=dtype))
        shown = [(caption.text, size, cond) for caption, size, cond in shown.first(None if logged.prompts else SHOWN)]
        if accelerator.is_main_process:
            (folder / "samples").mkdir(exist_ok=True)
            texts = "\n".join(f"{row}  {text}" for row, (text, *_) in enumerate(shown, 1))
            (folder / "samples" / "prompts.txt").write_text(texts + "\n", "utf-8")
        return PreparedImages(held[0], train, validation, settings, shown)

    def request(self, settings: Settings, source: str, **changes: Any) -> DataRequest:
        own = settings.data
        values: dict[str, Any] = dict(
            data=source, resolution=own.resolution, multiple=self.backbone.pixels, aspect=own.aspect, edit=self.backbone.edits,
            image_free=settings.objective.image_free, aspects=own.aspects, caption=own.caption, captions=own.captions,
            trigger=own.trigger, shuffle_tags=own.shuffle_tags, keep_tags=own.keep_tags, upscale_limit=own.upscale_limit,
            null_prompt=own.guidance_prompt, encode_batch=own.encode_batch,
        )  # fmt: skip
        return DataRequest(**values | changes)

    def cache_folder(self, settings: Settings) -> Path:
        return settings.data.cache or settings.run.out / "cache" / self.backbone.core.name

    def check_encoders(self, settings: Settings) -> None:
        """Raises TrainerError."""
        self.backbone.check_encoders(settings.data.encoders)

    def cache(self, settings: Settings, device: torch.device) -> Cache:
        """The encodings of this run's encoders; they are loaded when something is missing, and freed."""
        known = self.backbone
        text, image = encoders.identities(known, settings)
        return Cache(
            self.cache_folder(settings),
            Encoder(
                text,
                lambda: encoders.text_encoder(known, settings, device),
                lambda: known.token_counter(encoders.source_of(known, settings)),
            ),
            Encoder(image, lambda: encoders.image_codec(known, settings, device)),
            settings.torch_dtype,
        )

    def preview(self, network: Velocity, prepared: PreparedImages, device: torch.device) -> dict[str, list[Tensor]]:
        """A row a prompt, at 1, 2 and 4 NFE.  The autoencoder is loaded for it, and freed."""
        chosen = [s for s in self.backbone.sampling if s.steps <= 4]
        start = lambda size, seed: noise(1, self.backbone.shape(prepared.model, size), seed).to(device)
        latents = [
            generate(network, start(size, seed), cond, sampling)
            for sampling in chosen
            for seed, (_, size, cond) in enumerate(prepared.shown)
        ]
        made = iter(self.images(prepared.settings, latents, device))
        return {f"{s.steps} NFE": [small(next(made)) for _ in prepared.shown] for s in chosen}

    def images(self, settings: Settings, latents: list[Tensor], device: torch.device) -> list[Tensor]:
        codec = self.backbone.image_codec(encoders.source_of(self.backbone, settings), device=device)
        tile(codec.vae)  # the transformer leaves little room
        return [codec.decode(x).cpu() for x in latents]

    def evaluate(self, settings: Settings, folder: Path, weights: Path) -> dict[str, Any]:
        """There is no judge of images at large: grid.png is the last of the sample grids."""
        if grids := sorted((folder / "samples").glob("step-*.png")):
            write_atomically(folder / "grid.png", lambda temporary: shutil.copyfile(grids[-1], temporary))
        return {}

    def plain(self, settings: Settings, folder: Path) -> nn.Module:
        return self.backbone.load(settings.data.source)

    def conditions(
        self, settings: Settings, folder: Path, texts: list[str], references: list[Path], device: torch.device
    ) -> dict[str, Condition]:
        """Any texts; the images to edit, the same for all."""
        known, own = self.backbone, settings.data
        if not texts:
            raise TrainerError("--prompts is empty; expected one or more texts, each in quotes")
        if bool(references) != known.edits:
            expected = "one or more images, since it edits" if known.edits else "none, since it does not edit"
            raise TrainerError(f"--reference: {len(references)} given to {known.name}; expected {expected}")
        buckets = Buckets(own.resolution, known.pixels, own.aspect)
        try:
            files = [path.read_bytes() for path in references]
            seen = [pixels(file, buckets.nearest(*size_of(file))) for file in files]
        except (OSError, Broken) as error:
            raise TrainerError(f"--reference: an image cannot be read ({error})") from None
        encode = encoders.text_encoder(known, settings, device)
        prompts = encode(texts, [seen] * len(texts)) if seen else encode(texts)
        del encode
        data.free()
        latents: tuple[Tensor, ...] = ()
        if seen:
            encode = encoders.image_codec(known, settings, device)
            latents = tuple(encode(x[None]).cpu() for x in seen)
        return {prompt.text: (*known.collate([prompt]), *latents) for prompt in prompts}


def small(images: Tensor) -> Tensor:
    """Images (B, C, H, W), made smaller where they are wider or taller than WIDEST."""
    share = WIDEST / max(images.shape[-2:])
    return F.interpolate(images, scale_factor=share, mode="area") if share < 1 else images
