"""From sources to batches: read the rows, choose their buckets, fill the cache, and serve batches by number.

The loop asks `data.batch_at(index, batch, seed)`, index counting micro-batches over all processes from the run's start:

    index = (step * accumulation + part) * processes + process
    x, cond, uncond = data.batch_at(index, batch, seed)

Rows, bucket, captions and dropped captions are functions of (seed, index) alone.  A batch lies in one bucket, so x is one
tensor; cond and uncond are padded to one length; everything is on the CPU in the cache's dtype, but x in float32.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .. import TrainerError
from ..seeds import seed_of
from . import rows
from .cache import Cache, Caption
from .order import Order
from .report import Report
from .request import DataRequest
from .survey import Sample, count_tokens, shots, survey, usable

Collate = Callable[[list[Prompt]], Condition]


class CachedData:
    """Rows whose encodings all lie in the cache; see the module for the contract of batch_at.

    latents: the shape (C, h, w) of an image's latents by its size in pixels; asked only for rows without images.
    """

    def __init__(self, cache: Cache, samples: Sequence[Sample], collate: Collate, *, latents=None):
        self.cache, self.collate, self.latents = cache, collate, latents
        self.null = lru_cache(maxsize=4)(cache.prompt)
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
        prompts = [self.prompt(self.rows[row], self.caption(epoch, row, seed)) for epoch, row in drawn]
        both = self.collate(prompts + [self.prompt(sample, sample.null) for sample in rows])
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

    @property
    def content(self) -> str:
        """A hash of all that the rows are, in their order, wherever they lie and whatever their files are called."""
        seen = lambda shot: shot and (shot.digest, shot.size)
        said = lambda caption: (caption.text, [seen(shot) for shot in caption.references])
        digest = hashlib.sha256()
        for _, same in groupby(self.rows, key=id):  # a row that is repeated stands side by side
            s, *more = same
            captions, shots = [said(c) for c in (*s.captions, s.null)], [seen(s.target), *map(seen, s.references)]
            digest.update(json.dumps([1 + len(more), s.size, s.dropout, captions, shots]).encode())
        return digest.hexdigest()[:16]

    def prompt(self, sample: Sample, caption: Caption) -> Prompt:
        """Encoded.  The null prompt, which every row shares (but those of an edit model), is read once."""
        return self.null(caption) if caption == sample.null else self.cache.prompt(caption)

    def _stack(self, shots) -> Tensor:
        return torch.stack([self.cache.latents(shot) for shot in shots]).float()


def look(request: DataRequest, report: Report) -> list[rows.Row]:
    """The rows of its sources, of which nothing is decoded.  Raises TrainerError."""
    return rows.read(request.sources(), report, edit=request.edit, image_free=request.image_free)


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
    found = look(request, report)
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
            f"data: {request.dataset or request.data!r} holds no usable row ({report}); expected {request.expected(report)}"
        )
    made = CachedData(cache, samples, collate, latents=latents)
    report.content = made.content
    return made, report
