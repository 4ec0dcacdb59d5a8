"""Tables as other trainers, spreadsheets and the hub write them."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from trainer import TrainerError
from trainer.data import rows as training_rows
from trainer.data.report import Report


def read(data, *, edit=False):
    report = Report()
    return training_rows.read(str(data), report, edit=edit, image_free=False), report


def names(rows):
    return [(row.target.path.name, *row.captions) for row in rows]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_array(tmp_path, indent, name):
    (tmp_path / name).write_text(json.dumps([{"image": "0.png", "text": "a"}, {"image": "1.png", "text": "b"}], indent=indent))
    assert names(read(tmp_path / name)[0]) == [("0.png", "a"), ("1.png", "b")]


def test_json_by_image(tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps({"0.png": {"caption": "a", "tags": "b"}, "1.png": {"caption": "c"}}))
    assert names(read(tmp_path / "meta.json")[0]) == [("0.png", "a"), ("1.png", "c")]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_separators_inside_json_are_text(tmp_path, separator):
    text = json.dumps({"image": "0.png", "text": f"a{separator}b"}, ensure_ascii=False) + "\r\n"
    (tmp_path / "rows.jsonl").write_text(text * 2, "utf-8", newline="")
    assert names(read(tmp_path / "rows.jsonl")[0]) == [("0.png", f"a{separator}b")] * 2


@pytest.mark.parametrize(
    "values",
    [
        {"Image": "0.png", "Text": "a"},
        {"image_path": "0.png", "caption": "a"},
        {"file_name": "0.png", "text": None, "prompt": "a"},
        {"image": {"path": "0.png"}, "text": "a"},
        {"image": "0.png", "text": ["a", ""], "repeats": None, "width": 3},
    ],
)
def test_other_names(tmp_path, values):
    (tmp_path / "rows.jsonl").write_text(json.dumps(values))
    assert names(read(tmp_path / "rows.jsonl")[0]) == [("0.png", "a")]


@pytest.mark.parametrize("path", ["sub\\0.png", ".\\sub\\0.png"])
def test_paths_that_windows_wrote(tmp_path, path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.png").touch()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": path, "text": "a"}))
    assert read(tmp_path / "rows.jsonl")[0][0].target.read() == b""


@pytest.mark.parametrize("repeats", [-2, 2.7, "many", True, [1], 1e300, "inf", "nan"])
def test_repeats_that_are_no_number_are_named(tmp_path, repeats):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "0.png", "text": "a", "repeats": repeats}))
    rows, report = read(tmp_path / "rows.jsonl")
    assert rows == [] and list(report.skipped) == ["repeats is not a whole number from 0 on"]


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "\\u0000.png", "text": "a"}',
        '{"image": "0.png", "text": "\\ud800"}',
        '{"image": ["0.png"], "text": "a"}',
        '{"image": "0.png", "text": [["a"]]}',
        "[" * 100_000,
        '{"image": "0.png", "text": ' + "9" * 5000 + "}",
    ],
)
def test_lines_that_are_no_rows_are_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(line + '\n{"image": "1.png", "text": "b"}\n')
    rows, report = read(tmp_path / "rows.jsonl")
    assert names(rows) == [("1.png", "b")]
    assert report.skipped == {"not a JSON object of image and text": [f"{tmp_path / 'rows.jsonl'}:1"]}


@pytest.mark.parametrize("name, separator", [("rows.csv", ","), ("rows.csv", ";"), ("rows.tsv", "\t")])
def test_csv(tmp_path, name, separator):
    lines = [["Image", "Prompt", "repeats"], ["0.png", '"a, b;\nc\u2028"', "2"], ["1.png", "d", ""], ["2.png", "", ""]]
    (tmp_path / name).write_text("\ufeff" + "\r\n".join(separator.join(line) for line in lines), "utf-8", newline="")
    rows, report = read(tmp_path / name)
    assert names(rows) == [("0.png", "a, b;\nc\u2028"), ("1.png", "d")] and [row.repeats for row in rows] == [2, 1]
    assert list(report.skipped) == ["empty caption"]


@pytest.mark.parametrize(
    "text, message",
    [("", "is empty"), ("a,b\n1,2\n", "has columns a, b; expected text"), ('text\n"' + "x" * 200_000, "not a table")],
)
def test_csv_that_is_none(tmp_path, text, message):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(TrainerError, match=message):
        read(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    "values",
    [
        {"image_path": "0.png", "caption": "x", "control_path_1": "2.png", "control_path_0": "1.png"},
        {"image_path": "0.png", "caption": "x", "control_path": "1.png", "control_path_2": "2.png"},
        {"image": "0.png", "prompt": "x", "edit_image": ["1.png", "2.png"]},
        {"edited_image": "0.png", "edit_prompt": "x", "input_image": "1.png", "input_image_10": "2.png"},
    ],
)
def test_source_images_of_other_trainers(tmp_path, values):
    (tmp_path / "rows.jsonl").write_text(json.dumps(values))
    (row,), _ = read(tmp_path / "rows.jsonl", edit=True)
    assert names([row]) == [("0.png", "x")] and [image.path.name for image in row.references] == ["1.png", "2.png"]


def test_source_images_in_a_cell(tmp_path):
    (tmp_path / "rows.csv").write_text('image,prompt,edit_image\n0.png,x,"[""1.png"", ""2.png""]"\n')
    (row,), _ = read(tmp_path / "rows.csv", edit=True)
    assert [image.path.name for image in row.references] == ["1.png", "2.png"]


@pytest.mark.parametrize("image", ["image", "img", "jpg", "image_bytes"])
@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("cell", [b"bytes", {"bytes": b"bytes", "path": "0.png"}, {"bytes": None, "path": "0.png"}, "0.png"])
def test_parquet_of_the_hub(tmp_path, image, below, cell):
    (tmp_path / below).mkdir(exist_ok=True)
    (tmp_path / below / "0.png").write_bytes(b"bytes")
    table = pyarrow.table({image: [cell], "text": ["a"], "label": [1]})
    parquet.write_table(table, tmp_path / below / "train-00000.parquet")
    rows, _ = read(tmp_path / below / "train-00000.parquet")
    assert [(row.captions, row.target.read()) for row in rows] == [(("a",), b"bytes")]
    if cell == b"bytes":
        (tmp_path / below / "0.png").unlink()
        assert len(read(tmp_path)[0]) == 1  # the hub's layout


def test_parquet_with_sources_and_repeats(tmp_path):
    columns = {
        "target": [b"t", b"t"],
        "source_1": [b"b", b"b"],
        "source_0": [b"a", b"a"],
        "text": ["x", "y"],
        "repeats": [2, -1],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    (row,), report = read(tmp_path / "rows.parquet", edit=True)
    assert [image.read() for image in row.references] == [b"a", b"b"] and row.repeats == 2
    assert list(report.skipped) == ["repeats is not a whole number from 0 on"]


def test_cell_of_another_kind_is_named(tmp_path):
    parquet.write_table(pyarrow.table({"image": [[1]], "text": ["a"]}), tmp_path / "rows.parquet")
    (row,), _ = read(tmp_path / "rows.parquet")
    with pytest.raises(OSError, match="no bytes in column 'image'"):
        row.target.read()


@pytest.mark.parametrize("column", ["source", "sources", "control_images", "reference_images", "edit_image"])
@pytest.mark.parametrize("kind", ["bytes", "hub", "hub path", "path"])
@pytest.mark.parametrize("group", [1, 100])
def test_lists_of_images_in_parquet(tmp_path, column, kind, group):
    def cell(content):
        (tmp_path / f"{content}.png").write_bytes(content.encode())
        path = f"{content}.png"
        return {
            "bytes": content.encode(),
            "hub": {"bytes": content.encode(), "path": path},
            "hub path": {"bytes": None, "path": path},
            "path": path,
        }[kind]

    columns = {"image": [b"t"] * 4, column: [[cell("a"), cell("b")], [cell("c")], None, []], "prompt": list("wxyz")}
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet", row_group_size=group)
    with pytest.raises(TrainerError, match="rows.parquet:2 has 0 source images; expected a source image for every row"):
        read(tmp_path / "rows.parquet", edit=True)
    columns = {name: values[:2] for name, values in columns.items()}
    parquet.write_table(pyarrow.table(columns), tmp_path / "pairs.parquet", row_group_size=group)
    rows, _ = read(tmp_path / "pairs.parquet", edit=True)
    assert [[image.read() for image in row.references] for row in rows] == [[b"a", b"b"], [b"c"]]
    assert len({image for row in rows for image in row.references}) == 3


def test_a_list_of_one_target(tmp_path):
    parquet.write_table(pyarrow.table({"image": [[b"a"], [b"a", b"b"], []], "text": ["x"] * 3}), tmp_path / "rows.parquet")
    (row,), report = read(tmp_path / "rows.parquet")
    assert row.target.read() == b"a" and list(report.skipped) == ["several target images", "no image named"]


@pytest.mark.parametrize("path", ["\0.png", "absent.png"])
def test_a_path_in_a_cell_that_leads_nowhere(tmp_path, path):
    parquet.write_table(pyarrow.table({"image": [{"bytes": None, "path": path}], "text": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(OSError):
        read(tmp_path / "rows.parquet")[0][0].target.read()


def test_a_table_of_kohya_that_names_no_suffix(tmp_path):
    for name in ("0.png", "1.JPG", "2.5.webp"):
        (tmp_path / name).touch()
    about = {"0": {"caption": "a", "tags": "b"}, "1": {"tags": "c, d"}, "2.5": {"tags": ["e", "f"]}, "absent": {"caption": "g"}}
    (tmp_path / "meta.json").write_text(json.dumps(about))
    assert names(read(tmp_path / "meta.json")[0]) == [("0.png", "a"), ("1.JPG", "c, d"), ("2.5.webp", "e, f"), ("absent", "g")]


def test_tags_in_other_tables_are_one_caption(tmp_path):
    parquet.write_table(pyarrow.table({"image": [b"x"], "tags": [["a", "b"]]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(
        '{"image": "0.png", "tags": ["a", "b"]}\n{"image": "0.png", "tags": ["a"], "text": "c"}'
    )
    assert [row.captions for row in read(tmp_path)[0]] == [("a, b",)]
    assert [row.captions for row in read(tmp_path / "rows.jsonl")[0]] == [("a, b",), ("c",)]


@pytest.mark.parametrize("text", ["a\0b", ["a", "b\0"]])
def test_zero_bytes_in_captions_are_named(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "0.png", "text": text}))
    parquet.write_table(pyarrow.table({"image": [b"x"], "text": [text]}), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        rows, report = read(tmp_path / name)
        assert rows == [] and len(report.skipped) == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json", "prompts.txt"])
@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "cp1252"])
def test_tables_in_other_codes_are_refused_in_a_line(tmp_path, name, code):
    (tmp_path / name).write_bytes('image,text\n0.png,café\n{"image": "0.png", "text": "é"}'.encode(code))
    with pytest.raises(TrainerError, match="cannot be read .*expected a readable file in UTF-8") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
