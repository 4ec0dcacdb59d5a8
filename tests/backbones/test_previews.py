"""What a run shows while it trains: its prompts as they were asked for, the base beside them, what each file says of itself."""

import json

import numpy as np
import pytest
from PIL import Image

from trainer.cli import main
from trainer.generate import main as generate
from trainer.runs import pictures, previews

from .conftest import FAMILIES, GOLDENS, made, published

FAST = ["--resolution", "64", "--steps", "2", "--sample-every", "2", "--save-every", "2", "--log-every", "1", "--threads", "1",
        "--dtype", "fp32", "--guidance", "2", "--warmup", "0", "--tracker", "none", "--sample-base", "3"]  # fmt: skip
LONG = "猫 Женщина 😀 it goes " + "😀 " * 60 + "on"


def family_of(name):
    backbone, file = FAMILIES[name]
    return made(backbone, json.loads((GOLDENS / f"{file}.json").read_text())["config"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, g = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(g.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a cat {i}")
    return folder


@pytest.fixture(scope="module")
def start(photos, tmp_path_factory):
    """start(out, option, ...): the exit code of a tiny Qwen-Image run."""
    source = tmp_path_factory.mktemp("qwen")
    published(family_of("qwen-image"), source)

    def run(out, *options, mode="lora"):
        rank = ["--rank", "2"] if mode == "lora" else []
        asked = ["--model", "qwen-image", "--source", source, "--data", photos, "--cache", source / "cache", "--out", out]
        return main(mode, [*map(str, asked), *FAST, *rank, *map(str, options)])

    return run


@pytest.fixture(scope="module")
def drawn(start, tmp_path_factory):
    """The folder of a finished run with prompts of its own."""
    out = tmp_path_factory.mktemp("runs")
    (out / "p.txt").write_text(f"# remarks\na cat, at night --w 96 --h 64 --d 42 --s 4,8\na dog --n bad\n{LONG}\n", "utf-8")
    assert start(out, "--prompts", out / "p.txt") == 0
    return out / "qwen-image-lora"


def test_prompts_are_drawn_as_they_were_asked_for(drawn):
    samples = drawn / "samples"
    found = {path.relative_to(samples).as_posix(): pictures.read(path) for path in samples.rglob("*/*.png")}
    own = {name: facts for name, (_, facts) in found.items() if name.startswith("step-000002/")}
    assert [name.split("/")[1] for name in sorted(own)] == [
        "01-a-cat-at-night-4-nfe.png", "01-a-cat-at-night-8-nfe.png",
        *(f"02-a-dog-{n}-nfe.png" for n in (1, 2, 4)), *(f"03-it-goes-on-{n}-nfe.png" for n in (1, 2, 4)),
    ]  # fmt: skip
    first, last = own[min(own)], own[max(own)]
    assert first | dict(prompt="a cat, at night", seed=42, width=96, height=64, steps=4, trained=2) == first
    assert last | dict(prompt=LONG.strip(), seed=2, width=64, height=64) == last
    assert found[f"step-000002/{'01-a-cat-at-night-4-nfe.png'}"][0].shape == (3, 64, 96)
    base = found["base/01-a-cat-at-night.png"][1]
    assert base["sampler"]["style"] == "multi" and base | dict(steps=3, guidance=2, seed=42) == base
    assert Image.open(samples / "step-000002.png").size[0] > 5 * 64


def test_a_viewer_reads_the_settings(drawn):
    text = Image.open(next(drawn.rglob("03-*-2-nfe.png"))).text["parameters"]
    assert text.startswith(LONG.strip()) and "Steps: 2" in text and "Seed: 2" in text and "Size: 64x64" in text


def test_a_sample_is_drawn_again_from_the_file_that_was_kept(drawn, tmp_path):
    asked = ["--prompts", "a cat, at night --w 96 --h 64 --d 42 --s 4", "--each", "1", "--output", str(tmp_path / "x.png")]
    assert generate([str(drawn), "--checkpoint", "2", *asked]) == 0
    again, facts = pictures.read(tmp_path / "x.png")
    kept = [pictures.read(drawn / "samples" / "step-000002" / f"01-a-cat-at-night-{n}-nfe.png")[0] for n in (4, 8)]
    assert (again - kept[0]).abs().max() < 1.5 / 255 < (again - kept[1]).abs().max()  # a merged LoRA rounds otherwise
    assert facts["weights"] == "qwen-image-lora-step-000002.safetensors" and len(facts["hash"]) == 64


def test_the_table_beside_the_samples_is_one_of_prompts(drawn, tmp_path, capsys):
    table = drawn / "samples" / "prompts.jsonl"
    assert generate([str(drawn), "--prompts", str(table), "--each", "1", "--output", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "grid.png").exists()
    made = {path.name: pictures.read(path)[1] for path in (tmp_path / "all").glob("0*.png")}
    assert sorted(made) == [
        "01-a-cat-at-night-4-nfe.png", "01-a-cat-at-night-8-nfe.png", "02-a-dog-1-nfe.png", "03-it-goes-on-1-nfe.png"
    ]  # fmt: skip
    assert made["02-a-dog-1-nfe.png"]["seed"] == 1


def test_the_base_is_drawn_once(start, drawn, monkeypatch):
    kept = {path: path.read_bytes() for path in (drawn / "samples" / "base").iterdir()}

    def never(*_):
        raise AssertionError("the base was drawn again")

    monkeypatch.setattr(previews, "Guided", never)
    assert start(drawn.parent, "--prompts", drawn.parent / "p.txt", "--steps", "4") == 0
    assert (drawn / "samples" / "step-000004.png").exists()
    assert kept == {path: path.read_bytes() for path in (drawn / "samples" / "base").iterdir()}


def test_the_base_of_a_full_model_is_drawn_before_it_is_trained(start, tmp_path, capsys):
    assert start(tmp_path, mode="full") == 0
    folder = tmp_path / "qwen-image-full" / "samples" / "base"
    assert len(list(folder.iterdir())) == 2
    next(folder.iterdir()).unlink()
    assert start(tmp_path, "--steps", "4", mode="full") == 0
    assert "the base is not drawn" in capsys.readouterr().out
    assert (folder.parent / "step-000004.png").exists()


def test_the_most_that_is_drawn(start, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("\n".join(f"picture {i} --s 1" for i in range(120)))
    assert start(tmp_path, "--prompts", tmp_path / "p.txt", "--sample-base", "0") == 0
    assert capsys.readouterr().out.count("the first 8 of 120 are drawn") == 1
    assert len(list((tmp_path / "qwen-image-lora" / "samples" / "step-000002").iterdir())) == 8


def test_the_longest_that_is_drawn(start, tmp_path, capsys):
    assert start(tmp_path, "--sample-minutes", "0.0001") == 0
    said = capsys.readouterr().out
    assert said.count("of 2 prompts are drawn in --sample-minutes 0.0001; give more") == 1
    assert said.count("of the base 0 of 2 prompts are drawn") == 1 and "it is left out" in said
    assert (tmp_path / "qwen-image-lora" / "qwen-image-lora.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "a cat --w 100", ["p.txt:1", "width is 100", "multiple of 16", "96"]),
        ("p.txt", "a cat --foo 3", ["p.txt:1", "--foo", "--w, --h, --d"]),
        ("p.csv", "prompt,seed\na cat,x\n", ["p.csv:2", "seed is 'x'", "whole number"]),
        ("p.jsonl", '{"width": 64}', ["p.jsonl:1", "has no prompt"]),
        ("p.yaml", "- {prompt: a, reference: 0.png}", ["p.yaml:1", "reference '0.png' is not there"]),
        ("p.txt", "", ["holds no prompt"]),
    ],
)
def test_wrong_prompts_are_found_before_anything_is_encoded(start, tmp_path, capsys, name, text, words):
    (tmp_path / name).write_text(text)
    assert start(tmp_path, "--prompts", tmp_path / name, "--cache", tmp_path / "cache") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert not (tmp_path / "cache").exists()


def test_prompts_of_an_edit_model(photos, tmp_path, capsys):
    family = family_of("qwen-image-edit")
    published(family, tmp_path)
    rows = [dict(source=str(photos / "0.png"), target=str(photos / "1.png"), instruction="turn it")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.csv").write_text(
        f"prompt,reference,seed,width,height\nturn it round,{photos / '1.png'},7,,\nback,{photos / '0.png'},8,64,64\n"
    )
    asked = ["--model", "qwen-image-edit", "--source", tmp_path, "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "runs",
             "--prompts", tmp_path / "p.csv", "--rank", "2"]  # fmt: skip
    assert main("lora", [*map(str, asked), *FAST]) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "qwen-image-edit-lora"
    image, facts = pictures.read(folder / "samples" / "step-000002" / "01-turn-it-round-1-nfe.png")
    assert image.shape == (3, 64, 64) or image.shape[2] > image.shape[1]  # as the picture that is edited
    assert facts["seed"] == 7 and len(facts["references"]) == 1
    table = str(folder / "samples" / "prompts.jsonl")
    assert generate([str(folder), "--prompts", table, "--each", "1", "--output", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "all").glob("0*.png"))) == 2
