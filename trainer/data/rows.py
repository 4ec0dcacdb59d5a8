"""Rows of training data from where they lie: a folder of images, JSONL, parquet, or a text file of prompts.

Nothing is decoded here.  A row that cannot be used is named in the report; a source that cannot be read is an error.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import TrainerError
from . import parquet
from .image_files import SUFFIXES
from .report import Report

# Under which name a value is looked for, the first found winning: ours, then those of other trainers' files.
CAPTION = ("text", "texts", "instruction", "caption", "prompt")
TARGET = ("image", "target", "file_name", "image_path")
REFERENCE = ("source", "sources", "control_path")


class ImageFile(NamedTuple):
    """Where an image's bytes lie: a file, or a cell of a parquet file."""

    path: Path
    column: str = ""
    row: int = 0

    def read(self) -> bytes:
        """Raises OSError, also for an empty cell."""
        if not self.column:
            return self.path.read_bytes()
        data = parquet.cell(self.path, self.column, self.row)
        if not isinstance(data, bytes):
            raise FileNotFoundError(f"no bytes in column {self.column!r}")
        return data


class Row(NamedTuple):
    """name: for reports.  captions: one is drawn each time.  target: None without an image.  references: of an edit."""

    name: str
    captions: tuple[str, ...]
    target: ImageFile | None
    references: tuple[ImageFile, ...] = ()
    repeats: int = 1


def read(data: str, report: Report, *, edit: bool, image_free: bool, caption: str = "") -> list[Row]:
    """All usable rows of sources such as "photos*3,more.jsonl" (the first counts thrice).

    edit: rows need references.  image_free: rows need no images.  caption: of rows that have none; empty: skip those.
    Raises TrainerError.
    """
    rows = []
    for item in filter(None, (part.strip() for part in data.split(","))):
        name, star, count = item.rpartition("*")
        if star and not count.isdecimal():
            raise TrainerError(f"data: {item!r} does not end in a number; expected a path, or path*repeats such as photos*3")
        path = Path(name if star else item).expanduser()
        for row in _rows(path, report, edit):
            row = row._replace(
                captions=tuple(c.strip() for c in row.captions if c.strip()) or ((caption,) if caption else ()),
                repeats=row.repeats * (int(count) if star else 1),
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
    return rows


def _rows(path: Path, report: Report, edit: bool) -> Iterator[Row]:
    try:
        if path.is_dir():
            tables = sorted(path.glob("*.parquet"))
            yield from (row for table in tables for row in _parquet(table)) if tables else _folder(path, report, edit)
        elif path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix in (".jsonl", ".json"):
            yield from _jsonl(path, report)
        elif path.suffix == ".txt":
            lines = path.read_text("utf-8-sig").splitlines()
            yield from (Row(f"{path}:{n}", (line,), None) for n, line in enumerate(lines, 1) if line.strip())
        else:
            known = "a folder of images, .jsonl, .parquet, or a .txt file of prompts"
            raise TrainerError(f"data: {path} {'is of no known kind' if path.exists() else 'does not exist'}; expected {known}")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(f"data: {path} cannot be read ({error}); expected a readable file in UTF-8") from None


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _folder(folder: Path, report: Report, edit: bool) -> Iterator[Row]:
    """Images with a .txt beside each; for edits under target/, with namesakes under source/, source_2/, ..."""
    targets, sources, namesakes = folder, [], []
    if edit:
        targets, sources = folder / "target", sorted(p for p in folder.glob("source*") if p.is_dir())
        if not targets.is_dir() or not sources:
            raise TrainerError(f"data: {folder} has no source/ and target/; expected both, or a .jsonl with source and target")
        namesakes = [{p.relative_to(s).with_suffix(""): p for p in _images(s)} for s in sources]
    for path in _images(targets):
        references = []
        if edit:
            found = [names.get(path.relative_to(targets).with_suffix("")) for names in namesakes]
            references = [ImageFile(p) for p in found if p]
            if not references:
                report.skip("no source image of this name", str(path))
                continue
        try:
            captions = path.with_suffix(".txt").read_text("utf-8-sig").splitlines()
        except FileNotFoundError:
            captions = []
        except UnicodeDecodeError:
            report.skip("caption is not UTF-8", str(path))
            continue
        yield Row(str(path), tuple(captions), ImageFile(path), tuple(references))


def _jsonl(path: Path, report: Report) -> Iterator[Row]:
    """One object a line: image (or target) and text (one, or a list), for edits source; paths relative to the file."""
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            captions, sources = (_list(_first(values, names)) for names in (CAPTION, REFERENCE))
            target = _first(values, TARGET)
            yield Row(
                f"{path}:{number}",
                tuple(captions),
                ImageFile(path.parent / target) if target else None,
                tuple(ImageFile(path.parent / s) for s in sources),
                int(values.get("repeats", 1)),
            )
        except (ValueError, TypeError, AttributeError):
            report.skip("not a JSON object of image and text", f"{path}:{number}")


def _first(values: dict, names: tuple[str, ...]):
    return next((values[name] for name in names if values.get(name)), None)


def _list(value) -> list[str]:
    values = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(v, str) for v in values):
        raise ValueError
    return values


def _parquet(path: Path) -> Iterator[Row]:
    """Columns text (one, or a list) and image_bytes; for edits instruction, target_bytes and source_bytes."""
    columns = parquet.columns(path)
    text = next((c for c in CAPTION if c in columns), None)
    if text is None:
        raise TrainerError(f"data: {path} has columns {', '.join(columns)}; expected text and image_bytes")
    image = next((c for c in ("image_bytes", "target_bytes") if c in columns), None)
    source = "source_bytes" if "source_bytes" in columns else None
    for number, value in enumerate(parquet.column(path, text)):
        captions = value if isinstance(value, list) else [value]
        yield Row(
            f"{path}:{number}",
            tuple(c for c in captions if isinstance(c, str)),
            ImageFile(path, image, number) if image else None,
            (ImageFile(path, source, number),) if source else (),
        )
