"""From sources to batches: read the rows, choose their buckets, fill the cache, and serve batches by number.

The loop asks `data.batch_at(index, batch, seed)`, index counting micro-batches over all processes from the run's start:

    index = (step * accumulation + part) * processes + process
    x, cond, uncond = data.batch_at(index, batch, seed)

Rows, bucket, captions and dropped captions are functions of (seed, index) alone.  A batch lies in one bucket, so x is one
tensor; cond and uncond are padded to one length; everything is on the CPU in the cache's dtype, but x in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .. import TrainerError
from ..seeds import seed_of
from . import rows
from .buckets import Buckets
from .cache import Cache, Caption, Shot
from .digests import Digests
from .image_files import Broken
from .order import Order
from .report import Report
from .sources import Source

Collate = Callable[[list[Prompt]], Condition]
LEAST = 0.5  # share of an image that is kept, below which it is noted


@dataclass(frozen=True)
class DataRequest:
    """data: sources, comma-separated (see rows.sources).  multiple: of both sides of an image, what the model needs.

    dataset: a file of them, in place of data.  aspects: of rows without images, when image_free.  encode_batch: images or
    captions an encoder gets at a time.  captions: "whole", or "lines": a text file beside an image is one caption, or one a
    line.  upscale_limit: images that are enlarged more than this are noted.  resolution and what concerns captions hold for
    all sources that say nothing else (see sources.Source).
    """

    data: str
    resolution: int
    multiple: int
    aspect: float
    aspects: str
    encode_batch: int
    edit: bool = False
    image_free: bool = False
    caption: str = ""
    captions: str = "whole"
    upscale_limit: float = 2.0
    null_prompt: str = ""
    caption_dropout: float = 0.0
    dataset: str = ""
    trigger: str = ""
    shuffle_tags: int = 1
    keep_tags: int = 0

    def sources(self) -> list[Source]:
        """Raises TrainerError."""
        defaults = Source(
            resolutions=(self.resolution,), caption=self.caption, lines=self.captions == "lines", trigger=self.trigger,
            orders=self.shuffle_tags, keep=self.keep_tags, dropout=self.caption_dropout,
        )  # fmt: skip
        found = rows.sources(self.data, self.dataset, defaults)
        for source in found:
            if wrong := [r for r in source.resolutions if r % self.multiple]:
                raise TrainerError(
                    f"--resolution is {wrong[0]} ({source.path}); expected a multiple of {self.multiple} for this model"
                )
        return found


class Sample(NamedTuple):
    """One row at one resolution, ready to be looked up; size (height, width) in pixels; dropout: share of the null prompt."""

    name: str
    captions: tuple[Caption, ...]
    null: Caption
    size: tuple[int, int]
    target: Shot | None
    references: tuple[Shot, ...]
    repeats: int
    dropout: float

    @property
    def bucket(self):
        return self.size, tuple(shot.size for shot in self.references)


class CachedData:
    """Rows whose encodings all lie in the cache; see the module for the contract of batch_at.

    latents: the shape (C, h, w) of an image's latents by its size in pixels; asked only for rows without images.
    """

    def __init__(self, cache: Cache, samples: Sequence[Sample], collate: Collate, *, latents=None):
        self.cache, self.collate, self.latents = cache, collate, latents
        self.rows = [sample for sample in samples for _ in range(sample.repeats)]
        buckets: dict[tuple, list[int]] = {}
        for i, sample in enumerate(self.rows):
            buckets.setdefault(sample.bucket, []).append(i)
        self.order = Order(list(buckets.values()))

    def __len__(self) -> int:
        """Rows an epoch, repeats counted."""
        return len(self.rows)

    def batch_at(self, index: int, batch: int, seed: int) -> tuple[Tensor, Condition, Condition]:
        """x (B, C, h, w), zeros where rows have no images; cond, uncond; an edit's reference latents end both of these."""
        drawn = self.order.batch(index, batch, seed)
        rows = [self.rows[row] for _, row in drawn]
        prompts = [self.cache.prompt(self.caption(epoch, row, seed)) for epoch, row in drawn]
        both = self.collate(prompts + [self.cache.prompt(sample.null) for sample in rows])
        seen = tuple(self._stack(shots) for shots in zip(*(sample.references for sample in rows), strict=True))
        cond, uncond = (tuple(c[part] for c in both) + seen for part in (slice(batch), slice(batch, None)))
        if rows[0].target:
            return self._stack([sample.target for sample in rows]), cond, uncond
        assert self.latents is not None  # of rows without images the caller gives the shape
        return torch.zeros(batch, *self.latents(*rows[0].size)), cond, uncond

    def first(self, count: int | None) -> list[tuple[Caption, tuple[int, int], Condition]]:
        """Of so many different rows from the first on (None: all): the first caption, the size, the condition for one row."""
        once: dict[tuple[str, str], Sample] = {}  # the first where a row has several sizes
        for sample in self.rows:
            once.setdefault((sample.name, sample.captions[0].text), sample)
        samples, latents = list(once.values())[:count], lambda shot: self._stack([shot])
        return [
            (s.captions[0], s.size, self.collate([self.cache.prompt(s.captions[0])]) + tuple(map(latents, s.references)))
            for s in samples
        ]

    def caption(self, epoch: int, row: int, seed: int) -> Caption:
        """The caption that this row has in this epoch, which may be the null prompt."""
        sample = self.rows[row]
        if seed_of(seed, "drop", epoch, row) < sample.dropout * 2**56:  # seeds are uniform over 56 bits
            return sample.null
        return sample.captions[seed_of(seed, "caption", epoch, row) % len(sample.captions)]

    def _stack(self, shots) -> Tensor:
        return torch.stack([self.cache.latents(shot) for shot in shots]).float()


