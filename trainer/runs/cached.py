"""How the families are trained and looked at: from encodings in a cache, each encoder in memory only while it encodes."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from twinflow.objective import Condition
from twinflow.weights import write_atomically

from .. import TrainerError, data
from ..config import Config
from ..data import Cache, CachedData, Encoder, Settings
from ..data.buckets import Buckets
from ..data.pictures import Broken, pixels
from ..data.pictures import size as size_of
from ..generate import generate, noise

SHOWN = 4  # prompts of a sample grid, where the user names none
WIDEST = 512  # pixels of a picture in a sample grid
END = 2**20  # bytes at either end of a file that tell it from others


@dataclass
class Prepared:
    """model: the plain transformer, frozen.  shown: prompts of the sample grids, with the picture's size and condition."""

    model: nn.Module
    data: CachedData
    validation: CachedData | None
    config: Config
    shown: list[tuple[str, tuple[int, int], Condition]]


class Cached:
    """The part of a family that knows of runs; the subclass knows the model."""

    pixels: int
    factor: int  # pixels that one latent is wide
    unread = ("base", "evaluate")
    chunk = 1  # rows sampled at once
    edits = False  # whether prompts come with pictures

    def prepare(self, config, folder: Path, accelerator, log) -> Prepared:
        """Rows and prompts encoded, then the transformer loaded.  Raises TrainerError."""
        if not config.data:
            raise TrainerError(
                "--data is empty; expected a folder of pictures with captions, .jsonl, .parquet or, with --image-free, .txt"
            )
        if config.resolution % self.pixels:
            raise TrainerError(f"--resolution is {config.resolution}; expected a multiple of {self.pixels} for {self.name}")
        held = []  # the transformer, once it is loaded: pictures that are not looked at still have a shape

        def rows(purpose: str, source: str, **changes) -> CachedData:
            made, found = data.prepare(
                self.settings(config, source, **changes), cache, self.collate,
                latents=lambda h, w: self.shape(held[0], (h, w)),
                share=(accelerator.process_index, accelerator.num_processes), wait=accelerator.wait_for_everyone,
            )  # fmt: skip
            if accelerator.is_main_process:
                accelerator.print(f"{purpose}: {found}")
                found.write(folder / f"rows-{purpose}.json")
            return made

        cache = self.cache(config, accelerator.device)
        train = rows("training", config.data, caption_dropout=config.caption_dropout)
        validation = rows("validation", config.validation) if config.validation else None
        shown = rows("prompts", config.prompts, image_free=True) if config.prompts else train
        held.append(self.load(config.source, dtype=config.torch_dtype if config.mode == "lora" else None))
        shown = [(caption.text, size, cond) for caption, size, cond in shown.first(None if config.prompts else SHOWN)]
        if accelerator.is_main_process:
            (folder / "samples").mkdir(exist_ok=True)
            texts = "\n".join(f"{row}  {text}" for row, (text, *_) in enumerate(shown, 1))
            (folder / "samples" / "prompts.txt").write_text(texts + "\n", "utf-8")
        return Prepared(held[0], train, validation, config, shown)

    def settings(self, config, source: str, **changes) -> Settings:
        values = dict(
            data=source, resolution=config.resolution, multiple=self.pixels, aspect=config.aspect, edit=self.edits,
            image_free=config.image_free, aspects=config.aspects, caption=config.caption, null_prompt=config.guidance_prompt,
            encode_batch=config.encode_batch,
        )  # fmt: skip
        return Settings(**values | changes)

    def cache(self, config, device) -> Cache:
        """The encodings of this run's encoders; they are loaded when something is missing, and freed."""
        source, dtype, parts = config.encoders or config.source, config.torch_dtype, (*self.text_parts, "vae")
        root = Path(config.encoders)  # "." where none is given
        if config.encoders and root.is_dir() and not any((root / part).is_dir() for part in parts):
            raise TrainerError(f"--encoders {root}: is a folder with none of {', '.join(parts)}; expected these in it")
        text, image = (f"{self.base_model} {identity(files)}" for files in (self.text_files(source), self.image_files(source)))
        return Cache(
            config.cache or config.out / "cache" / self.base_model,
            Encoder(text, lambda: self.text_encoder(source, dtype=dtype, device=device).encode_text),
            Encoder(image, lambda: self.image_codec(source, device=device).encode_image),
            dtype,
        )

    def shape(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
        return (self.channels(model), size[0] // self.factor, size[1] // self.factor)

    def channels(self, model: nn.Module) -> int:
        return model.config.in_channels

    def preview(self, network, prepared: Prepared, device) -> dict[str, list[Tensor]]:
        """A row a prompt, at 1, 2 and 4 NFE.  The autoencoder is loaded for it, and freed."""
        model, settings = prepared.model, [s for s in self.sampling if s.steps <= 4]
        latents = [
            generate(network, noise(1, self.shape(model, size), seed).to(device), cond, sampling)
            for sampling in settings
            for seed, (_, size, cond) in enumerate(prepared.shown)
        ]
        made = iter(self.pictures(prepared.config, latents, device))
        return {f"{s.steps} NFE": [small(next(made)) for _ in prepared.shown] for s in settings}

    def pictures(self, config, latents: list[Tensor], device) -> list[Tensor]:
        codec = self.image_codec(config.encoders or config.source, device=device)
        if hasattr(codec.vae, "enable_tiling"):
            codec.vae.enable_tiling()  # the transformer leaves little room
        return [codec.decode(x).cpu() for x in latents]

    def evaluate(self, config, folder: Path, weights: Path) -> dict:
        """There is no judge of pictures at large: grid.png is the last of the sample grids."""
        if grids := sorted((folder / "samples").glob("step-*.png")):
            write_atomically(folder / "grid.png", lambda temporary: shutil.copyfile(grids[-1], temporary))
        return {}

    def plain(self, config, folder: Path) -> nn.Module:
        return self.load(config.source)

    def conditions(self, config, folder: Path, texts: list[str], references: list[Path], device) -> dict[str, Condition]:
        """Any texts; the pictures to edit, the same for all."""
        if not texts:
            raise TrainerError("--prompts is empty; expected one or more texts, each in quotes")
        if bool(references) != self.edits:
            expected = "one or more pictures, since it edits" if self.edits else "none, since it does not edit"
            raise TrainerError(f"--reference: {len(references)} given to {self.name}; expected {expected}")
        source, buckets = config.encoders or config.source, Buckets(config.resolution, self.pixels, config.aspect)
        try:
            files = [path.read_bytes() for path in references]
            seen = [pixels(file, buckets.nearest(*size_of(file))) for file in files]
        except (OSError, Broken) as error:
            raise TrainerError(f"--reference: a picture cannot be read ({error})") from None
        encode = self.text_encoder(source, dtype=config.torch_dtype, device=device)
        prompts = encode.encode_text(texts, [seen] * len(texts)) if seen else encode.encode_text(texts)
        del encode
        data.free()
        codec = self.image_codec(source, device=device) if seen else None
        latents = tuple(codec.encode_image(x[None]).cpu() for x in seen)
        return {prompt.text: self.collate([prompt]) + latents for prompt in prompts}


def identity(files: list[Path]) -> str:
    """A hash that tells these weights and settings from others, wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted((path for path in files if path.is_file()), key=lambda path: path.parts[-2:]):
        with open(path, "rb") as file:
            start, size = file.read(END), path.stat().st_size
            file.seek(max(0, size - END))
            digest.update(repr((path.name, size)).encode() + start + file.read())
    return digest.hexdigest()[:16]


def small(pictures: Tensor) -> Tensor:
    """Pictures (B, C, H, W), made smaller where they are wider or taller than WIDEST."""
    share = WIDEST / max(pictures.shape[-2:])
    return F.interpolate(pictures, scale_factor=share, mode="area") if share < 1 else pictures
