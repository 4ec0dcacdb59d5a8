"""What a run leaves behind, and that the other half can use it."""

import csv
import json

import pytest
import torch
from PIL import Image

from trainer.backbones import backbone
from trainer.cli import main
from trainer.runs.digits import Labelled, decode, images
from trainer.weights.inference import generate, load_trained, noise
from twinflow.prompts import load_prompts
from twinflow.weights import Provenance, load, read_header

STAGES = [(stage, n) for stage in ("base", "distilled") for n in (1, 2, 4, 8, 32)]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_files(finished, mode):
    folder = finished / f"digits-{mode}"
    assert json.loads((folder / "config.json").read_text())["mode"] == mode
    rows = json.loads((folder / "metrics.json").read_text())["quality"]
    assert [(row["stage"], row["nfe"]) for row in rows[1:]] == STAGES
    with open(folder / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["stage"], int(line["step"])) for line in lines] == [("base", i + 1) for i in range(6)] + [
        ("distil", i + 1) for i in range(8)
    ]
    for name in ("grid.png", "loss.png", "samples/step-000008.png"):
        assert min(Image.open(folder / name).size) > 100
    for stage, n in STAGES:
        made = load(folder / f"samples_{stage}_{n}nfe.safetensors")
        assert made["images"].shape == (40, 1, 8, 8) and made["images"].dtype == torch.float32
        assert made["images"].min() >= 0 and made["images"].max() <= 1
        assert made["labels"].dtype == torch.int64 and made["labels"].bincount().tolist() == [4] * 10


def test_the_base_has_plain_qwen_keys_and_is_shared(finished):
    names = read_header(finished / "digits-lora" / "base.safetensors").tensors
    assert "transformer_blocks.0.img_mod.1.weight" in names and not any("time_text_embed_2" in n for n in names)
    a, b = (load(finished / f"digits-{mode}" / "base.safetensors") for mode in ("lora", "full"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_adapter_file(finished):
    header = read_header(finished / "digits-lora" / "digits-lora.safetensors")
    assert all(name.startswith("diffusion_model.") for name in header.tensors)
    assert not any("alpha" in name for name in header.tensors)
    assert "diffusion_model.time_text_embed_2.timestep_embedder.linear_1.weight" in header.tensors
    provenance = Provenance.from_metadata(header.metadata)
    assert (provenance.time, provenance.rank, provenance.base_model) == ("two", 8, "digits")
    assert [s.steps for s in provenance.sampler] == [1, 2, 4, 8, 32]
    assert header.metadata["format"] == "pt" and header.metadata["modelspec.architecture"]


def test_full_file_is_one_model_with_both_embedders(finished):
    header = read_header(finished / "digits-full" / "digits-full.safetensors")
    base = read_header(finished / "digits-full" / "base.safetensors")
    extra = header.tensors.keys() - base.tensors.keys()
    assert not base.tensors.keys() - header.tensors.keys()
    assert extra and all(name.startswith("time_text_embed_2.") for name in extra)
    assert Provenance.from_metadata(header.metadata).rank is None


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_samples_come_from_the_files(finished, mode):
    """The files alone, read afresh, give the samples on disk again."""
    folder = finished / f"digits-{mode}"
    network = load_trained(
        backbone("digits"), backbone("digits").load(folder / "base.safetensors"), folder / f"digits-{mode}.safetensors"
    )
    prompts = load_prompts(folder / "prompts.safetensors")
    saved = load(folder / "samples_distilled_4nfe.safetensors")
    cond = backbone("digits").collate([prompts[str(int(k))] for k in saved["labels"]])
    sampling = next(s for s in backbone("digits").sampling if s.steps == 4)
    made = decode(generate(network, noise(40, (3, 8, 8), 1), cond, sampling))
    torch.testing.assert_close(made, saved["images"], rtol=0, atol=1e-5)


def test_the_same_command_again_trains_nothing(finished, capsys, tiny):
    before = {p: p.stat().st_mtime_ns for p in (finished / "digits-lora").rglob("*") if p.is_file()}
    assert main("lora", [*tiny, "--out", str(finished)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_another_base_is_refused_before_it_is_trained(finished, capsys, tiny):
    before = set((finished / "cache").iterdir())
    assert main("lora", [*tiny, "--out", str(finished), "--base-steps", "7"]) == 2
    assert "--base-steps was 6, is 7" in capsys.readouterr().err and set((finished / "cache").iterdir()) == before


def test_another_rank_needs_another_name(finished, capsys, tiny):
    assert main("lora", [*tiny, "--out", str(finished), "--rank", "5"]) == 2
    error = capsys.readouterr().err
    assert "--rank was 8, is 5" in error and "--name NEW" in error and "--rank 8 to go on" in error


def test_the_generator_never_sees_the_test_images():
    x_train, y_train, x_test, _ = images()
    assert (len(x_train), len(x_test)) == (1347, 450)
    data = Labelled()
    seen = decode(data.batch_at(0, len(data), seed=0)[0]).flatten(1)
    assert sorted(seen.tolist()) == sorted(x_train.flatten(1).tolist())