def prepare(
    request: DataRequest,
    cache: Cache,
    collate: Collate,
    *,
    latents: Callable[[int, int], tuple[int, int, int]] | None = None,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> tuple[CachedData, Report]:
    """Everything up to the first batch; afterwards no encoder is in memory.

    share: this process and how many there are; wait: returns when all have called it (accelerate's wait_for_everyone).
    Raises TrainerError, also when no row is left.
    """
    report = Report()
    if not 0 <= request.caption_dropout <= 1:
        raise TrainerError(f"caption_dropout is {request.caption_dropout}; expected a share between 0 and 1")
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainerError(f"cache: {cache.folder} cannot be made ({error.strerror}); expected a writable folder") from None
    found = rows.read(request.sources(), report, edit=request.edit, image_free=request.image_free)
    samples = survey(found, request, cache.folder, report, share[0])
    if share[0] == 0:  # whose report it is
        count_tokens(samples, cache.text.counter(), report)
    cache.fill(
        [shot for s in samples for shot in shots(s)],
        [caption for s in samples for caption in (*s.captions, s.null)],
        batch=request.encode_batch,
        share=share,
        quiet=share[0] != 0,
    )
    wait()
    samples = [sample for sample in samples if usable(sample, cache, report)]
    for sample in samples:
        size = f"{sample.size[1]}x{sample.size[0]}"
        report.buckets[size] = report.buckets.get(size, 0) + sample.repeats
    report.used = sum(sample.repeats for sample in samples)
    if not samples:
        raise TrainerError(
            f"data: {request.dataset or request.data!r} holds no usable row ({report}); expected images with captions"
        )
    return CachedData(cache, samples, collate, latents=latents), report


def survey(found: list[rows.Row], request: DataRequest, folder: Path, report: Report, process: int) -> list[Sample]:
    """The rows at their resolutions, with the digests and sizes of their images; images that cannot be opened are reported."""
    digests, samples = Digests(folder / "digests.json"), []
    sizes = {r: Buckets(r, request.multiple, request.aspect) for row in found for r in row.source.resolutions}
    free = {r: buckets.parse(request.aspects) for r, buckets in sizes.items()}
    first: dict[str, rows.Row] = {}  # by the content of its target
    for row in tqdm(found, desc="looking at rows", unit="", disable=process != 0, delay=1):
        try:
            wanted = [*([] if request.image_free else [row.target]), *(row.references if request.edit else ())]
            seen = [(image, *digests(image)) for image in wanted if image]
        except Broken as fault:
            report.skip("broken image", f"{row.name} ({fault})")
            continue
        except OSError as error:
            report.skip("image cannot be read", f"{row.name} ({error.strerror or error})")
            continue
        for image, digest, _ in seen:
            for remark in digests.remarks(image):
                report.note(remark, row.name)
            if image == row.target and (other := first.setdefault(digest, row)).target != image:
                report.note("image with the same content as another", f"{row.name} (as {other.name})")
        for resolution in row.source.resolutions:
            every = [Shot(image, digest, sizes[resolution].nearest(*size)) for image, digest, size in seen]
            for shot, (_, _, size) in zip(every, seen):
                note_fit(row, size, shot.size, request.upscale_limit, report)
            target, references = (None if request.image_free else every[0]), tuple(every[0 if request.image_free else 1 :])
            captions = tuple(Caption(text, references) for text in row.captions)
            cut = target.size if target else free[resolution][seed_of(row.captions) % len(free[resolution])]
            null = Caption(request.null_prompt, references)
            samples.append(Sample(row.name, captions, null, cut, target, references, row.repeats, row.source.dropout))
    if process == 0:
        digests.save()
    return samples


def note_fit(row: rows.Row, size: tuple[int, int], cut: tuple[int, int], limit: float, report: Report) -> None:
    """Note an image that is much enlarged, or much of which is cut off."""
    scale, kept = fit(size, cut)
    at = f", at {cut[1]}x{cut[0]}" if len(row.source.resolutions) > 1 else ""
    if scale > limit:
        report.note(f"image enlarged more than {limit:g} times", f"{row.name} ({scale:.3g} times{at})")
    if kept < LEAST:
        report.note(f"image of which more than {1 - LEAST:.0%} is cut off", f"{row.name} ({1 - kept:.0%}{at})")


def count_tokens(samples: list[Sample], count: Callable[[str], dict[str, tuple[int, int]]], report: Report) -> None:
    """Note the captions of which the text encoders do not read the end."""
    for name, text in dict.fromkeys((s.name, caption.text) for s in samples for caption in s.captions):
        for reader, (tokens, most) in count(text).items():
            if tokens > most:
                report.note(f"caption longer than {reader} reads", f"{name} ({tokens} tokens, of which {most} are read)")


def fit(size: tuple[int, int], cut: tuple[int, int]) -> tuple[float, float]:
    """How often an image (height, width) is enlarged to cover a size, and the share of it that is then within."""
    scale = max(cut[0] / size[0], cut[1] / size[1])
    return scale, cut[0] * cut[1] / (scale**2 * size[0] * size[1])


def shots(sample: Sample) -> list[Shot]:
    return [shot for shot in (sample.target, *sample.references) if shot]


def usable(sample: Sample, cache: Cache, report: Report) -> bool:
    """Whether all its images have latents; if not, it is reported."""
    for shot in shots(sample):
        if fault := cache.fault(shot):
            why, _, detail = fault.partition(": ")
            report.skip(why, f"{sample.name} ({detail})")
            return False
    return True
