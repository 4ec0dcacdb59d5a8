"""Rows of training data from where they lie: folders of images, tables, or a text file of prompts.

Nothing is decoded here.  A row that cannot be used is named in the report; a source that cannot be read is an error.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import TrainerError
from . import captions, datasets, folders, tables, texts
from .report import Report
from .row import ImageFile, Row
from .sources import FILES, MOST, Source, listed

__all__ = ["ImageFile", "Row", "read"]


def read(
    data: str | Sequence[Source], report: Report, *, edit: bool, image_free: bool, caption: str = "", lines: bool = False
) -> list[Row]:
    """All usable rows of sources, or of a list such as "photos*3,more.jsonl" (the first counts thrice).

    edit: rows need references.  image_free: rows need no images.  caption, lines: of a list, as a Source has them.
    Raises TrainerError.
    """
    found = listed(data, Source(caption=caption, lines=lines)) if isinstance(data, str) else data
    rows = [row for source in found for row in of(source, report, edit=edit, image_free=image_free)]
    if (total := sum(row.repeats * max(1, len(row.source.resolutions)) for row in rows)) > MOST:
        raise TrainerError(
            f"data: repeats make {total} rows of {len(rows)}; expected at most {MOST}, so repeat them less often"
        )
    return rows


def sources(data: str, dataset: str, defaults: Source) -> list[Source]:
    """Of a list by comma, in which files of data sets may stand, or of such a file.  Raises TrainerError."""
    if dataset:
        return datasets.read(Path(dataset).expanduser(), defaults)
    found = []
    for source in listed(data, defaults):
        if source.path.suffix.lower() in FILES:
            inner = datasets.read(source.path, defaults)
            found += [s._replace(repeats=s.repeats * source.repeats) for s in inner]
        else:
            found.append(source)
    return found


def of(source: Source, report: Report, *, edit: bool, image_free: bool) -> list[Row]:
    """The usable rows of one source.  Raises TrainerError."""
    rows, empty = [], True
    for row in _rows(source, report, edit):
        empty = False
        own = tuple(c.strip(texts.BLANKS) for c in row.captions if c.strip())
        if not own and (source.caption or source.trigger):
            report.note("no caption of its own", row.name)
        row = row._replace(captions=captions.made(own, source), repeats=row.repeats * source.repeats, source=source)
        if not row.captions:
            report.skip("empty caption", row.name)
        elif row.target is None and not image_free:
            report.skip("no image named", row.name)
        elif bool(row.references) != edit and (edit or not image_free):
            expected = "a source image for every row" if edit else "a model that edits, or rows without a source"
            raise TrainerError(f"data: {row.name} has {len(row.references)} source images; expected {expected}")
        elif row.repeats:
            rows.append(row)
        else:
            report.note("repeats 0, not trained on", row.name)
    if empty:
        report.note("source without a row", str(source.path))
    return rows


def _rows(source: Source, report: Report, edit: bool) -> Iterator[Row]:
    path, kind = source.path, source.path.suffix.lower()
    try:
        if path.is_dir():
            yield from folders.read(path, report, edit=edit, lines=source.lines)
        elif kind in tables.KINDS and path.exists():
            yield from tables.read(path, report)
        elif kind == ".txt" and path.exists():
            prompts = texts.read(path).split("\n")
            yield from (Row(f"{path}:{n}", (line,), None) for n, line in enumerate(prompts, 1) if line.strip())
        else:
            known = "a folder of images, a table (" + ", ".join(tables.KINDS) + "), or a .txt file of prompts"
            known += "; unpack an archive first" if kind in folders.ARCHIVES and path.exists() else ""
            raise TrainerError(f"data: {path} {'is of no known kind' if path.exists() else 'does not exist'}; expected {known}")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(f"data: {path} cannot be read ({error}); expected a readable file in UTF-8") from None
