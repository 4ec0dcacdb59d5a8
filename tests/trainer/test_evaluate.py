"""trainer.evaluate: pictures that equal trainer.generate's, what is measured of them, the page, the folders of benchmarks."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from trainer import generate
from trainer.evaluate import main
from trainer.runs import pictures
from trainer.tools import gallery, report
from twinflow.backbones.emoji import SHIPPED

QUICK = ["--nfe", "1,2", "--many", "4", "--base-steps", "3", "--each", "2"]
EMOJI = ["--model", "emoji", *QUICK, "--prompts", "red heart", "dog face"]


class Page(HTMLParser):
    """sources: of all that a browser would fetch.  words: the text."""

    def __init__(self, path):
        super().__init__()
        self.sources, self.words = [], ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "data", "action")]
        assert tag not in ("script", "link", "iframe", "object")

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The folder of an evaluation of the model that comes with the project."""
    folder = tmp_path_factory.mktemp("emoji") / "report"
    assert main([*EMOJI, "--output", str(folder)]) == 0
    return folder


def rows_of(folder):
    (network,) = json.loads((folder / "measures.json").read_text())["networks"]
    return {row["steps"]: row for row in network["rows"]}, network["base"]


def test_what_is_measured(emoji):
    rows, base = rows_of(emoji)
    assert list(rows) == [1, 2, 4] and base["steps"] == 3 and base["diversity"] > 0
    for steps, row in rows.items():
        assert row["seconds"] > 0 and row["host"] > 2**27 and row["device"] is None and row["diversity"] > 0
        assert len(row["prompts"]) == 2 and row["base_feature"] > 0
        assert (row["own_feature"] is None) == (steps == 4)
    assert 0 < rows[2]["own_feature_share"] < rows[1]["own_feature_share"] < 1.2  # more steps come nearer
    assert 0 < rows[2]["own_pixel"] < rows[2]["own_pixel_other"]


def test_pictures_are_those_of_generate(emoji, tmp_path):
    """Of the distilled model and of the base."""
    asked = ["--model", "emoji", "--prompts", "dog face", "--seed", "1", "--output", str(tmp_path / "x.png")]
    name = "0002-dog-face-02.png"
    (place,) = (emoji / "images").glob("01-*")
    weights = ["--weights", str(SHIPPED / "distilled.safetensors"), "--steps", "2"]
    for own, path in ((weights, place / "2-nfe" / name), (["--steps", "3"], emoji / "images" / "base" / "3-nfe" / name)):
        assert generate.main([*asked, *own]) == 0
        (drawn, facts), (found, about) = pictures.read(tmp_path / "x.png"), pictures.read(path)
        assert torch.equal(drawn, found)
        assert all(about[key] == facts[key] for key in ("prompt", "seed", "steps", "sampler", "width"))


def test_the_page_needs_nothing_else(emoji):
    page = Page(emoji / "index.html")
    assert len(page.sources) >= 2 and all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert "url(http" not in (emoji / "index.html").read_text() and "#010203" not in (emoji / "index.html").read_text()
    settings = json.loads((emoji / "measures.json").read_text())["settings"]
    said = (settings["command"], settings["networks"][0]["hash"], settings["features"]["sha256"], "red heart", "not quality")
    assert all(text in " ".join(page.words.split()) for text in said)
    assert not list(emoji.rglob("*.latents.*")) and len(list((emoji / "grids").iterdir())) == 2


def test_texts_of_others_are_texts_on_the_page(emoji, tmp_path):
    saved = json.loads((emoji / "measures.json").read_text())
    grid = next((emoji / "grids").iterdir())
    report.write(tmp_path / "x.html", saved["settings"], saved["networks"], [('<script>alert("1")</script> & 猫', grid)])
    assert '<script>alert("1")</script> & 猫' in Page(tmp_path / "x.html").words


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    drawn, plain = [], gallery.generate

    def stopped(*arguments, **options):
        drawn.append(arguments)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(gallery, "generate", stopped)
    asked = [*EMOJI, "--output", str(tmp_path / "x")]
    assert main(asked) == 130 and len(list(tmp_path.rglob("*.latents.safetensors"))) == 4
    assert main(asked) == 0 and len(drawn) == 4 + 1 + 12  # of 16
    assert "going on in" in capsys.readouterr().out
    assert main(asked) == 0 and len(drawn) == 17
    victim = next(tmp_path.rglob("0001-red-heart-01.png"))
    victim.write_bytes(victim.read_bytes()[:100])
    assert main(asked) == 0 and len(drawn) == 18
    assert main([*asked, "--seed", "7"]) == 2 and "with other seed" in capsys.readouterr().err
    assert main([*asked, "--seed", "7", "--overwrite"]) == 0 and len(drawn) == 18 + 16


