"""Tables of rows: JSONL, JSON, CSV and parquet, under the names that people and other trainers give to columns.

Paths in a table are relative to it.  A row that cannot be used is named in the report; a file that is no table is an error.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from twinflow.plain_json import loads

from .. import TrainerError
from . import parquet, texts
from .image_files import SUFFIXES
from .report import Report
from .row import ImageFile, Row

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

# Under which name a value is looked for, the first found winning: ours, then those of other trainers' files and of the hub.
CAPTION = ("text", "texts", "instruction", "caption", "captions", "prompt", "edit_prompt", "txt", "tags")
TARGET = (
    "image",
    "target",
    "file_name",
    "image_path",
    "target_image",
    "edited_image",
    "image_file",
    "img",
    "jpg",
    "png",
    "webp",
)
REFERENCE = (  # and with s, _0, _1
    "source", "control_path", "edit_image", "source_image", "control_image", "input_image", "reference_image",
)  # fmt: skip


class Unusable(ValueError):
    """A row that cannot be read; the message says why."""


def read(path: Path, report: Report) -> Iterator[Row]:
    """Raises TrainerError, OSError and UnicodeDecodeError."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path, report)
    elif kind in (".csv", ".tsv"):
        yield from _csv(path, report, "\t" if kind == ".tsv" else "")
    else:
        yield from _json(path, report)


