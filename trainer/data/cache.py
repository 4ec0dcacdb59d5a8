"""The encodings of every image and caption, on disk, so that no encoder is in memory while training.

One safetensors file for each image (at a size) and each caption, named by a hash of all that decides its content.  Files
are whole or absent, so filling goes on where it stopped, and several processes may fill one folder.
"""

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from twinflow.atomic import remove_leftovers, write_text
from twinflow.prompts import Prompt, load_prompts, save_prompts
from twinflow.weights import WeightsError, load, read_header, save

from .. import Lost, TrainerError
from .image_files import Broken, pixels
from .row import ImageFile

VERSION = 2  # of the files and of how pixels are cut: raise it when either changes


class Encoder(NamedTuple):
    """identity: names the weights, and any setting that changes their output.  open: loads them, when something is missing.

    What open() returns is called with pixels (B, 3, H, W) in [-1, 1] for latents (B, ...); or with a list of captions for
    as many Prompts, unpadded; or, for an edit model, with captions and their reference images [[(3, H, W), ...], ...].
    counter: loads what a caption's tokens are counted with; by what reads them, how many there are and how many are read.
    """

    identity: str
    open: Callable[[], Callable]
    counter: Callable[[], Callable[[str], dict[str, tuple[int, int]]]] = lambda: lambda text: {}


class Shot(NamedTuple):
    """An image cut to a size (height, width); digest: the hash of its bytes, which name it wherever it lies."""

    image: ImageFile
    digest: str
    size: tuple[int, int]


class Caption(NamedTuple):
    """A text and the references that the text encoder sees beside it."""

    text: str
    references: tuple[Shot, ...] = ()


Item = TypeVar("Item")


