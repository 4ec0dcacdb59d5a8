"""Whole runs of the trainer's command on the tiny model of every family: from pictures to files, grids and samples."""

import json
import logging
import math
import shutil
from logging.handlers import BufferingHandler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.cli import main
from trainer.generate import main as draw
from trainer.runs.images import ImageRun
from trainer.training import checkpoint
from twinflow.weights import Provenance, load, read_header

from ..scale.test_distributed import together as sharded
from .conftest import families

RUN = ["--resolution", "64", "--steps", "2", "--sample-every", "2", "--sample-base", "2", "--validate-every", "2",
       "--log-every", "1", "--threads", "1", "--dtype", "fp32", "--guidance", "2", "--warmup", "0",
       "--tracker", "none"]  # fmt: skip


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Five pictures with captions, as a folder and, for editing, with a source each in pairs.jsonl."""
    folder, g = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(5):
        picture = Image.fromarray(g.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((80, 64 + 16 * (i % 2)))
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a cat {i}\na dog {i}\n")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.txt").write_text("a broken picture")
    pairs = [dict(source=f"{i}.png", target=f"{(i + 1) % 5}.png", instruction=f"turn it {i}") for i in range(4)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def options(family, whole, photos, out):
    edits = family.backbone.edits
    data = str(photos / "pairs.jsonl" if edits else photos)
    return ["--model", family.backbone.name, "--source", str(whole.folder), "--data", data, "--validation", data,
            "--out", str(out), *RUN]  # fmt: skip


@pytest.fixture
def warned():
    """records: what diffusers and transformers log meanwhile."""
    handler = BufferingHandler(1000)
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).addHandler(handler)
    yield SimpleNamespace(records=handler.buffer)
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).removeHandler(handler)


# z-image has in the goldens' size no positions for so many tokens
@families(lambda backbone: backbone.limits and backbone.name != "z-image")
def test_captions_that_are_cut_are_named(family, whole, photos, tmp_path, capsys, warned):
    """Each time, not only when they are encoded, and before anything is trained."""
    backbone = family.backbone
    data = tmp_path / "data"
    for name, letters in (("long", 1500), ("short", 5)):
        data.mkdir(exist_ok=True)
        (data / f"{name}.png").write_bytes((photos / f"{int(letters > 9)}.png").read_bytes())
        (data / f"{name}.txt").write_text("a" * letters)
    given = ["--model", backbone.name, "--source", str(whole.folder), "--data", str(data), *RUN, "--sample-every", "0"]
    for out in ("one", "two"):
        assert main("lora", [*given, "--out", str(tmp_path / out), "--cache", str(tmp_path / "cache"), "--rank", "2"]) == 0
        printed = capsys.readouterr()
        noted = json.loads((tmp_path / out / f"{backbone.name}-lora" / "rows-training.json").read_text())["noted"]
        for reader, most in backbone.limits.items():
            (name,) = noted[f"caption longer than {reader} reads"]
            assert name.startswith(str(data / "long.png")) and name.endswith(f"of which {most} are read)")
            assert f"caption longer than {reader} reads" in printed.out
    assert not warned.records


def test_from_pictures_to_samples(family, whole, photos, tmp_path, capsys):
    from_pictures_to_samples("lora", family, whole, photos, tmp_path, capsys)


@families(lambda backbone: backbone.name in ("qwen-image-edit", "sd3.5", "sana"))
def test_all_weights_from_pictures_to_samples(family, whole, photos, tmp_path, capsys):
    from_pictures_to_samples("full", family, whole, photos, tmp_path, capsys)


def from_pictures_to_samples(mode, family, whole, photos, tmp_path, capsys):
    backbone, name = family.backbone, f"{family.backbone.name}-{mode}"
    rank = ["--rank", "2", "--trigger", "sks"] if mode == "lora" else ["--lr", "1e-3"]
    assert main(mode, [*options(family, whole, photos, tmp_path), *rank]) == 0, capsys.readouterr().err
    folder = tmp_path / name
    steps = {"step-000000", "step-000002"}
    grids, beside = {f"{step}.png" for step in steps}, {"prompts.txt", "prompts.jsonl", "base"}
    assert {p.name for p in (folder / "samples").iterdir()} == steps | grids | beside
    assert len(list((folder / "samples" / "base").glob("*.png"))) == 4 and all(
        len(list((folder / "samples" / step).glob("*-nfe.png"))) == 12 for step in steps
    )
    rows = (folder / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(",")))
    for term in ("loss", "one_step", "multi_step", "any_step", "fake"):
        assert math.isfinite(float(last[term])) and math.isfinite(float(last[f"validation_{term}"])), term
    provenance = Provenance.from_metadata(read_header(folder / f"{name}.safetensors").metadata)
    trigger = "sks" if mode == "lora" else ""
    assert (provenance.base_model, provenance.time, provenance.trigger) == (backbone.core.name, "two", trigger)
    assert all(t.isfinite().all() for t in load(folder / f"{name}.safetensors").values())
    if not backbone.edits:
        report = json.loads((folder / "rows-training.json").read_text())
        assert report["used"] == 5 and "broken.png" in str(report["skipped"])
    text = (folder / "summary.md").read_text()
    assert backbone.edits or ("--prompts 'sks a prompt'" in text) == bool(trigger)
    assert f"--source {whole.folder}" in text and "grid.png" in text and "validation" in text
    picture, reference = tmp_path / "drawn.png", ["--reference", str(photos / "0.png")] if backbone.edits else []
    asked = [str(folder), "--prompts", "a cat, at night", "a dog", "--each", "1", "--steps", "2", *reference]
    assert draw([*asked, "--size", "64x128", "--output", str(picture)]) == 0
    wide, high = Image.open(picture).size
    assert high > wide
    if backbone.edits:
        assert draw([*asked, "--output", str(picture)]) == 0  # as large as what is edited
        assert Image.open(picture).size[1] < high


@pytest.mark.parametrize("edit", [False], ids=["2509"], indirect=True)
def test_the_second_run_encodes_nothing(edit, edit_whole, photos, tmp_path, monkeypatch, capsys):
    """And a run that is finished says so."""
    asked = options(edit, edit_whole, photos, tmp_path)
    assert main("lora", [*asked, "--rank", "2"]) == 0
    monkeypatch.setattr(type(edit.backbone), "text_encoder", None)
    plain = lambda self, settings, latents, device: [x[:, :3].sigmoid() for x in latents]  # pictures as small as latents
    monkeypatch.setattr(ImageRun, "images", plain)
    assert main("lora", [*asked, "--rank", "2"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main("lora", [*asked, "--rank", "3", "--name", "again"]) == 0


def test_image_free(family, whole, photos, tmp_path):
    """From a list of prompts, no picture looked at; an edit model still needs what it edits."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    if family.backbone.edits:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text(json.dumps(dict(source=str(photos / "0.png"), instruction="turn it")))
    asked = options(family, whole, photos, tmp_path)
    asked[asked.index("--data") + 1] = asked[asked.index("--validation") + 1] = str(prompts)
    free = ["--image-free", "--aspects", "1:1,2:1", "--time", "fold", "--rank", "2", "--sample-every", "0"]
    assert main("lora", [*asked, *free]) == 0
    (weights,) = tmp_path.glob("*-lora/*-lora.safetensors")
    assert Provenance.from_metadata(read_header(weights).metadata).time == "fold"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["sana-0.6b", "z-image-turbo"])
