"""Rows of training data from where they lie: folders of images, tables, or a text file of prompts.

Nothing is decoded here.  A row that cannot be used is named in the report; a source that cannot be read is an error.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import TrainerError
from . import folders, tables, texts
from .report import Report
from .row import ImageFile, Row

__all__ = ["ImageFile", "Row", "read"]

MOST = 10**7  # rows of an epoch, repeats counted, for which there is memory


class Source(NamedTuple):
    path: Path
    repeats: int


def read(data: str, report: Report, *, edit: bool, image_free: bool, caption: str = "", lines: bool = False) -> list[Row]:
    """All usable rows of sources such as "photos*3,more.jsonl" (the first counts thrice).

    edit: rows need references.  image_free: rows need no images.  caption: of rows that have none; empty: skip those.
    lines: captions beside images are a caption a line; otherwise the whole file is one.  Raises TrainerError.
    """
    rows = []
    for path, repeats in sources(data):
        for row in _rows(path, report, edit, lines):
            row = row._replace(
                captions=tuple(c.strip(texts.BLANKS) for c in row.captions if c.strip()) or ((caption,) if caption else ()),
                repeats=row.repeats * repeats,
            )
            if not row.captions:
                report.skip("empty caption", row.name)
            elif row.target is None and not image_free:
                report.skip("no image named", row.name)
            elif bool(row.references) != edit and (edit or not image_free):
                expected = "a source image for every row" if edit else "a model that edits, or rows without a source"
                raise TrainerError(f"data: {row.name} has {len(row.references)} source images; expected {expected}")
            elif row.repeats:
                rows.append(row)
    if (total := sum(row.repeats for row in rows)) > MOST:
        raise TrainerError(f"data: {data!r} repeats its rows to {total}; expected at most {MOST}, so repeat them less often")
    return rows


def sources(data: str) -> list[Source]:
    """The paths of a comma-separated list, each with how often it counts.  Raises TrainerError.

    A path with a comma or star may be written as it is where it exists, and otherwise in double quotes, a quote in it twice.
    """
    found = []
    parts = re.findall(r'(?:^|,)(\s*"(?:[^"]|"")*"[^,]*|[^,]*)', data)
    while parts:
        joined = next((n for n in range(len(parts), 1, -1) if there(_path(",".join(parts[:n])))), 1)
        item = ",".join(parts[:joined]).strip()
        del parts[:joined]
        if item:
            found.append(_source(item))
    return found


def there(path: str) -> bool:
    """Also with repeats behind it."""
    return os.path.exists(path) or bool(re.fullmatch(r".*\*\d+", path)) and os.path.exists(path.rpartition("*")[0])


def _path(text: str) -> str:
    return os.path.expanduser(text.strip())


def _source(item: str) -> Source:
    if os.path.exists(_path(item)):
        return Source(Path(_path(item)), 1)
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"\s*(?:\*\s*(\d+))?', item)
    path = _path(quoted[1].replace('""', '"') if quoted else item)
    times = number(quoted[2]) if quoted and quoted[2] else 1
    name, star, count = path.rpartition("*")
    if not star or os.path.exists(path):
        return Source(Path(path), times)
    if not (count.isascii() and count.isdecimal()):
        raise TrainerError(f"data: {item!r} does not end in a number; expected a path, or path*repeats such as photos*3")
    return Source(Path(name), number(count) * times)


def number(digits: str) -> int:
    """Of any length, which int() has a limit for; none beyond what is refused."""
    return min(int(digits), MOST + 1) if len(digits) < 20 else MOST + 1


def _rows(path: Path, report: Report, edit: bool, lines: bool) -> Iterator[Row]:
    kind = path.suffix.lower()
    try:
        if path.is_dir():
            yield from folders.read(path, report, edit=edit, lines=lines)
        elif kind in tables.KINDS and path.exists():
            yield from tables.read(path, report)
        elif kind == ".txt" and path.exists():
            prompts = texts.read(path).split("\n")
            yield from (Row(f"{path}:{n}", (line,), None) for n, line in enumerate(prompts, 1) if line.strip())
        else:
            known = "a folder of images, a table (" + ", ".join(tables.KINDS) + "), or a .txt file of prompts"
            raise TrainerError(f"data: {path} {'is of no known kind' if path.exists() else 'does not exist'}; expected {known}")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(f"data: {path} cannot be read ({error}); expected a readable file in UTF-8") from None
