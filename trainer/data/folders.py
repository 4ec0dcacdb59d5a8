"""A folder of images with their captions beside them, and with tables, as people and other trainers lay them out."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .. import TrainerError
from . import tables, texts
from .image_files import SUFFIXES, readable
from .report import Report
from .row import ImageFile, Row

CAPTIONS = (".txt", ".caption")
NOT_DATA = {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
JUNK = {"thumbs.db", "desktop.ini", "readme.md", "license"}
METADATA = tuple(f"metadata{kind}" for kind in tables.KINDS)
ARCHIVES = (".tar", ".zip", ".gz", ".tgz", ".7z", ".rar", ".arrow")  # and other files that may hold images, never read
UNREAD = (*tables.KINDS, *ARCHIVES)  # where they are not metadata, and no parquet
REPEATED = re.compile(r"([1-9]\d{0,2})_.+")  # kohya's name of a folder; four digits are rather a year
TRAIN = re.compile(r"(train|training)([-_.]\d.*)?")  # names of the hub's splits, of files and of folders
TEST = re.compile(r"(test|testing|eval|evaluation|validation|valid|val|dev)([-_.]\d.*)?")
RUN = ("metrics.csv", "metrics.json", "samples", "base.safetensors")  # one of which a run has beside config.json


def read(folder: Path, report: Report, *, edit: bool, lines: bool) -> Iterator[Row]:
    """Rows of the tables in a folder, and of all its images that no table names.  Raises TrainerError and OSError.

    For edits the images lie under target/, with namesakes under source/, source_2/, ...  lines: a caption a line.
    """
    files = without_tests(listed(folder, report), folder, report)
    read_tables = [p for p in files if p.suffix.lower() == ".parquet" or p.name.lower() in METADATA]
    for second in second_tables(read_tables):
        report.note("second table of the same images, not read", str(second))
        read_tables.remove(second)
    named = set()
    for table in read_tables:
        for row in tables.read(table, report):
            named |= {os.path.abspath(image.path) for image in (row.target, *row.references) if image and not image.column}
            yield row
    images = [p for p in files if p.suffix.lower() in SUFFIXES and os.path.abspath(p) not in named]
    stems = {p.with_suffix("") for p in files if p.suffix.lower() in SUFFIXES}
    known_kinds = {*SUFFIXES, *CAPTIONS, *UNREAD}
    for path in files:
        kind = path.suffix.lower()
        sidecar = kind == ".json" and path.with_suffix("") in stems
        if kind in UNREAD and path not in read_tables and not sidecar and path.name.lower() not in METADATA:
            report.note("table or archive in the folder, not read", str(path))
        elif kind in CAPTIONS and not edit and path.with_suffix("") not in stems:
            report.note("caption file without an image", str(path))
        elif kind not in known_kinds and path.name.lower() not in JUNK:
            report.note("file of another kind, not read", str(path))
    if edit:
        sources = sorted(p for p in folder.glob("source*") if p.is_dir())
        if (folder / "target").is_dir() and sources:
            yield from _pairs(folder / "target", sources, images, files, report, lines)
        elif not read_tables:
            raise TrainerError(f"data: {folder} has no source/ and target/; expected both, or a .jsonl with source and target")
    else:
        yield from _captioned(folder, images, files, report, lines)


def _pairs(target: Path, sources: list[Path], images: list[Path], files: list[Path], report: Report, lines: bool):
    below = lambda root: {p.relative_to(root).with_suffix(""): p for p in images if p.is_relative_to(root) and known(p)}
    namesakes = [below(source) for source in sources]
    for row in _captioned(target, [p for p in images if p.is_relative_to(target)], files, report, lines):
        assert row.target
        name = row.target.path.relative_to(target).with_suffix("")
        if found := tuple(ImageFile(names[name]) for names in namesakes if name in names):
            yield row._replace(references=found)
        else:
            report.skip("no source image of this name", row.name)


def second_tables(found: list[Path]) -> list[Path]:
    """Of several metadata files in one folder, all but the first by METADATA."""
    ranked = sorted((p for p in found if p.name.lower() in METADATA), key=lambda p: METADATA.index(p.name.lower()))
    first: dict[Path, Path] = {}
    return [p for p in ranked if first.setdefault(p.parent, p) != p]


def without_tests(files: list[Path], root: Path, report: Report) -> list[Path]:
    """Without the test and validation splits that lie beside a training split, as the hub has them.

    Each is noted; so is one that has no training split beside it, and is used.
    """
    parts = {path: (path, *path.parents[: len(path.relative_to(root).parts) - 1]) for path in files}
    trained = {part.parent for path in files for part in parts[path] if TRAIN.fullmatch(split_name(part, path))}
    tests = {path: [part for part in parts[path] if TEST.fullmatch(split_name(part, path))] for path in files}
    for part, own in Counter(part for path in files for part in tests[path]).items():
        what = "not trained on" if part.parent in trained else "trained on: no train split lies beside it"
        report.note(f"test or validation split, {what}", str(part) if part in parts else f"{part} ({own} files)")
    return [path for path in files if not any(part.parent in trained for part in tests[path])]


def split_name(part: Path, file: Path) -> str:
    """The name by which a folder, or a parquet file, may be a split's; of other files none."""
    return part.name.lower() if part != file else part.stem.lower() if part.suffix.lower() == ".parquet" else ""