def test_a_published_model_needs_a_gpu(name, tmp_path, capsys):
    """Said before anything is fetched or written."""
    assert main("lora", ["--model", name, "--data", "photos", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "needs a GPU" in error and "--model digits" in error and "GiB" in error and error.count("\n") == 1


@pytest.mark.parametrize("edit", [True], ids=["2511"], indirect=True)
def test_a_killed_run_goes_on_to_the_same_weights(edit, edit_whole, photos, tmp_path, monkeypatch):
    asked = [*options(edit, edit_whole, photos, tmp_path), "--steps", "4", "--save-every", "1", "--caption-dropout", "0.3",
             "--sample-every", "0"]  # fmt: skip
    assert main("lora", [*asked, "--name", "whole"]) == 0
    write = checkpoint.write

    class Killed(Exception):
        pass

    def killed(state, *rest, **options):
        write(state, *rest, **options)
        if state.step == 2:
            raise Killed

    monkeypatch.setattr(checkpoint, "write", killed)
    with pytest.raises(Killed):
        main("lora", [*asked, "--name", "cut"])
    monkeypatch.setattr(checkpoint, "write", write)
    assert main("lora", [*asked, "--name", "cut"]) == 0
    whole, cut = (load(tmp_path / name / f"{name}.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(t, cut[name]) for name, t in whole.items())


@pytest.mark.parametrize("family", ["qwen-image"], indirect=True)
def test_data_are_known_by_their_content(family, whole, photos, tmp_path, monkeypatch, capsys):
    """Spelled otherwise, moved or copied they are the same: bit-equal.  Others are said, and the run goes on."""
    pics = shutil.copytree(photos, tmp_path / "pics")
    monkeypatch.chdir(tmp_path)
    common = ["--model", "qwen-image", "--source", str(whole.folder), "--out", str(tmp_path / "runs"), *RUN, "--rank", "2",
              "--sample-every", "0", "--batch", "2", "--schedule", "constant", "--lr", "1e-2"]  # fmt: skip

    def go(name, data, steps):
        assert main("lora", [*common, "--data", str(data), "--name", name, "--steps", str(steps)]) == 0
        return load(tmp_path / "runs" / name / f"{name}.safetensors"), capsys.readouterr().out

    elsewhere = shutil.copytree(pics, tmp_path / "elsewhere" / "deeper")
    for done, spelled in enumerate((pics, f"{pics}/", "pics", "./pics", elsewhere, f'"{pics}"')):
        got, out = go("cut", spelled, done + 1)
        assert "not what they were" not in out and f"step {done} of {done + 1}" in out or not done, spelled
    wanted, _ = go("whole", pics, 6)
    assert all(torch.equal(got[name], t) for name, t in wanted.items())
    shutil.copy(pics / "0.png", pics / "new.png")
    (pics / "new.txt").write_text("a new one", "utf-8")
    _, out = go("cut", pics, 7)
    assert "the data are not what they were (6 rows, were 5): training goes on with them as they are" in out
    _, out = go("cut", pics, 8)
    assert "not what they were" not in out


@families(lambda backbone: backbone.name == "sd3.5")  # whose second time embedder is drawn, and whose table lies in the file
def test_sharded(family, whole, photos, tmp_path):
    """Read by part, saved by part; the samples before the first step are the model's own."""
    given = [*options(family, whole, photos, tmp_path), "--optimizer", "adamw", "--batch", "4", "--validation", ""]
    assert "wrote" in sharded(tmp_path, "images", "fsdp2", *given, "--steps", "1")[0]
    run = tmp_path / "sd3.5-full"
    assert (run / "checkpoints" / "step-00000001").is_dir() and (run / "samples" / "step-000000.png").exists()
    found, base = load(run / "sd3.5-full.safetensors"), family.backbone.to_file(whole.pipeline.transformer.state_dict())
    assert base.keys() < found.keys() and all(t.isfinite().all() for t in found.values())
    assert torch.equal(found["pos_embed"], base["pos_embed"])
    moved = [name for name, t in base.items() if not torch.equal(found[name], t)]
    assert len(moved) > 0.9 * len(base) and all((found[n] - base[n]).abs().max() < 0.01 for n in moved)