class Cache:
    """Raises TrainerError where the folder cannot be used."""

    def __init__(self, folder: Path, text: Encoder, image: Encoder | None = None, dtype: torch.dtype = torch.bfloat16):
        self.folder, self.text, self.image, self.dtype = Path(folder), text, image, dtype

    def latents_path(self, shot: Shot) -> Path:
        assert self.image is not None
        return self._path("latents", self.image.identity, shot.digest, shot.size)

    def caption_path(self, caption: Caption) -> Path:
        seen = [(shot.digest, shot.size) for shot in caption.references]
        return self._path("captions", self.text.identity, caption.text, seen)

    def _path(self, kind: str, *about) -> Path:
        key = hashlib.sha256(json.dumps([VERSION, kind, str(self.dtype), *about]).encode()).hexdigest()[:32]
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def latents(self, shot: Shot) -> Tensor:
        path = self.latents_path(shot)
        return self._read(path, lambda: latents_in(path))

    def prompt(self, caption: Caption) -> Prompt:
        path = self.caption_path(caption)
        return self._read(path, lambda: prompt_in(path))

    def _read(self, path: Path, read: Callable):
        try:
            return read()
        except WeightsError as error:
            path.unlink(missing_ok=True)  # only an encoder can mend it, and that is not in memory any more
            raise TrainerError(
                f"cache: damaged while training: {error}. Run the same command again: it is encoded anew, and training goes on"
            ) from None

    @staticmethod
    def _is_whole(path: Path) -> bool:
        """Whether the file is there; one that was cut is said, and not counted."""
        if not path.exists():
            return False
        try:
            read_header(path)
        except WeightsError:
            tqdm.write(f"cache: {path} is damaged, and is encoded anew")
            return False
        return True

    def fault(self, shot: Shot) -> str | None:
        """Why this image has no latents; None where it has some."""
        if self.latents_path(shot).exists():
            return None
        try:
            return self._fault_path(shot).read_text("utf-8")
        except FileNotFoundError:
            raise TrainerError(
                f"{self.latents_path(shot)}: is missing though its process is done; run the same command again"
            ) from None

    def _fault_path(self, shot: Shot) -> Path:
        return self.latents_path(shot).with_suffix(".fault")

    @torch.no_grad()
    def fill(self, shots: Iterable[Shot], captions: Iterable[Caption], *, batch: int, share: tuple[int, int], quiet: bool):
        """Encode what is missing of this process' share (process, processes); each encoder is loaded, used, and freed."""
        try:
            if share[0] == 0:
                remove_leftovers(self.folder, "**/*")
            if self.image:
                self._fill_latents(self._share(shots, self.latents_path, share), batch, quiet)
                free()
            self._fill_captions(self._share(captions, self.caption_path, share), batch, quiet)
            free()
        except (OSError, SafetensorError) as error:
            raise Lost(f"cache: {self.folder} cannot be written ({error}); expected a writable folder with space") from None

    @staticmethod
    def _share(items: Iterable[Item], path: Callable[[Item], Path], share: tuple[int, int]) -> dict[Path, Item]:
        """By path, each once.  Dealt out before looking at what exists, or processes would disagree on whose is whose."""
        by_path = {path(item): item for item in items}
        return {p: by_path[p] for p in sorted(by_path)[share[0] :: share[1]]}

    def _fill_latents(self, mine: dict[Path, Shot], batch: int, quiet: bool) -> None:
        missing = [s for path, s in mine.items() if not self._is_whole(path) and not self._fault_path(s).exists()]
        missing.sort(key=lambda s: (s.size, s.image))  # of one size side by side, and parquet rows in their order
        encode: Any = self.image.open() if missing and self.image else None
        for group in progress("images", len(mine), missing, batch, quiet, lambda s: s.size):
            ready = {}
            for shot in group:
                try:
                    ready[shot] = pixels(shot.image.read(), shot.size)
                except Broken as fault:
                    self._note(shot, f"broken image: {fault}")
            for shot, latents in zip(ready, encode(torch.stack(list(ready.values()))) if ready else (), strict=True):
                if latents.isfinite().all():
                    self._write(self.latents_path(shot), lambda p, x=latents: save({"latents": x.to(self.dtype)}, p))
                else:
                    self._note(shot, "latents are not finite: the image encoder overflows here")

    def _fill_captions(self, mine: dict[Path, Caption], batch: int, quiet: bool) -> None:
        missing = [c for path, c in mine.items() if not self._is_whole(path)]
        missing.sort(key=lambda c: (sizes(c), len(c.text)))  # of like length side by side: little padding
        encode: Any = self.text.open() if missing else None
        for group in progress("captions", len(mine), missing, batch, quiet, sizes):
            ready = {}
            for caption in group:
                try:
                    ready[caption] = [pixels(s.image.read(), s.size) for s in caption.references]
                except Broken:
                    pass  # noted with its latents, maybe by another process
            seen = [list(ready.values())] if ready and group[0].references else []
            prompts = encode([c.text for c in ready], *seen) if ready else ()
            for caption, prompt in zip(ready, prompts, strict=True):
                pooled = None if prompt.pooled is None else prompt.pooled.to(self.dtype)
                prompt = Prompt(caption.text, prompt.embeds.to(self.dtype), pooled)
                self._write(self.caption_path(caption), lambda p, x=prompt: save_prompts(p, {"prompt": x}))

    def _note(self, shot: Shot, why: str) -> None:
        self._write(self._fault_path(shot), lambda p: write_text(why, p))

    @staticmethod
    def _write(path: Path, write: Callable[[Path], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)


def latents_in(path: Path) -> Tensor:
    """(C, h, w).  Raises WeightsError."""
    found = load(path, ["latents"])["latents"]
    if found.ndim != 3 or not found.is_floating_point():
        raise WeightsError(f"{path}: holds {tuple(found.shape)} {found.dtype}; expected latents (C, h, w)")
    return found


def prompt_in(path: Path) -> Prompt:
    """Raises WeightsError."""
    found = load_prompts(path)
    if found.keys() != {"prompt"}:
        raise WeightsError(f"{path}: holds {len(found)} prompts; expected one, of a cache")
    return found["prompt"]


def sizes(caption: Caption) -> list[tuple[int, int]]:
    return [shot.size for shot in caption.references]


def progress(what: str, total: int, missing: Sequence, batch: int, quiet: bool, key: Callable) -> Iterator[list]:
    """Groups of up to `batch` neighbours with an equal key, under a progress bar that counts what was there before."""
    bar = tqdm(total=total, initial=total - len(missing), desc=f"encoding {what}", unit="", disable=quiet or not missing)
    with bar:
        for _, alike in groupby(missing, key):
            alike = list(alike)
            for start in range(0, len(alike), batch):
                yield (group := alike[start : start + batch])
                bar.update(len(group))


def free() -> None:
    """Give back what an encoder that nobody holds any more has had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
