"""Prompts of samples, as people and other trainers write them down."""

import json

import pytest

from trainer import TrainerError
from trainer.data import prompts
from trainer.data.report import Report


def read(path, text=None, *, edit=False):
    """The prompts, and what was noted."""
    if text is not None:
        path.write_text(text, "utf-8")
    report = Report()
    return prompts.read(str(path), report, edit=edit, multiple=16), report.noted


def of(found):
    return [(p.text, p.size, p.seed, p.steps, p.guidance) for p in found]


def test_lines_with_options_behind_them(tmp_path):
    found, noted = read(
        tmp_path / "p.txt",
        '\ufeff# a remark\na cat, "at night" --w 1024 --h 768 --d 42 --s 4\r\n\na dog --n bad, worse --l 3.5 --fs 3\n'
        "a man -- the -x king --d=7\nün\u2028été --W 64\n",
    )
    assert of(found) == [
        ('a cat, "at night"', (768, 1024), 42, (4,), None),
        ("a dog", (None, None), None, (), 3.5),
        ("a man -- the -x king", (None, None), 7, (), None),
        ("ün\u2028été", (None, 64), None, (), None),
    ]
    assert len(noted) == 2 and all("nothing here reads" in what for what in noted)


ROW = dict(prompt="a cat, at night", width=128, height=64, seed=5, steps=4, guidance=2.5)
WANTED = [("a cat, at night", (64, 128), 5, (4,), 2.5)]
TABLES = {
    "p.csv": 'prompt,width,height,seed,steps,guidance\n"a cat, at night",128,64,5,4,2.5\n',
    "semicolons.csv": "Prompt;Width;Height;Seed;Steps;Guidance\na cat, at night;128;64;5;4;2.5\n".replace("cat,", "cat,"),
    "p.tsv": "prompt\twidth\theight\tseed\tsteps\tguidance\na cat, at night\t128\t64\t5\t4\t2.5\n",
    "p.jsonl": json.dumps(ROW) + "\n",
    "p.json": json.dumps([ROW]),
    "kohya.json": json.dumps([dict(prompt="a cat, at night", width=128, height=64, seed=5, sample_steps=4, scale=2.5)]),
    "p.toml": '[[prompts]]\nprompt = "a cat, at night"\nwidth = 128\nheight = 64\nseed = 5\nsteps = 4\nguidance = 2.5\n',
    "kohya.toml": '[prompt]\nwidth = 128\nheight = 64\nsample_steps = 4\nscale = 2.5\n[[prompt.subset]]\n'
    'prompt = "a cat, at night"\nseed = 5\n',
    "p.yaml": "- {prompt: 'a cat, at night', width: 128, height: 64, seed: 5, steps: [4], guidance: 2.5}\n",
    "common.yaml": "width: 128\nheight: 64\nseed: 1\nprompts:\n- a cat, at night --d 5 --s 4 --l 2.5\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    found, noted = read(tmp_path / name, TABLES[name])
    assert of(found) == WANTED and not noted


def test_a_list_in_a_settings_file():
    found = prompts.read('["a cat", "a dog --d 3"]', Report(), edit=False, multiple=16)
    assert [(p.text, p.seed) for p in found] == [("a cat", None), ("a dog", 3)]


def test_cells_that_are_empty_say_nothing_and_other_columns_are_named(tmp_path):
    found, noted = read(tmp_path / "p.csv", "prompt,width,seed,mood\na cat,,,\na dog,64,1,sad\n")
    assert of(found) == [("a cat", (None, None), None, (), None), ("a dog", (None, 64), 1, (), None)]
    assert list(noted) == ["option 'mood', which nothing here reads"]


def test_images_to_edit_lie_beside_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    for name, text in {
        "p.txt": "turn it --i a.png", "p.csv": "prompt,control_path_0\nturn it,a.png\n",
        "p.jsonl": json.dumps(dict(instruction="turn it", source="a.png")),
        "p.yaml": "- {prompt: turn it, reference: [a.png]}",
    }.items():  # fmt: skip
        (prompt,), _ = read(tmp_path / name, text, edit=True)
        assert (prompt.text, [file.path for file in prompt.references]) == ("turn it", [tmp_path / "a.png"])
        with pytest.raises(TrainerError, match="does not edit"):
            read(tmp_path / name)


WRONG = {
    "--foo": "a --foo 3", "--d has no value": "a --d", "seed is '-1'": "a --d -1", "steps is '0'": "a --s 0",
    "has no prompt": "--w 64", "width is '64 cat'": "a --w 64 cat", "width is 0": ROW | dict(width=0),
    "height is True": ROW | dict(height=True), "guidance is 'nan'": "a --l nan", "steps is 1000": ROW | dict(steps=1000),
    "prompt is 3": dict(prompt=3), "multiple of 16, such as 96": "a --h 99", "seed is 1e+30": ROW | dict(seed=1e30),
    "width is '٣'": "a --w ٣", "reference 'x.png' is not there": "a --i x.png", "holds no prompt": "\n# nothing\n",
    "has no image to edit": "a cat",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_named(tmp_path, words):
    case = WRONG[words]
    with pytest.raises(TrainerError) as error:
        read(tmp_path / "p.jsonl" if isinstance(case, dict) else tmp_path / "p.txt",
             json.dumps(case) if isinstance(case, dict) else case, edit="edit" in words)  # fmt: skip
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [("p.json", b"{"), ("p.toml", b"a="), ("p.yaml", b"a: ["), ("p.yaml", b"5"), ("p.csv", b"prompt,width\na,b,64\n"),
     ("p.csv", b"x,y\n1,2\n"), ("p.jsonl", b"{\n"), ("p.txt", "été".encode("latin1")), ("p.json", b"[" * 9000)],
)  # fmt: skip
def test_files_that_hold_something_else(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TrainerError) as error:
        read(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["a cat, at night", "nowhere.txt", "[a cat"])
def test_a_text_is_no_file(source):
    with pytest.raises(TrainerError, match="--prompts"):
        prompts.read(source, Report(), edit=False, multiple=16)
