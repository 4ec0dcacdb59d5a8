"""What is asked of the data: where they lie, what the model needs, and what holds for all of them."""

from dataclasses import dataclass

from .. import TrainerError
from . import rows
from .report import Report
from .sources import Source


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

    def expected(self, report: Report) -> str:
        """Of data that hold no usable row."""
        if self.image_free:
            return "prompts"
        if "no image named" in report.skipped:
            return "images with captions (prompts alone are for --image-free)"
        if "empty caption" in report.skipped:
            return "images with captions: a .txt file beside each, or --caption TEXT for all"
        return "images with captions"

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
