"""Folders as people lay them out: what is read once, what never, and what is named in the report."""

import json
import os

import pyarrow
import pytest
from pyarrow import parquet

from trainer import TrainerError
from trainer.data import rows as training_rows
from trainer.data.report import Report

from .conftest import draw


def read(data, *, lines=False, caption="", edit=False):
    report = Report()
    return training_rows.read(str(data), report, edit=edit, image_free=False, lines=lines, caption=caption), report


def captioned(path, text="a"):
    draw(path, 8, 8).with_suffix(".txt").write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1e", "\x85"])
@pytest.mark.parametrize("lines", [True, False])
def test_only_a_line_feed_ends_a_line(tmp_path, separator, lines):
    path = captioned(tmp_path / "a.png")
    path.with_suffix(".txt").write_bytes(f"\ufeffa{separator}b\r\n\r\n c \n".encode())
    (row,), report = read(tmp_path, lines=lines)
    assert row.captions == ((f"a{separator}b", "c") if lines else (f"a{separator}b\n\n c",))
    (names,) = report.noted.values()
    assert names == [str(path)] and "several lines" in next(iter(report.noted))


def test_a_caption_of_one_line_is_not_noted(tmp_path):
    captioned(tmp_path / "a.png", "\n a cat \n\n")
    (row,), report = read(tmp_path)
    assert row.captions == ("a cat",) and not report.noted


@pytest.mark.parametrize("suffix", [".TXT", ".Txt", ".caption"])
def test_other_names_of_a_caption(tmp_path, suffix):
    draw(tmp_path / "a.png", 8, 8).with_suffix(suffix).write_text("a cat")
    (row,), report = read(tmp_path)
    assert row.captions == ("a cat",) and not report.noted


def test_missing_and_empty_captions_are_told_apart(tmp_path):
    captioned(tmp_path / "empty.png", "\n")
    draw(tmp_path / "missing.png", 8, 8)
    (tmp_path / "alone.txt").write_text("x")
    rows, report = read(tmp_path)
    assert rows == [] and len(report.skipped["empty caption"]) == 2
    assert report.noted["no caption file"] == [str(tmp_path / "missing.png")]
    assert report.noted["caption file without an image"] == [str(tmp_path / "alone.txt")]
    rows, report = read(tmp_path, caption="a photo")
    assert [row.captions for row in rows] == [("a photo",)] * 2 and not report.skipped
    assert report.noted["no caption file"] == [str(tmp_path / "missing.png")]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".hidden", "__MACOSX", "@eaDir", "$RECYCLE.BIN"])
def test_folders_that_are_never_trained_on(tmp_path, name):
    captioned(tmp_path / "a.png")
    captioned(tmp_path / "sub" / name / "deep" / "b.png")
    rows, report = read(tmp_path)
    assert [row.target.path.name for row in rows] == ["a.png"]
    assert report.noted == {"hidden folder, never trained on": [str(tmp_path / "sub" / name)]}


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path):
    captioned(tmp_path / ".cache" / "photos" / "a.png")
    assert len(read(tmp_path / ".cache" / "photos")[0]) == 1


@pytest.mark.parametrize("files", [["rows-training.json"], ["config.json", "metrics.csv"], ["config.json", "samples/x.txt"]])
def test_runs_are_never_trained_on(tmp_path, files):
    captioned(tmp_path / "a.png")
    captioned(tmp_path / "runs" / "mine" / "samples" / "step-000500.png")
    for name in files:
        (tmp_path / "runs" / "mine" / name).write_text("{}")
    rows, report = read(tmp_path)
    assert len(rows) == 1 and list(report.noted.values()) == [[str(tmp_path / "runs" / "mine")]]


def test_a_folder_of_a_model_is_no_run(tmp_path):
    captioned(tmp_path / "a.png")
    (tmp_path / "config.json").write_text("{}")
    assert len(read(tmp_path)[0]) == 1


def test_linked_folders_are_followed_once(tmp_path):
    captioned(tmp_path / "elsewhere" / "a.png")
    captioned(tmp_path / "photos" / "b.png")
    captioned(tmp_path / "photos" / "z" / "c.png")
    for name, target in {"one": "../elsewhere", "two": "../elsewhere", "a": "z", "round": "..", "self": "self"}.items():
        os.symlink(target, tmp_path / "photos" / name)
    rows, report = read(tmp_path / "photos")
    found = [row.target.path.relative_to(tmp_path / "photos").as_posix() for row in rows]
    assert found == ["b.png", "one/a.png", "z/c.png"] and not any("a.png" in name for name in report.noted)


