"""From rows to samples: every image's content and size are looked at, its bucket is chosen, and what is odd is noted."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..seeds import seed_of
from . import rows
from .buckets import Buckets
from .cache import Cache, Caption, Shot
from .digests import Digests
from .image_files import Broken
from .report import Report
from .request import DataRequest

LEAST = 0.5  # share of an image that is kept, below which it is noted


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
