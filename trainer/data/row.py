"""One row of training data, and where its images' bytes lie.  Nothing is decoded here."""

from pathlib import Path
from typing import NamedTuple

from . import parquet
from .sources import Source


class ImageFile(NamedTuple):
    """Where an image's bytes lie: a file, or a cell of a parquet file.  item: of a cell that holds several."""

    path: Path
    column: str = ""
    row: int = 0
    item: int | None = None

    def read(self) -> bytes:
        """Raises OSError, also for an empty cell.  A cell is bytes, or as Hugging Face has it {bytes, path}."""
        if not self.column:
            return self.path.read_bytes()
        data = parquet.cell(self.path, self.column, self.row, self.item)
        if isinstance(data, dict):
            inside, beside = data.get("bytes"), data.get("path")
            data = inside if inside or not isinstance(beside, str) else beside
        if isinstance(data, str) and "\0" not in data:
            file = self.path.parent / data
            data = (file if file.exists() else self.path.parent / data.replace("\\", "/")).read_bytes()
        if not isinstance(data, bytes):
            raise FileNotFoundError(f"no bytes in column {self.column!r}")
        return data


class Row(NamedTuple):
    """name: for reports.  captions: one is drawn each time.  target: None without an image.  references: of an edit.

    source: where it came from.
    """

    name: str
    captions: tuple[str, ...]
    target: ImageFile | None
    references: tuple[ImageFile, ...] = ()
    repeats: int = 1
    source: Source = Source()
