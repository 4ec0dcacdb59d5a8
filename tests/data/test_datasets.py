"""Data sets in a file: a table for each folder, and several resolutions in one run."""

from collections import Counter

import pytest

from trainer import TrainerError
from trainer.config.resolving import resolve
from trainer.data import datasets
from trainer.data.sources import Source

from .conftest import draw
from .test_dataset import same


def captioned(path, height=64, width=64, text="a"):
    draw(path, height, width, seed=len(text)).with_suffix(".txt").write_text(text)
    return path


def read(tmp_path, text, name="set.toml", **defaults):
    (tmp_path / name).write_text(text, "utf-8")
    return datasets.read(tmp_path / name, Source(**{"resolutions": (1024,)} | defaults))


WRITTEN = {
    "set.toml": """
caption_dropout = 0.1
[[datasets]]
path = "cats, dogs*2"
repeats = 3
resolution = [512, 1024, 512]
caption = "a pet"
trigger = "sks"
[[datasets]]
path = "more.jsonl"
resolution = 512
caption_dropout = 0
captions = "lines"
""",
    "set.yaml": """
caption_dropout: 0.1
datasets:
  - path: cats, dogs*2
    repeats: 3
    resolution: [512, 1024, 512]
    caption: a pet
    trigger: sks
  - {path: more.jsonl, resolution: 512, caption_dropout: 0, captions: lines}
""",
    "kohya.toml": """
[general]
caption_dropout_rate = 0.1
[[datasets]]
resolution = [512, 1024]
  [[datasets.subsets]]
  image_dir = "cats, dogs*2"
  num_repeats = 3
  class_tokens = "a pet"
  caption_prefix = "sks"
[[datasets]]
resolution = 512
captions = "lines"
caption_dropout_rate = 0
  [[datasets.subsets]]
  image_dir = "more.jsonl"
""",
    "diffusion-pipe.yml": """
dropout: 0.1
directory:
  - {path: "cats, dogs*2", num_repeats: 3, resolutions: [512, 1024], caption: a pet, trigger_word: sks}
  - {path: more.jsonl, resolutions: [512], captions: lines, dropout: 0.0}
""",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_tables(tmp_path, name):
    pets, more = read(tmp_path, WRITTEN[name], name, caption="none", trigger="x")
    assert pets == Source(tmp_path / "cats, dogs*2", 3, (512, 1024), "a pet", trigger="sks", dropout=0.1)
    assert more == Source(tmp_path / "more.jsonl", 1, (512,), "none", lines=True, trigger="x")


@pytest.mark.parametrize("text", ["path: photos", "- path: photos", "data: [{path: photos}]", '{"folder": {"path": "photos"}}'])
def test_a_table_alone(tmp_path, text):
    assert read(tmp_path, text, "set.yaml") == [Source(tmp_path / "photos", resolutions=(1024,))]
    assert read(tmp_path, f"# \ufeff\n{text}", "set.yml", resolutions=(64,))[0].resolutions == (64,)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no data"),
        ("[[datasets]]\n", "datasets 1 has no path"),
        ('[[datasets]]\npath = "a"\n[[datasets]]\nrepeats = 2', "datasets 2 has no path"),
        ('path = "a"\nrepeat = 2', "repeat is unknown; did you mean repeats?"),
        ('[[datasets]]\npath = "a"\nnum_repeat = 2', r"num_repeat is unknown \(datasets 1\); did you mean repeats?"),
        ('path = "a"\nflip_aug = true', "flip_aug is unknown; expected path, repeats"),
        ('path = "a"\nrepeats = -1', "repeats is -1; expected a whole number"),
        ('path = "a"\nrepeats = true', "repeats is True; expected a whole number"),
        ('path = "a"\nrepeats = 2.5', "repeats is 2.5"),
        ('path = "a"\nresolution = []', r"resolution is \[\]; expected pixels"),
        ('path = "a"\nresolution = "512"', "resolution is '512'; expected pixels"),
        ('path = "a"\ncaption = 7', "caption is 7; expected"),
        ('path = "a"\ncaptions = "words"', "captions is 'words'; expected whole or lines"),
        ('path = "a"\ncaption_dropout = 2', "caption_dropout is 2; expected a share"),
        ('path = "a"\ncaption_dropout = nan', "caption_dropout is nan; expected a share"),
        ("path = 3", "path is 3; expected a folder"),
        ('path = "C:\\new\\table"', r"path is 'C:\\new\\table'; expected one without control .*a backslash begins a code"),
        ('path = "a"\n[[datasets]]\npath = "b"', "has tables beside path"),
        ("datasets = [7]", "datasets 1 is 7; expected a table"),
        ("path = ", "is not TOML or YAML"),
    ],
)
def test_what_a_file_gets_wrong_is_named(tmp_path, text, message):
    with pytest.raises(TrainerError, match=message) as error:
        read(tmp_path, text)
    assert str(tmp_path / "set.toml") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["7", "a: [", "a: &a [*a]", "datasets: &a [*a]", "a: !!python/object:os.system {}", "[" * 5000, "? [a]\n: b"]
)
def test_yaml_that_is_no_data_set(tmp_path, text):
    with pytest.raises(TrainerError) as error:
        read(tmp_path, text, "set.yaml")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "set.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "set.toml"):
        with pytest.raises(TrainerError, match=f"data: {path}: "):
            datasets.read(path, Source())