def known(path: Path) -> bool:
    return path.suffix.lower() in readable()


def _captioned(root: Path, images: list[Path], files: list[Path], report: Report, lines: bool) -> Iterator[Row]:
    beside = {(p.with_suffix(""), p.suffix.lower()): p for p in files}
    sharing = Counter(p.with_suffix("") for p in images)
    for path in images:
        if not known(path):
            report.skip("image of a kind that cannot be read here", str(path))
            continue
        file = next((beside[key] for kind in CAPTIONS if (key := (path.with_suffix(""), kind)) in beside), None)
        if file is None:
            report.note("no caption file", str(path))
        elif sharing[path.with_suffix("")] > 1:
            report.note("image that shares its caption file with another", str(path))
        try:
            text = texts.read(file) if file else ""
        except UnicodeDecodeError:
            report.skip("caption is not UTF-8", str(path))
            continue
        except OSError as error:
            report.skip("caption cannot be read", f"{path} ({error.strerror or error})")
            continue
        if len(texts.lines(text)) > 1:
            report.note(
                "caption of several lines, one of which is drawn" if lines else "caption of several lines, kept whole",
                str(path),
            )
        repeats = repeated(root, path)
        if repeats > 1:
            report.note(f"image in a folder named {repeats}_..., repeated {repeats} times", str(path))
        yield Row(str(path), tuple(texts.lines(text)) if lines else (text,), ImageFile(path), (), repeats)


def repeated(root: Path, path: Path) -> int:
    """How often an image counts by the name of its folder, such as "10_name"."""
    names = [root.absolute().name, *path.relative_to(root).parts[:-1]]
    return next((int(match[1]) for name in reversed(names) if (match := REPEATED.fullmatch(name))), 1)


def listed(root: Path, report: Report) -> list[Path]:
    """All files that may be data, sorted; hidden folders and runs are passed over, links to folders followed once."""
    found, seen, folders, links = [], set(), [root], []
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            names = sorted(os.listdir(folder))
        except OSError as error:
            if folder == root:
                raise
            report.note("folder that cannot be read", f"{folder} ({error.strerror})")
            continue
        if is_run(folder, names):
            report.note("folder of a run, never trained on", str(folder))
            continue
        for path in (folder / name for name in names):
            hidden = path.name.startswith(".") or path.name.lower() in NOT_DATA
            if os.path.isfile(path) or not os.path.exists(path):  # a link that leads nowhere is named when it is opened
                found += [] if hidden else [path]
            elif not os.path.isdir(path):
                report.note("neither a file nor a folder", str(path))
            elif hidden:
                report.note("hidden folder, never trained on", str(path))
            elif not path.is_symlink():
                folders.append(path)
            elif not root.resolve().is_relative_to(path.resolve()):  # else it would lead round
                links.append(path)
        links.sort(reverse=True)
    return sorted(found)


def is_run(folder: Path, names: list[str]) -> bool:
    """Whether a trainer's run lies here."""
    return "rows-training.json" in names or ("config.json" in names and any(name in names for name in RUN))
