"""Checks before work: --dry-run and the run end in the same lines, and nothing is made, encoded or trained by then."""

import os
from pathlib import Path

import pytest
import torch

from trainer import console
from trainer.backbones import backbone, digits
from trainer.cli import main
from trainer.config.flat import from_flat
from trainer.plan.card import Card
from trainer.runs import checks
from trainer.runs.checks import environment, facts, space
from twinflow.weights import load, save

GIB = 2**30


def ends(mode, options, capsys):
    """Exit code and lines of a dry run and of the run, which must be the same."""
    codes, errors = [], []
    for extra in (["--dry-run"], []):
        codes.append(main(mode, [*options, *extra]))
        errors.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")])
    assert codes[0] == codes[1] and errors[0] == errors[1], errors
    return codes[0], errors[0]


SMALL = {
    "a LoRA's layers": ("lora", ["--model", "digits", "--targets", "to_x"], ["targets: 'to_x' names no linear layer"]),
    "of emoji, too": ("lora", ["--model", "emoji", "--targets", "attn.nothing"], ["targets: 'attn.nothing'"]),
    "more blocks than there are": ("lora", ["--model", "digits", "--block-swap", "4", "--checkpointing"], ["at most 3"]),
    "of emoji": ("lora", ["--model", "emoji", "--block-swap", "7", "--checkpointing"], ["at most 6"]),
    "no base": ("full", ["--model", "emoji", "--base", "nowhere.safetensors"], ["nowhere.safetensors: cannot be read"]),
    "a package": ("lora", ["--model", "digits", "--tracker", "wandb"], ["pip install wandb"]),
    "several": (
        "lora",
        ["--model", "digits", "--targets", "to_x", "--block-swap", "9", "--checkpointing", "--base", "x.safetensors"],
        ["x.safetensors: cannot be read"],
    ),
    "a published base": ("base", ["--model", "sana"], ["--model sana has a published base"]),
    "a name": ("base", ["--model", "emoji", "--name", "a/b"], ["--name is 'a/b'"]),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_dry_run_ends_as_the_run_does(name, tmp_path, capsys, monkeypatch):
    mode, options, words = SMALL[name]
    monkeypatch.setattr(environment, "find_spec", lambda package: None if package == "wandb" else True)
    code, errors = ends(mode, [*options, "--out", str(tmp_path / "runs"), "--threads", "1"], capsys)
    assert code == 2 and all(any(word in line for line in errors) for word in words), errors
    assert not list(tmp_path.rglob("*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_dry_run_may_yet_be_without_a_gpu_and_data(tmp_path, capsys):
    """It says what a run would end with, and finds all else."""
    options = ["--model", "sana-0.6b", "--out", str(tmp_path / "runs"), "--resolution", "256"]
    assert main("lora", [*options, "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert main("lora", options) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "needs a GPU" in error and error.removeprefix("error: ") in told and "--data is empty" in told
    assert main("lora", [*options, "--dry-run", "--block-swap", "99", "--data", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "--block-swap is 99; expected at most 28" in error and "--data: nowhere does not exist" in error


def test_all_is_said_in_one_go(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda package: None if package == "wandb" else True)
    options = ["--model", "digits", "--targets", "to_x", "--block-swap", "9", "--checkpointing", "--tracker", "wandb"]
    code, errors = ends("lora", [*options, "--out", str(tmp_path)], capsys)
    assert code == 2 and len(errors) == 3, errors
    for word in ("to_x", "--block-swap is 9; expected at most 3", "pip install wandb"):
        assert any(word in line for line in errors)


@pytest.mark.parametrize("fault", ["cut", "another model", "without its prompts"])
def test_a_base_is_looked_at(fault, tmp_path, capsys):
    path, known = tmp_path / "base.safetensors", digits.BACKBONES["digits"]
    save(known.fresh(torch.Generator().manual_seed(0)).state_dict(), path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif fault == "another model":
        save({name: t[..., :1] for name, t in load(path).items()}, path)
    code, errors = ends("lora", ["--model", "digits", "--base", str(path), "--out", str(tmp_path / "runs")], capsys)
    word = {"cut": "cut off", "another model": "of another size", "without its prompts": "prompts.safetensors: cannot be read"}
    assert code == 2 and len(errors) == 1 and word[fault] in errors[0], errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("file", ["runs", "runs/digits-lora"])
def test_a_file_where_a_folder_is_expected(file, tmp_path, capsys):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    code, errors = ends("lora", ["--model", "digits", "--out", str(tmp_path / "runs")], capsys)
    assert code == 2 and "cannot be made" in errors[0] and str(tmp_path / file) in errors[0]


def test_what_cannot_be_gone_on_with(finished, capsys, tiny):
    code, errors = ends("lora", [*tiny, "--out", str(finished), "--rank", "3", "--steps", "99"], capsys)
    assert code == 2 and "expected --name NEW" in errors[0]
    assert main("lora", [*tiny, "--out", str(finished), "--dry-run"]) == 0
    assert "is finished" in capsys.readouterr().err


def test_a_good_run_passes_and_nothing_is_made(tmp_path, capsys):
    for options in (["--model", "emoji"], ["--model", "digits"]):
        assert main("lora", [*options, "--out", str(tmp_path / "runs"), "--dry-run"]) == 0
    assert main("base", ["--model", "emoji", "--out", str(tmp_path / "runs"), "--dry-run"]) == 0
    assert not capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, notice",
    [
        (["--warmup", "5000"], "--warmup 5000 is not over within --steps 3000: the learning rate never reaches its peak"),
        (["--steps", "100"], "--warmup 100 is not over within --steps 100"), (["--steps", "100", "--warmup", "99"], ""),
        (["--steps", "50", "--warmup", "0"], ""), (["--epochs", "1"], ""),
        (["--times", "logit-normal", "--time-normal=-1,1"], ""),
        (["--time-normal=-0.8,1"], "--time-normal is not read: --times is beta"),
        (["--times", "logit-normal", "--time-beta", "2,1"], "--time-beta is not read: --times is logit-normal"),
        (["--time-beta", "2,1"], ""),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_said(capsys, options, notice):
    assert main("lora", ["--model", "sana", *options, "--dry-run"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("a run would end here: ")]
    assert len(said) == bool(notice) and all(line.startswith(notice) for line in said), said


def found(settings, **changes):
    """What the checks say of a machine with this card, and what they notify of."""
    told = []
    try:
        checks.check(from_flat(settings), told.append)
    except checks.TrainerError as error:
        return str(error).split("\nerror: "), told
    return [], told


def test_the_card_at_hand(monkeypatch):
    """Too small a card, a full one, one without bfloat16, one that this PyTorch has no code for."""
    settings = dict(model="emoji", out="nowhere-to-be-made", batch=128, accumulation=1, name="x", checkpointing=False)
    settings |= dict(targets="all", dtype="bf16")
    large = Card("a card", 80 * GIB, 79 * GIB, (9, 0), ("sm_80", "sm_90"))
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    for own, errors, notices in (
        (large, [], []),
        (large._replace(total=int(0.4 * GIB), free=int(0.4 * GIB)), ["a card, which has 0.4 GiB"], []),
        (large._replace(total=GIB), [], ["1.0 GiB"][:0]),
        (large._replace(free=GIB), [], ["of which 1.0 GiB are free"]),
        (large._replace(capability=(7, 5), built=("sm_75",)), [], ["no bfloat16 units"]),
        (large._replace(capability=(12, 0)), ["has compute capability 12.0, for which"], []),
        (large._replace(capability=(12, 0), built=("sm_80", "compute_90")), [], []),
        (large._replace(capability=(8, 9)), [], []),
    ):
        monkeypatch.setattr(facts, "card", lambda own=own: own)
        said, told = found(settings)
        assert len(said) == len(errors) and all(word in text for word, text in zip(errors, said)), (own, said)
        assert len(told) == len(notices) and all(word in text for word, text in zip(notices, told)), (own, told)


def test_little_disk(tmp_path, capsys, monkeypatch):
    free = [10 * GIB]
    monkeypatch.setattr(space.psutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]}))
    options = ["--model", "digits", "--out", str(tmp_path / "runs"), "--dry-run"]
    assert main("lora", options) == 0
    free[0] = 1000
    assert main("lora", options) == 2
    error = capsys.readouterr().err
    assert "the disk has 0.0 MiB free" in error and "checkpoints and weights files" in error and "--keep" in error


@pytest.mark.parametrize("old", ["0.9.1", "0.19", "0.19.0"])
def test_old_packages(monkeypatch, old):
    monkeypatch.setattr(environment, "version", lambda name: {"peft": old, "torch": "2.10.0+cu128"}.get(name, "99.0"))
    said, _ = found(dict(model="digits", out="nowhere-to-be-made", name="x"))
    assert len(said) == 1 and f"peft {old}; expected 0.19.1 or newer" in said[0]


def test_the_versions_are_those_of_the_project():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    for name, least in environment.NEEDED.items():
        assert f'"{name}>={least}"' in text, name


def test_a_package_that_is_there_and_broken(monkeypatch):
    def broken(name):
        raise OSError("undefined symbol: _ZN3c10\nmore")

    monkeypatch.setattr(environment, "import_module", broken)
    settings = dict(model="digits", out="nowhere-to-be-made", name="x", optimizer="adamw8bit")
    monkeypatch.setattr(environment.optimizers, "find_spec", lambda name: True)
    said, _ = found(settings)
    assert said == ["--optimizer adamw8bit: torchao cannot be imported (undefined symbol: _ZN3c10); pip install -U torchao, or "
                    "another --optimizer"]  # fmt: skip


def test_fsdp_shards_plain_weights(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    said, _ = found(dict(model="digits", out="nowhere-to-be-made", name="x", optimizer="muon", block_swap=1))
    assert len(said) == 2 and all("with FSDP, which shards plain weights" in text for text in said)


def test_a_folder_in_use(finished, capsys, tiny):
    from trainer.runs import lock

    options = [*tiny, "--out", str(finished), "--steps", "99"]
    with lock.held(finished / "digits-lora"):
        code, errors = ends("lora", options, capsys)
    assert code == 2 and f"in use by process {os.getpid()}" in errors[0]


def test_sizes_that_no_model_was_made_for():
    known = backbone("sd3.5-large")
    with torch.device("meta"):
        assert known.longest(known.skeleton()) == 3072
    assert console and backbone("sana").longest(torch.nn.Identity()) == 8192