def test_runs_side_by_side(finished, tmp_path):
    """Each with the prompts and the base of its own; one of a file beside its base, too."""
    runs = [str(finished / f"digits-{mode}") for mode in ("lora", "full")]
    asked = [*QUICK, "--prompts", "3", "7 --d 5", "--output", str(tmp_path / "x")]
    assert main([*runs, *asked]) == 0
    saved = json.loads((tmp_path / "x" / "measures.json").read_text())
    assert [row["name"] for row in saved["networks"]] == ["digits-lora, step 8", "digits-full, step 8"]
    assert [own["seed"] for own in saved["settings"]["prompts"]] == [None, 5]
    assert {p.name for p in (tmp_path / "x" / "images").iterdir()} >= {"base"}
    assert pictures.read(next((tmp_path / "x").rglob("0002-7-02.png")))[1]["seed"] == 6
    file, base = finished / "digits-full" / "digits-full.safetensors", finished / "digits-full" / "base.safetensors"
    assert main(["--model", "digits", str(file), str(base), *asked[:-1], str(tmp_path / "y"), "--each", "1"]) == 0
    first, plain = json.loads((tmp_path / "y" / "measures.json").read_text())["networks"]
    assert first["base"] and plain["base"] is None and plain["rows"][0]["diversity"] is None
    assert plain["rows"][0]["own_feature"] > 0 and plain["rows"][0]["own_feature_share"] is None


def test_a_wrong_word_leaves_nothing_in_the_way(tmp_path, capsys):
    asked = [*EMOJI[: EMOJI.index("--prompts")], "--output", str(tmp_path / "x"), "--each", "1", "--prompts"]
    assert main([*asked, "a zyxw"]) == 2 and "zyxw" in capsys.readouterr().err
    assert main([*asked, "pizza"]) == 0 and "going on" not in capsys.readouterr().out


# benchmarks, read as their scorers read them


def bench(tmp_path, name, file, *options):
    output = tmp_path / "out"
    asked = ["--model", "emoji", "--bench", name, str(file), "--nfe", "2", "--output", str(output), *options]
    assert main(asked) == 0
    (place,) = (output / "bench").iterdir()
    return place, output / "images"