def _json(path: Path, report: Report) -> Iterator[Row]:
    """One array of objects, one object of objects by image, or an object a line."""
    text, wrong = texts.read(path), "not a JSON object of image and text"
    whole = _loads(text)
    if isinstance(whole, list):
        rows = enumerate(whole, 1)
    elif isinstance(whole, dict) and whole and all(isinstance(about, dict) for about in whole.values()):
        rows = enumerate(({"image": completed(path.parent, image), **about} for image, about in whole.items()), 1)
    else:
        rows = ((number, _loads(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for number, values in rows:
        name = f"{path}:{number}"
        try:
            yield _row(name, values, path.parent)
        except Unusable as why:
            report.skip(str(why), name)
        except (ValueError, TypeError, AttributeError):
            report.skip(wrong, name)


def _loads(text: str) -> Any:
    """None where it is not JSON."""
    try:
        return loads(text)
    except ValueError:
        return None


def _csv(path: Path, report: Report, separator: str) -> Iterator[Row]:
    """A header line, then a row a line; the separator may be a comma or, as some spreadsheets write, a semicolon."""
    text = texts.read(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(
        StringIO(text, newline=""), delimiter=separator or (";" if "," not in header and ";" in header else ",")
    )
    try:
        columns = [str(name).strip().lower() for name in reader.fieldnames or ()]
        if not columns:
            raise TrainerError(f"data: {path} is empty and so of no known kind; expected a header line, then a row a line")
        _expect_captions(path, columns)
        for values in reader:
            name = f"{path}:{reader.line_num}"
            try:
                yield _row(name, {k: v for k, v in values.items() if k is not None}, path.parent)
            except Unusable as why:
                report.skip(str(why), name)
            except (ValueError, TypeError, AttributeError):
                report.skip("not a row of image and text", name)
    except csv.Error as error:
        raise TrainerError(f"data: {path} is not a table ({error}); expected a header line, then a row a line") from None


def _expect_captions(path: Path, columns: list[str]) -> None:
    if not set(columns) & set(CAPTION):
        raise TrainerError(f"data: {path} has columns {', '.join(columns)}; expected text, and an image's path or bytes")


def _row(name: str, values: Mapping[str, Any], folder: Path) -> Row:
    """Of a JSON object or a CSV line.  Raises ValueError, TypeError or AttributeError for values of other kinds."""
    values = {key.strip().lower(): value for key, value in values.items()}
    target = next((values[key] for key in TARGET if values.get(key)), None)
    sources = [path for key in references(values) for path in _list(values[key])]
    captions = next((_texts(key, values[key]) for key in CAPTION if values.get(key)), [])
    return Row(
        name,
        tuple(captions),
        _file(folder, target) if target else None,
        tuple(_file(folder, source) for source in sources),
        _repeats(values.get("repeats")),
    )


def references(columns: Mapping[str, Any] | list[str]) -> list[str]:
    """The columns of source images, in order: of the first name found, plain and then by number."""
    for name in REFERENCE:
        numbered = {match: key for key in columns if (match := re.fullmatch(rf"{name}s?(?:_?(\d+))?(?:_bytes)?", key))}
        if found := [key for _, key in sorted((int(match[1] or -1), key) for match, key in numbered.items())]:
            return found
    return []


def _list(value: Any) -> list[Any]:
    """One value or several; a CSV's cell may hold several as a JSON list."""
    if isinstance(value, str) and value.startswith("["):
        value = _loads(value) or value
    return value if isinstance(value, list) else [value] if value else []


def _texts(key: str, value: Any) -> list[str]:
    """One caption or several; tags are one.  Raises ValueError or TypeError for what is not text, and halves of characters."""
    texts = value if isinstance(value, list) else [value] if value else []
    if "\0" in "".join(texts).encode().decode():
        raise ValueError
    return [", ".join(texts)] if key == "tags" else texts


def completed(folder: Path, name: str) -> str:
    """The image's name, also where a kohya's table leaves the suffix away."""
    if Path(name).suffix.lower() in SUFFIXES or (folder / name).exists() or "\0" in name:
        return name
    return next((own for end in SUFFIXES for own in (name + end, name + end.upper()) if (folder / own).exists()), name)


def _file(folder: Path, value: Any) -> ImageFile:
    """A path, or as Hugging Face has it {path}; one that Windows wrote is read elsewhere, too."""
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or "\0" in path:
        raise TypeError
    file = folder / path
    return ImageFile(folder / path.replace("\\", "/") if "\\" in path and not file.exists() else file)


def _repeats(value: Any) -> int:
    try:
        number = 1 if value in (None, "") else float(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, bool) or not 0 <= number < 1e9 or number % 1:
        raise Unusable("repeats is not a whole number from 0 on")
    return int(number)


def _parquet(path: Path, report: Report) -> Iterator[Row]:
    """Text (one, or a list) beside images: bytes, {bytes, path}, or paths."""
    names = {name.lower(): name for name in parquet.columns(path)}
    _expect_captions(path, list(names))
    text = names[next(name for name in CAPTION if name in names)]
    target = next((names[name] for own in TARGET for name in (f"{own}_bytes", own) if name in names), None)
    sources = [names[name] for name in references(list(names))]
    columns = [column for column in (target, *sources) if column]
    paths = {column: parquet.column(path, column) for column in columns if parquet.is_text(path, column)}
    counts = {column: parquet.lengths(path, column) for column in columns if parquet.is_list(path, column)}
    repeats = parquet.column(path, names["repeats"]) if "repeats" in names else None

    def images(column: str, number: int) -> list[ImageFile]:
        if column in counts:
            return [ImageFile(path, column, number, item) for item in range(counts[column][number])]
        if column not in paths:
            return [ImageFile(path, column, number)]
        return [_file(path.parent, paths[column][number])] if paths[column][number] else []

    for number, value in enumerate(parquet.column(path, text)):
        name = f"{path}:{number}"
        try:
            targets = images(target, number) if target else []
            if len(targets) > 1:
                raise Unusable("several target images")
            yield Row(
                name,
                tuple(_texts(text.lower(), [c for c in value if c] if isinstance(value, list) else value)),
                targets[0] if targets else None,
                tuple(found for column in sources for found in images(column, number)),
                _repeats(repeats[number]) if repeats else 1,
            )
        except Unusable as why:
            report.skip(str(why), name)
        except (TypeError, ValueError):
            report.skip("not a row of image and text", name)
