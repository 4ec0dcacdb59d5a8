"""Rows from every kind of source, and what is reported of those that cannot be used."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from trainer import TrainerError
from trainer.config.resolving import resolve
from trainer.data import rows as training_rows
from trainer.data.report import Report

from .conftest import draw, write_jsonl


def read(data, *, edit=False, image_free=False, caption=""):
    report = Report()
    return training_rows.read(str(data), report, edit=edit, image_free=image_free, caption=caption), report


def table(path, columns, **options):
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_folder(folder):
    rows, report = read(folder)
    assert [row.captions for row in rows][:2] == [("one\ntwo\n\nthree",), ("image 1",)]
    assert [row.target.path.name for row in rows] == [f"{i}.png" for i in range(6)]
    assert not report.skipped


def test_folder_looks_into_subfolders_and_past_hidden_files(folder):
    draw(folder / "more" / "a.jpg", 8, 8).with_suffix(".txt").write_text("a")
    draw(folder / ".thumb.png", 8, 8)
    assert len(read(folder)[0]) == 7


def test_empty_and_missing_captions_are_named(folder):
    (folder / "1.txt").write_text(" \n\n")
    (folder / "2.txt").unlink()
    (folder / "3.txt").write_bytes("café".encode("latin-1"))
    rows, report = read(folder)
    assert len(rows) == 3
    assert [name.rsplit("/")[-1] for name in report.skipped["empty caption"]] == ["1.png", "2.png"]
    assert [name.rsplit("/")[-1] for name in report.skipped["caption is not UTF-8"]] == ["3.png"]


def test_caption_for_those_without(folder):
    (folder / "1.txt").unlink()
    rows, report = read(folder, caption="a photo")
    assert rows[1].captions == ("a photo",) and rows[2].captions == ("image 2",) and not report.skipped


def test_jsonl(folder, tmp_path):
    lines = [
        {"image": "photos/0.png", "text": "a"},
        {"image": "photos/1.png", "text": ["b", " ", "c"], "repeats": 3},
        {"file_name": "photos/2.png", "caption": "d"},
        {"image": "photos/3.png", "text": ""},
        {"text": "no image"},
        {"image": "photos/4.png", "text": 7},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", lines)
    path.write_text(path.read_text() + "{broken\n[1]\n\n")
    rows, report = read(path)
    assert [(row.captions, row.repeats) for row in rows] == [(("a",), 1), (("b", "c"), 3), (("d",), 1)]
    assert rows[0].target.read() == (folder / "0.png").read_bytes()
    assert report.skipped == {
        "empty caption": [f"{path}:4"],
        "no image named": [f"{path}:5"],
        "not a JSON object of image and text": [f"{path}:6", f"{path}:7", f"{path}:8"],
    }


@pytest.mark.parametrize("group", [1, 4, 100])
def test_parquet(folder, tmp_path, group):
    data = [p.read_bytes() for p in sorted(folder.glob("*.png"))]
    texts = ["a", None, "", "d", ["e"][0], "f"]
    path = table(tmp_path / "rows.parquet", {"text": texts, "image_bytes": data}, row_group_size=group)
    rows, report = read(path)
    assert [row.captions[0] for row in rows] == ["a", "d", "e", "f"]
    assert [row.target.read() for row in reversed(rows)] == [data[i] for i in (5, 4, 3, 0)]
    assert report.skipped == {"empty caption": [f"{path}:1", f"{path}:2"]}


def test_parquet_folder_and_lists_of_captions(folder, tmp_path):
    (tmp_path / "tables").mkdir()
    for name in "ab":
        values = {"text": [["x", name]], "image_bytes": [(folder / "0.png").read_bytes()]}
        table(tmp_path / "tables" / f"{name}.parquet", values)
    assert [row.captions for row in read(tmp_path / "tables")[0]] == [("x", "a"), ("x", "b")]


def test_prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog \n")
    rows, _ = read(path, image_free=True)
    assert [(row.captions, row.target) for row in rows] == [(("a cat",), None), (("a dog",), None)]
    assert read(path)[1].skipped == {"no image named": [f"{path}:1", f"{path}:3"]}


def test_repeats_of_sources(folder, tmp_path):
    (tmp_path / "more.jsonl").write_text(json.dumps({"image": "photos/0.png", "text": "a", "repeats": 2}) + "\n")
    rows, _ = read(f"{folder}*2, {tmp_path / 'more.jsonl'}*3")
    assert [row.repeats for row in rows] == [2] * 6 + [6]
    assert read(f"{folder}*0")[0] == []


def test_edit_folder(tmp_path):
    for folder, names in (("source", "ab"), ("source_2", "a"), ("target", "abc")):
        for name in names:
            draw(tmp_path / folder / f"{name}.png", 8, 8, seed=ord(name)).with_suffix(".txt").write_text(f"edit {name}")
    rows, report = read(tmp_path, edit=True)
    assert [row.captions for row in rows] == [("edit a",), ("edit b",)]
    assert [[p.path.parent.name for p in row.references] for row in rows] == [["source", "source_2"], ["source"]]
    assert list(report.skipped) == ["no source image of this name"]


def test_edit_jsonl_and_parquet(folder, tmp_path):
    lines = [
        {"source": "photos/0.png", "target": "photos/1.png", "instruction": "a"},
        {"source": ["photos/0.png", "photos/2.png"], "target": "photos/1.png", "instruction": "b"},
    ]
    rows, _ = read(write_jsonl(tmp_path / "rows.jsonl", lines), edit=True)
    assert [[p.path.name for p in row.references] for row in rows] == [["0.png"], ["0.png", "2.png"]]
    values = {"instruction": ["x"], "target_bytes": [b"target"], "source_bytes": [b"source"]}
    (row,) = read(table(tmp_path / "rows.parquet", values), edit=True)[0]
    assert (row.target.read(), row.references[0].read()) == (b"target", b"source")


def test_edit_rows_and_models_must_match(folder, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"source": "a.png", "image": "b.png", "text": "x"}])
    with pytest.raises(TrainerError, match="rows.jsonl:1 has 1 source images; expected a model that edits"):
        read(path)
    with pytest.raises(TrainerError, match="no source/ and target/"):
        read(folder, edit=True)
    with pytest.raises(TrainerError, match="expected a source image for every row"):
        read(write_jsonl(path, [{"image": "b.png", "text": "x"}]), edit=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p / "absent", "does not exist"),
        (lambda p: (p / "a.csv").touch() or p / "a.csv", "of no known kind"),
        (lambda p: (p / "a.parquet").write_bytes(b"x" * 99) and p / "a.parquet", "not a parquet file"),
        (lambda p: table(p / "b.parquet", {"x": [1]}), "has columns x; expected text"),
        (lambda p: (p / "a.txt").write_bytes(b"\xff\xfe\xfa") and p / "a.txt", "UTF-8"),
        (lambda p: f"{p}*many", "does not end in a number"),
    ],
)
def test_unusable_sources(tmp_path, make, message):
    with pytest.raises(TrainerError, match=message) as error:
        read(make(tmp_path), image_free=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cats, dogs", "star*2", "a,,b*x", "猫 фото é", 'say "x"', "[1]"])
def test_any_path_can_be_written(tmp_path, name):
    draw(tmp_path / name / "a.png", 8, 8).with_suffix(".txt").write_text("a")
    draw(tmp_path / "other" / "b.png", 8, 8).with_suffix(".txt").write_text("b")
    quoted = '"' + str(tmp_path / name).replace('"', '""') + '"'
    for written, repeats in ((tmp_path / name, 1), (quoted, 1), (f"{quoted}*3", 3), (f"{tmp_path / name}*3", 3)):
        for data in (f"{written},{tmp_path / 'other'}*2", f"{tmp_path / 'other'}*2 , {written}"):
            rows, _ = read(data)
            assert {row.captions[0]: row.repeats for row in rows} == {"a": repeats, "b": 2}, data


def test_too_many_repeats(folder):
    for many in (10**7, 10**30, "9" * 5000):
        with pytest.raises(TrainerError, match="expected at most"):
            read(f"{folder}*{many}")


def test_an_unknown_home(tmp_path):
    with pytest.raises(TrainerError, match="does not exist"):
        read("~nobody-of-this-name/photos")


def test_sources_listed_in_a_file(tmp_path):
    paths = [tmp_path / "cats, dogs", tmp_path / "other"]
    for path in paths:
        draw(path / "a.png", 8, 8).with_suffix(".txt").write_text("a")
    settings = resolve("lora", {"model": "sana", "data": [str(paths[0]), f"{paths[1]}*2"]}, notify=lambda line: None)
    assert [row.repeats for row in read(settings.data.data)[0]] == [1, 2]