def test_geneval(tmp_path):
    lines = [dict(tag="single_object", include=[{"class": c, "count": 1}], prompt=c) for c in ("red heart", "pizza", "rocket")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    place, _ = bench(tmp_path, "geneval", tmp_path / "m.jsonl")
    assert sorted(p.name for p in place.iterdir() if p.is_dir() and p.name.isdigit()) == ["00000", "00001", "00002"]
    for i, line in enumerate(lines):
        with open(place / f"{i:05d}" / "metadata.jsonl") as opened:
            assert json.load(opened) == line
        samples = [p for p in (place / f"{i:05d}" / "samples").iterdir() if re.match(r"\d+\.png", p.name)]
        assert len(samples) == 4 and {pictures.read(p)[1]["seed"] for p in samples} == {0, 1, 2, 3}
        assert {pictures.read(p)[1]["prompt"] for p in samples} == {line["prompt"]}


def test_geneval2(tmp_path, monkeypatch):
    lines = [dict(prompt=c, atom_count=1, vqa_list=[["?", "Yes"]], skills=["object"]) for c in ("red heart", "pizza")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    place, _ = bench(tmp_path, "geneval2", tmp_path / "m.jsonl")
    monkeypatch.chdir("/")  # the scorer runs elsewhere
    found = json.loads((place / "image_paths.json").read_text())
    assert list(found) == ["red heart", "pizza"]
    assert all(pictures.read(path)[1]["prompt"] == prompt for prompt, path in found.items())


@pytest.mark.parametrize("each", [4, 3, 1])
def test_dpg(tmp_path, each):
    (tmp_path / "prompts").mkdir()
    for name, text in (("partiprompts7", "red heart"), ("12", "pizza\n")):
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    place, images = bench(tmp_path, "dpg", tmp_path / "prompts", "--each", str(each))
    assert sorted(p.name for p in place.iterdir()) == ["12.png", "partiprompts7.png"]  # nothing else: all of it is scored
    sheet = Image.open(place / "12.png")
    for i, box in enumerate([(0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (32, 32, 64, 64)][:each]):
        (own,) = images.rglob(f"0001-pizza-{i + 1:02d}.png")
        assert list(sheet.crop(box).tobytes()) == list(Image.open(own).convert("RGB").tobytes())


FAULTS = {
    "nothing": ([], ["neither a file"]),
    "model": (["--model", "flux"], ["flux"]),
    "no model of its own": (["--model", "digits"], ["no published model"]),
    "file": (["nowhere.safetensors"], ["nowhere.safetensors", "no such file"]),
    "run": (["RUN", "--model", "emoji"], ["is a run of digits"]),
    "two models": (["RUN", str(SHIPPED / "distilled.safetensors")], ["is of emoji", "of digits", "of one model"]),
    "a LoRA that says nothing": (["LORA"], ["--model NAME"]),
    "nfe": ([*EMOJI, "--nfe", "1,x"], ["--nfe is '1,x'"]),
    "nfe of many": ([*EMOJI, "--nfe", "1,32"], ["--nfe 32", "--many"]),
    "no steps": ([*EMOJI, "--nfe", "0,1"], ["--nfe is 0"]),
    "base": ([*EMOJI, "--base-steps", "-1"], ["--base-steps is -1"]),
    "guidance": ([*EMOJI, "--guidance", "nan"], ["--guidance is nan"]),
    "each": ([*EMOJI, "--each", "0"], ["--each is 0"]),
    "seed": ([*EMOJI, "--seed", str(2**63)], ["--seed is"]),
    "word": (["--model", "emoji", "--prompts", "a zyxw"], ["zyxw"]),
    "features": ([*EMOJI, "--features", "nowhere/"], ["--features nowhere/", "efficientnet"]),
    "a pickle": ([*EMOJI, "--features", "PTH"], ["no .safetensors", "lpips"]),
    "bench": (["--model", "emoji", "--bench", "coco", "x"], ["--bench coco", "geneval, geneval2, dpg"]),
    "bench file": (["--model", "emoji", "--bench", "geneval", "nowhere.jsonl"], ["nowhere.jsonl", "cannot be read"]),
    "bench line": (["--model", "emoji", "--bench", "geneval", "PTH"], ["x.pth:1", "is not JSON"]),
    "bench field": (["--model", "emoji", "--bench", "geneval2", "LINES"], ["lines.jsonl:1", "has no vqa_list"]),
    "bench folder": (["--model", "emoji", "--bench", "dpg", "LINES"], ["is no folder"]),
    "bench prompts": (["--model", "emoji", "--bench", "geneval", "LINES", "--prompts", "pizza"], ["--prompts is for the page"]),
    "output": ([*EMOJI, "--output", "HERE"], ["holds other files"]),
    "output is a file": ([*EMOJI, "--output", "PTH"], ["is a file"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_before_anything_is_drawn(finished, tmp_path, capsys, monkeypatch, fault):
    from safetensors.torch import save_file

    words, wanted = FAULTS[fault]
    monkeypatch.setattr(gallery, "generate", None)
    save_file({"blocks.0.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "lora.safetensors")
    (tmp_path / "x.pth").write_text("no JSON")
    (tmp_path / "lines.jsonl").write_text('{"prompt": "pizza", "tag": "x", "include": [1]}')
    places = dict(RUN=finished / "digits-lora", LORA=tmp_path / "lora.safetensors", PTH=tmp_path / "x.pth")
    places |= dict(LINES=tmp_path / "lines.jsonl", HERE=tmp_path)
    asked = [str(places.get(word, word)) for word in words]
    assert main([*(() if "--output" in asked else ("--output", str(tmp_path / "new"))), *asked]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and all(word in lines[0] for word in wanted), error


@pytest.mark.parametrize("package", ["jinja2", "efficientnet_lite_pytorch"])
def test_a_package_that_is_missing(tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*EMOJI, "--output", str(tmp_path / "x")]) == 2
    assert "pip install 'twinflow[evaluate]'" in capsys.readouterr().err and not (tmp_path / "x").exists()
