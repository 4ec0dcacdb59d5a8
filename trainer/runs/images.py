"""Runs of image models: encodings in a cache, each encoder in memory only while it encodes, and grids of samples."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twinflow.atomic import write_atomically, write_text
from twinflow.objective import Condition

from .. import TrainerError, console, data
from ..backbones import Backbone, sources
from ..backbones.images import tile
from ..config.settings import Settings
from ..data import Cache, CachedData, DataRequest, Encoder, prompts
from ..data.buckets import Buckets
from ..data.cache import Caption, Shot
from ..data.digests import Digests
from ..data.image_files import Broken, pixels
from ..data.image_files import size as size_of
from ..data.prompts import Prompt as Asked
from ..data.report import Report, listing
from ..seeds import seed_of
from ..tensors import sharding
from ..training import checkpoint
from ..training.log import Log
from ..weights import origin
from . import encoders
from .previews import Shown

SHOWN = 4  # prompts of a sample grid, where the user names none
First = tuple[Caption, tuple[int, int], Condition]  # of a prompt: what is asked, (height, width), for one image


@dataclass
class PreparedImages:
    """model: the plain transformer, frozen.  shown: the rows of the sample grids."""

    model: nn.Module
    data: CachedData
    validation: CachedData | None
    shown: list[Shown]


class ImageRun:
    """A Run (see the package) of a backbone with text and image encoders."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    def prepare(self, settings: Settings, folder: Path, accelerator: Accelerator, log: Log) -> PreparedImages:
        """Rows and prompts encoded, then the transformer loaded.  Raises TrainerError."""
        wanted, logged = settings.data, settings.logging
        asked = self.asked(settings, accelerator.print)
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
                report = folder / f"rows-{purpose}.json"
                if (change := found.change(report)) and purpose == "training" and checkpoint.newest(folder / "checkpoints"):
                    accelerator.print(f"the data are not what they were ({change}): training goes on with them as they are")
                found.write(report)
            return made

        cache = self.cache(settings, accelerator.device)
        train = rows("training", wanted.data, dataset=wanted.dataset, caption_dropout=wanted.caption_dropout)
        validation = rows("validation", logged.validation) if logged.validation else None
        shown = self.encoded(settings, asked, cache, accelerator) if asked else train.first(SHOWN)
        held.append(self.transformer(settings, accelerator))
        made = [self.row(i, held[0], cache, wanted.guidance_prompt, *own) for i, own in enumerate(zip_longest(shown, asked))]
        if accelerator.is_main_process:
            (folder / "samples").mkdir(exist_ok=True)
            texts = [f"{i:02d}  {' '.join(row.text.split())}  ({row.note})" for i, row in enumerate(made, 1)]
            write_text("\n".join(texts) + "\n", folder / "samples" / "prompts.txt")
            table = [json.dumps(line(row, own[0]), ensure_ascii=False) for row, own in zip(made, shown)]
            write_text("\n".join(table) + "\n", folder / "samples" / "prompts.jsonl")
        return PreparedImages(held[0], train, validation, made)

    def transformer(self, settings: Settings, accelerator: Accelerator) -> nn.Module:
        """Frozen; one that is to be sharded is read when it is, a tensor at a time.  Raises TrainerError."""
        dtype = settings.torch_dtype if settings.mode == "lora" else None
        console.loading(f"the transformer of {self.backbone.name}")
        with sources.late() if settings.mode == "full" and sharding.shards(accelerator) else nullcontext():
            return origin.model(self.backbone, settings, lambda: self.backbone.load(settings.data.source, dtype=dtype), dtype)

    def asked(self, settings: Settings, say: Callable[[str], object]) -> list[Asked]:
        """The prompts of --prompts, of which only so many are drawn; none where it is not given.  Raises TrainerError."""
        logged, report = settings.logging, Report()
        if not (logged.prompts and logged.sample_every):
            return []
        found = prompts.read(logged.prompts, report, edit=self.backbone.edits, multiple=self.backbone.pixels)
        most = logged.sample_most or len(found)
        if report.noted:
            say(f"prompts: noted: {listing(report.noted)}")
        if len(found) > most:
            say(f"prompts: the first {most} of {len(found)} are drawn (--sample-most; 0 draws all)")
        return found[:most]

    def encoded(self, settings: Settings, asked: list[Asked], cache: Cache, accelerator: Accelerator) -> list[First]:
        """What a row needs of each prompt; encodes what is missing.  Raises TrainerError."""
        own = settings.data
        buckets, digests = Buckets(own.resolution, self.backbone.pixels, own.aspect), Digests(cache.folder / "digests.json")
        free = buckets.parse(own.aspects)
        captions, sizes = [], []
        for prompt in asked:
            try:
                found = [(file, *digests(file)) for file in prompt.references]
            except (OSError, Broken) as error:
                raise TrainerError(f"{prompt.name}: an image to edit cannot be read ({error})") from None
            seen = tuple(Shot(file, digest, buckets.nearest(*size)) for file, digest, size in found)
            captions.append(Caption(prompt.text, seen))
            usual = seen[0].size if seen else free[seed_of((prompt.text,)) % len(free)]
            plain = (own.resolution, own.resolution) if any(prompt.size) else usual
            sizes.append(tuple(side or other for side, other in zip(prompt.size, plain)))
        null = [Caption(own.guidance_prompt, caption.references) for caption in captions]
        cache.folder.mkdir(parents=True, exist_ok=True)
        share = accelerator.process_index, accelerator.num_processes
        shots = [shot for caption in captions for shot in caption.references]
        cache.fill(shots, [*captions, *null], batch=own.encode_batch, share=share, quiet=share[0] != 0)
        accelerator.wait_for_everyone()
        for prompt, caption in zip(asked, captions):
            for shot in caption.references:
                if fault := cache.fault(shot):
                    raise TrainerError(f"{prompt.name}: {shot.image.path}: {fault}")
        latents = lambda caption: tuple(cache.latents(shot)[None].float() for shot in caption.references)
        return [
            (caption, size, (*self.backbone.collate([cache.prompt(caption)]), *latents(caption)))
            for caption, size in zip(captions, sizes)
        ]

    def row(self, number: int, model: nn.Module, cache: Cache, null: str, first: First, asked: Asked | None) -> Shown:
        """Of the sample grids.  asked: where the user named the prompt."""
        caption, size, cond = first
        seed = number if asked is None or asked.seed is None else asked.seed
        empty = self.backbone.collate([cache.prompt(Caption(null, caption.references))])
        seen = cond[len(cond) - len(caption.references) :]
        note = f"{size[1]}x{size[0]}, seed {seed}"
        guidance = asked.guidance if asked else None
        return Shown(
            caption.text, size, seed, self.backbone.shape(model, size), cond, (*empty, *seen),
            steps=asked.steps if asked else (), guidance=guidance,
            note=note + (f", base CFG {guidance:g}" if guidance is not None else ""),
            more=dict(references=[shot.digest for shot in caption.references]) if caption.references else {},
        )  # fmt: skip

    def shown(self, settings: Settings, prepared: PreparedImages) -> list[Shown]:
        return prepared.shown

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

        def said(what: str, load: Callable[..., Any]) -> Callable[[], Any]:
            return lambda: (console.loading(f"the {what} of {known.name}"), load(known, settings, device))[1]

        return Cache(
            self.cache_folder(settings),
            Encoder(
                text,
                said("text encoder", encoders.text_encoder),
                lambda: known.token_counter(encoders.source_of(known, settings)),
            ),
            Encoder(image, said("autoencoder", encoders.image_codec)),
            settings.torch_dtype,
        )

    def images(self, settings: Settings, latents: list[Tensor], device: torch.device) -> Iterator[Tensor]:
        """One after the other; the autoencoder is loaded for them, and freed."""
        codec = self.backbone.image_codec(encoders.source_of(self.backbone, settings), device=device)
        tile(codec.vae)  # the transformer leaves little room
        return (codec.decode(x.to(device)).cpu() for x in latents)

    def evaluate(self, settings: Settings, folder: Path, weights: Path) -> dict[str, Any]:
        """There is no judge of images at large: grid.png is the last of the sample grids."""
        if grids := sorted((folder / "samples").glob("step-*.png")):
            write_atomically(folder / "grid.png", lambda temporary: shutil.copyfile(grids[-1], temporary))
        return {}

    def plain(self, settings: Settings, folder: Path) -> nn.Module:
        return self.backbone.load(settings.data.source)

    def usual(self) -> tuple[str, ...]:
        return ()

    def conditions(self, settings: Settings, folder: Path, asked: list[Asked], device: torch.device) -> list[Condition]:
        """Any texts; the images to edit as those that are trained on."""
        known, own = self.backbone, settings.data
        buckets = Buckets(own.resolution, known.pixels, own.aspect)
        try:
            files = [[file.read() for file in prompt.references] for prompt in asked]
            seen = [[pixels(file, buckets.nearest(*size_of(file))) for file in own] for own in files]
        except (OSError, Broken) as error:
            raise TrainerError(f"--reference: an image cannot be read ({error})") from None
        console.loading(f"the text encoder of {known.name}")
        encode = encoders.text_encoder(known, settings, device)
        texts = [prompt.text for prompt in asked]
        encoded = encode(texts, seen) if known.edits else encode(texts)
        del encode
        data.free()
        latents: list[tuple[Tensor, ...]] = [()] * len(asked)
        if known.edits:
            console.loading(f"the autoencoder of {known.name}")
            encode = encoders.image_codec(known, settings, device)
            latents = [tuple(encode(x[None]).cpu() for x in images) for images in seen]
        return [(*known.collate([prompt]), *own) for prompt, own in zip(encoded, latents)]


def line(row: Shown, caption: Caption) -> dict[str, Any]:
    """Of the table of prompts beside the samples, as --prompts takes it."""
    values = dict(prompt=row.text, width=row.size[1], height=row.size[0], seed=row.seed, steps=list(row.steps))
    values |= dict(guidance=row.guidance) if row.guidance is not None else {}
    files = [str(shot.image.path.absolute()) for shot in caption.references if not shot.image.column]
    return values | (dict(reference=files) if files else {})