def test_data_and_dataset_are_not_given_together():
    with pytest.raises(TrainerError, match="--data a and --dataset b.toml: expected one of them"):
        resolve("lora", {"model": "sana", "data": "a", "dataset": "b.toml"}, notify=lambda line: None)


@pytest.fixture
def mixed(tmp_path):
    """Five images at 32 and 48 px, three of them thrice at 32."""
    for i in range(5):
        captioned(tmp_path / "both" / f"{i}.png", *((64, 64), (80, 48))[i % 2], text=f"both {i}")
    for i in range(3):
        captioned(tmp_path / "small" / f"{i}.png", text=f"small {i}")
    (tmp_path / "set.toml").write_text(
        '[[folders]]\npath = "both"\nresolution = [32, 48]\ntrigger = "sks"\n'
        '[[folders]]\npath = "small"\nrepeats = 3\ncaption_dropout = 1.0\n'
    )
    return tmp_path / "set.toml"


def test_several_resolutions(prepared, mixed, image):
    data, report = prepared("", dataset=str(mixed), null_prompt="none")
    assert len(data) == report.used == 5 * 2 + 3 * 3
    assert report.buckets["32x32"] == 3 + 9 and report.buckets["48x48"] == 3 and len(report.buckets) == 4
    seen = Counter()
    for i in range(190):
        x, _, _ = data.batch_at(i, 2, seed=0)
        seen[tuple(x.shape[2:])] += 2
    share = {tuple(int(side) // 8 for side in reversed(size.split("x"))): n for size, n in report.buckets.items()}
    assert seen == {size: 20 * n for size, n in share.items()}  # each in proportion to its rows


def test_a_folder_has_its_own_dropout_and_trigger(prepared, mixed):
    data, _ = prepared("", dataset=str(mixed), null_prompt="none")
    drawn = {(s.name.split("/")[-2], data.caption(epoch, i, 0).text) for epoch in range(20) for i, s in enumerate(data.rows)}
    assert drawn == {("small", "none"), *(("both", f"sks both {i}") for i in range(5))}


def test_several_resolutions_are_resumed_exactly(prepared, mixed):
    data, _ = prepared("", dataset=str(mixed))
    straight = [data.batch_at(i, 2, seed=7) for i in range(19)]
    again, _ = prepared("", dataset=str(mixed))
    assert all(same(again.batch_at(i, 2, seed=7), straight[i]) for i in reversed(range(19)))


def test_one_resolution_in_a_file_is_the_same_as_the_option(prepared, mixed, tmp_path):
    (tmp_path / "one.yaml").write_text("- path: both\n  repeats: 2\n  resolution: 48\n- path: small")
    a, _ = prepared("", dataset=str(tmp_path / "one.yaml"), resolution=48, caption_dropout=0.3)
    b, _ = prepared(f"{tmp_path / 'both'}*2,{tmp_path / 'small'}", resolution=48, caption_dropout=0.3)
    c, _ = prepared(f"{tmp_path / 'one.yaml'}", resolution=48, caption_dropout=0.3)  # as --validation has it
    assert all(same(a.batch_at(i, 2, 3), other.batch_at(i, 2, 3)) for i in range(20) for other in (b, c))


def test_the_first_captions_are_of_different_images(prepared, mixed):
    data, _ = prepared("", dataset=str(mixed))
    assert [caption.text for caption, _, _ in data.first(3)] == ["sks both 0", "sks both 1", "sks both 2"]


def test_a_resolution_that_the_model_cannot_have(prepared, mixed):
    mixed.write_text('path = "both"\nresolution = 36')
    with pytest.raises(TrainerError, match="resolution is 36 .*both.*; expected a multiple of 8"):
        prepared("", dataset=str(mixed))


def test_an_edit_at_two_resolutions(prepared, tmp_path):
    for folder in ("source", "target"):
        captioned(tmp_path / "pairs" / folder / "a.png")
    (tmp_path / "set.yaml").write_text("path: pairs\nresolution: [32, 48]")
    data, _ = prepared("", dataset=str(tmp_path / "set.yaml"), edit=True)
    assert {tuple(c.shape[-1] for c in (x, cond[2])) for x, cond, _ in (data.batch_at(i, 1, 0) for i in range(4))} == {
        (4, 4), (6, 6),
    }  # fmt: skip


def test_prompts_at_two_resolutions(prepared, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    (tmp_path / "set.yaml").write_text("path: prompts.txt\nresolution: [32, 48]")
    data, report = prepared("", dataset=str(tmp_path / "set.yaml"), image_free=True, latents=lambda h, w: (4, h // 8, w // 8))
    assert report.buckets == {"32x32": 2, "48x48": 2} and len(data) == 4


def test_sources_without_rows_and_repeats_of_none_are_named(prepared, mixed, tmp_path):
    (tmp_path / "empty").mkdir()
    mixed.write_text('datasets = [{path = "empty"}, {path = "small"}, {path = "both", repeats = 0}]')
    _, report = prepared("", dataset=str(mixed))
    assert report.used == 3 and report.noted["source without a row"] == [str(tmp_path / "empty")]
    assert len(report.noted["repeats 0, not trained on"]) == 5