@pytest.mark.parametrize(
    "folder, repeats", [("10_sks person", 10), ("2_x/deep", 2), ("2_x/3_y", 3), ("2024_summer", 1), ("10", 1), ("0_x", 1)]
)
def test_repeats_by_the_name_of_a_folder(tmp_path, folder, repeats):
    captioned(tmp_path / "set" / folder / "a.png")
    (row,), report = read(f"{tmp_path / 'set'}*2")
    assert row.repeats == 2 * repeats
    assert bool(report.noted) == (repeats > 1)
    if "/" not in folder:
        assert read(tmp_path / "set" / folder)[0][0].repeats == repeats


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".apng"])
def test_images_under_less_usual_names(tmp_path, suffix):
    path = draw(tmp_path / "a.png", 8, 8).rename(tmp_path / f"a{suffix}")
    path.with_suffix(".txt").write_text("a")
    assert [row.target.path for row in read(tmp_path)[0]] == [path]


@pytest.mark.parametrize("suffix", [".cr3", ".SVG", ".exr"])
def test_images_that_cannot_be_read_are_named(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a")
    rows, report = read(tmp_path)
    assert rows == [] and report.skipped == {"image of a kind that cannot be read here": [str(tmp_path / f"a{suffix}")]}


def test_links_and_folders_that_are_no_images(tmp_path):
    (tmp_path / "dir.png").mkdir()
    os.symlink(tmp_path / "nowhere.png", tmp_path / "broken.png")
    (tmp_path / "broken.txt").write_text("a")
    rows, _ = read(tmp_path)
    assert [row.target.path.name for row in rows] == ["broken.png"]  # named when it cannot be opened


@pytest.mark.parametrize("below", ["", "train"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_in_a_folder(tmp_path, kind, below):
    for name in ("a", "b", "c"):
        draw(tmp_path / below / f"{name}.png", 8, 8)
    (tmp_path / below / "b.txt").write_text("beside")
    rows = [{"file_name": "a.png", "text": "first, of all"}]
    table = 'file_name,text\na.png,"first, of all"\n' if kind == "csv" else json.dumps(rows[0])
    (tmp_path / below / f"metadata.{kind}").write_text(table)
    rows, report = read(tmp_path)
    assert [row.captions for row in rows] == [("first, of all",), ("beside",)]  # each image once
    assert report.noted == {"no caption file": [str(tmp_path / below / "c.png")]}


def test_what_lies_there_unread_is_named(tmp_path):
    captioned(tmp_path / "a.png")
    for name in ("a.json", "rows.jsonl", "00000.tar", "notes.csv"):
        (tmp_path / name).write_text("x")
    _, report = read(tmp_path)
    (names,) = report.noted.values()
    assert names == [str(tmp_path / name) for name in ("00000.tar", "notes.csv", "rows.jsonl")]  # a.json is an image's own


def test_edits_take_metadata_or_namesakes(tmp_path):
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png", 8, 8)
    (tmp_path / "metadata.csv").write_text("image,prompt,edit_image\na.png,redden,b.png\n")
    ((row,), _) = read(tmp_path, edit=True)
    assert (row.target.path.name, row.references[0].path.name) == ("a.png", "b.png")


def test_of_several_tables_in_a_folder_one_is_read(tmp_path):
    for below in ("", "sub"):
        for name in "ab":
            draw(tmp_path / below / f"{name}.png", 8, 8)
        (tmp_path / below / "metadata.csv").write_text("file_name,text\na.png,csv\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "jsonl"}\n{"file_name": "b.png", "text": "b"}\n')
    rows, report = read(tmp_path)
    assert [row.captions for row in rows] == [("jsonl",), ("b",), ("csv",)]  # each folder has one of its own
    assert report.noted["second table of the same images, not read"] == [str(tmp_path / "metadata.csv")]
    assert report.noted["no caption file"] == [str(tmp_path / "sub" / "b.png")]


@pytest.mark.parametrize("test", ["test", "validation", "val", "Dev", "eval"])
@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("below", ["", "data"])
def test_a_test_split_beside_a_training_split_is_not_trained_on(tmp_path, train, test, below):
    for split in (train, test):
        captioned(tmp_path / below / split / "cats" / "a.png", split)
        captioned(tmp_path / below / split / "b.png", split)
    rows, report = read(tmp_path)
    assert [row.captions for row in rows] == [(train,)] * 2
    assert report.noted == {"test or validation split, not trained on": [f"{tmp_path / below / test} (4 files)"]}
    assert len(read(tmp_path / below / test)[0]) == 2  # where it is asked for


def test_a_folder_named_test_without_a_training_split_is_used_and_named(tmp_path):
    captioned(tmp_path / "test" / "a.png")
    captioned(tmp_path / "more" / "testament.png")
    rows, report = read(tmp_path)
    assert len(rows) == 2 and len(report.noted["test or validation split, trained on: no train split lies beside it"]) == 1


@pytest.mark.parametrize("name", ["test-00000-of-00001", "validation-00000-of-00001", "test"])
def test_parquet_files_of_a_test_split(tmp_path, name):
    for own in ("train-00000-of-00002", "train-00001-of-00002", name):
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({"image": [b"x"], "text": [own]}), tmp_path / "data" / f"{own}.parquet")
    rows, report = read(tmp_path)
    assert [row.captions for row in rows] == [("train-00000-of-00002",), ("train-00001-of-00002",)]
    assert report.noted == {"test or validation split, not trained on": [str(tmp_path / "data" / f"{name}.parquet")]}
    assert len(read(tmp_path / "data" / f"{name}.parquet")[0]) == 1


@pytest.mark.parametrize("kind", [".tar", ".zip", ".arrow", ".7z"])
def test_archives_are_named(tmp_path, kind):
    captioned(tmp_path / "a.png")
    (tmp_path / f"00000{kind}").write_bytes(b"x")
    assert list(read(tmp_path)[1].noted) == ["table or archive in the folder, not read"]
    with pytest.raises(TrainerError, match="of no known kind; expected .*; unpack an archive first"):
        read(tmp_path / f"00000{kind}")


def test_images_that_share_a_caption_are_named(tmp_path):
    captioned(tmp_path / "a.png")
    draw(tmp_path / "a.jpg", 8, 8)
    captioned(tmp_path / "b.png")
    rows, report = read(tmp_path)
    assert len(rows) == 3
    shared = [str(tmp_path / name) for name in ("a.jpg", "a.png")]
    assert report.noted == {"image that shares its caption file with another": shared}


def test_files_of_other_kinds_are_named(tmp_path):
    captioned(tmp_path / "a.png")
    for name in ("no_suffix", "film.mp4", "a.npz", "Thumbs.db", ".DS_Store", "desktop.ini", "a.json"):
        (tmp_path / name).write_bytes(b"x")
    names = [str(tmp_path / name) for name in ("a.npz", "film.mp4", "no_suffix")]
    assert read(tmp_path)[1].noted == {"file of another kind, not read": names}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_would_never_end_is_not_opened(tmp_path):
    captioned(tmp_path / "a.png")
    for name in ("b.png", "b.txt", "rows.parquet"):
        os.mkfifo(tmp_path / name)
    rows, report = read(tmp_path)
    assert len(rows) == 1 and len(report.noted["neither a file nor a folder"]) == 3


@pytest.mark.parametrize("text", [b"a\0cat", "a cat".encode("utf-16"), "a cat".encode("utf-16-le"), "é".encode("latin-1")])
def test_captions_that_are_no_text_are_named(tmp_path, text):
    captioned(tmp_path / "a.png").with_suffix(".txt").write_bytes(text)
    rows, report = read(tmp_path)
    assert rows == [] and report.skipped == {"caption is not UTF-8": [str(tmp_path / "a.png")]}


NAMES = [
    "a\nb",
    "a\x1b[31mb",
    "\u202ecod",
    "שלום",
    "猫 фото é",
    "tab\t",
    "ends ",
    "dots.",
    "'q\"",
    "-dash",
    "%d{}",
    "a" * 200,
    "\udcff",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_read_and_said(tmp_path, name):
    path = captioned(tmp_path / f"{name}.png")
    rows, report = read(tmp_path)
    assert [row.target.path for row in rows] == [path]
    report.skip("broken image", rows[0].name)
    assert str(report).isprintable()
    report.write(tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text("utf-8"))["skipped"] == {"broken image": [rows[0].name]}
