"""Checks before work on image models: a fault is found by the dry run and the run in one line, before a picture is encoded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import TrainerError
from trainer.backbones import sources
from trainer.cli import main
from trainer.runs import checks
from trainer.runs.images import ImageRun

from .conftest import families
from .test_runs import RUN, options, photos  # noqa: F401  a fixture

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def nothing_is_encoded(monkeypatch):
    def encoded(*_, **__):
        raise AssertionError("something was encoded")

    monkeypatch.setattr(ImageRun, "cache", encoded)


def ends(options, capsys, mode="lora"):
    errors = []
    for extra in (["--dry-run"], []):
        assert main(mode, [*options, *extra]) == 2
        errors.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")])
    assert errors[0] == errors[1]
    return errors[0]


def test_an_outline_is_what_is_loaded(family, whole):
    """By name, shape and settings, from a folder and from one file; and the plan is of that size."""
    backbone, loaded = family.backbone, family.backbone.load(str(whole.folder))
    outlined = backbone.outline(str(whole.folder))
    assert {n: t.shape for n, t in outlined.state_dict().items()} == {n: t.shape for n, t in loaded.state_dict().items()}
    assert all(p.is_meta for p in outlined.parameters()) or backbone.name == "openuni"  # whose file is mapped
    with torch.device("meta"):
        small = backbone.sized(outlined).skeleton()
    assert {n: t.shape for n, t in small.named_parameters()} == {n: t.shape for n, t in loaded.named_parameters()}
    assert not any(p.is_meta for p in backbone.load(str(whole.folder)).parameters())
    if backbone.name != "openuni":
        one = backbone.outline(str(whole.folder / "transformer" / WEIGHTS))
        assert {n: t.shape for n, t in one.state_dict().items()} == {n: t.shape for n, t in loaded.state_dict().items()}


def test_what_is_at_the_hub_is_not_fetched_for_a_check(family, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert family.backbone.outline("owner/model") is None
    assert family.backbone.outline("owner/model/file.safetensors") is None


def test_a_good_run_passes(family, whole, photos, tmp_path, capsys):  # noqa: F811
    assert main("lora", [*options(family, whole, photos, tmp_path / "runs"), "--rank", "2", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rank"] == 2 and not captured.err and not list(tmp_path.iterdir())


FAULTS = {
    "a cut file": "cut off",
    "a missing tensor": "has no",
    "another family": "is a UNet2DModel",
    "no transformer": "has no transformer/ folder",
    "a tensor too many": "holds 'extra.weight'",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_is_looked_at(edit, edit_whole, photos, tmp_path, capsys, nothing_is_encoded, fault):  # noqa: F811
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    edit.plain().save_pretrained(folder)
    file = folder / WEIGHTS
    if fault == "a cut file":
        file.write_bytes(file.read_bytes()[:-100])
    elif fault == "a missing tensor":
        save_file(dict(list(load_file(file).items())[:-1]), file)
    elif fault == "a tensor too many":
        save_file(load_file(file) | {"extra.weight": torch.zeros(2)}, file)
    elif fault == "another family":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    else:
        (folder / "config.json").unlink()
        folder.rename(tmp_path / "model" / "unet")
    asked = options(edit, edit_whole, photos, tmp_path / "runs")
    asked[asked.index("--source") + 1] = str(tmp_path / "model")
    errors = ends([*asked, "--encoders", str(edit_whole.folder)], capsys)
    assert len(errors) == 1 and FAULTS[fault] in errors[0], errors


def test_everything_else_in_one_go(edit, edit_whole, photos, tmp_path, capsys, nothing_is_encoded):  # noqa: F811
    """Prompts without references for an edit model, a missing validation, blocks, layers, a resolution, a cut encoder."""
    (tmp_path / "prompts.txt").write_text("a cat\n")
    vae = edit_whole.folder / "vae" / WEIGHTS
    saved = vae.read_bytes()
    vae.write_bytes(saved[:-4])
    try:
        asked = [*options(edit, edit_whole, photos, tmp_path / "runs"), "--prompts", str(tmp_path / "prompts.txt")]
        asked += ["--validation", str(tmp_path / "nothing"), "--block-swap", "99", "--targets", "to_qq", "--resolution", "65"]
        errors = ends(asked, capsys)
    finally:
        vae.write_bytes(saved)
    words = ("prompts.txt:1: has no image to edit", "--validation: ", "does not exist", "--block-swap is 99",
             "'to_qq' names no", "--resolution is 65; expected a multiple of 16", "vae", "cut off")  # fmt: skip
    assert len(errors) == 6 and all(any(word in line for line in errors) for word in words), errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "text, word",
    [(None, "does not exist"), ("", "holds no prompt"), ("\n \n", "holds no prompt"), (b"\xff\xfe\x00", "UTF-8")],
)
def test_prompts(edit, edit_whole, photos, tmp_path, capsys, nothing_is_encoded, text, word):  # noqa: F811
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    asked = [*options(edit, edit_whole, photos, tmp_path / "runs"), "--prompts", str(path), "--sample-every", "0"]
    errors = ends(asked, capsys)
    assert len(errors) == 1 and "prompts.txt" in errors[0] and word in errors[0], errors


@families(lambda backbone: backbone.name == "qwen-image")  # one is enough
@pytest.mark.parametrize("option, name", [("--data", "data"), ("--validation", "validation")])
def test_data_of_which_nothing_can_be_used(whole, family, photos, tmp_path, capsys, nothing_is_encoded, option, name):  # noqa: F811
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no picture")
    (bad / "a.txt").write_text("a cat")
    errors = ends([*options(family, whole, photos, tmp_path / "runs"), option, str(bad)], capsys)
    assert len(errors) == 1 and f"{option}: " in errors[0] and "1 broken image" in errors[0], errors
    errors = ends([*options(family, whole, photos, tmp_path / "runs"), option, str(tmp_path / "runs")], capsys)
    assert "does not exist" in errors[0]
    (bad / "a.png").write_bytes((photos / "0.png").read_bytes())
    (bad / "a.txt").rename(bad / "prompts.txt")
    for data, way_out in ((bad, "a .txt file beside each, or --caption TEXT for all"), (bad / "prompts.txt", "--image-free")):
        (error,) = ends([*options(family, whole, photos, tmp_path / "runs"), option, str(data)], capsys)
        assert "no usable row" in error and way_out in error, error


@families(lambda backbone: backbone.name == "sd3.5")  # whose table of positions ends
def test_shapes_that_the_model_cannot_take(whole, family, photos, tmp_path, capsys, nothing_is_encoded):  # noqa: F811
    model = family.backbone.outline(str(whole.folder))
    most = family.backbone.longest(model)
    asked = options(family, whole, photos, tmp_path / "runs")
    assert "expected at most" in ends([*asked, "--resolution", str(most + 16)], capsys)[0]
    assert "a smaller one of the two" in ends([*asked, "--resolution", str(most), "--aspect", "4"], capsys)[0]
    assert main("lora", [*asked, "--resolution", str(most), "--aspect", "1", "--dry-run"]) == 0


def test_aspects_of_prompts_without_images(edit, edit_whole, photos, tmp_path, capsys, nothing_is_encoded):  # noqa: F811
    asked = [*options(edit, edit_whole, photos, tmp_path / "runs"), "--image-free", "--aspects", "wide"]
    assert "aspects is 'wide'" in ends(asked, capsys)[0]


def test_a_cache_that_is_a_file_and_a_full_disk(edit, edit_whole, photos, tmp_path, capsys, monkeypatch, nothing_is_encoded):  # noqa: F811
    (tmp_path / "cache").write_text("")
    asked = options(edit, edit_whole, photos, tmp_path / "runs")
    assert "--cache: " in ends([*asked, "--cache", str(tmp_path / "cache")], capsys)[0]
    monkeypatch.setattr(checks.space.psutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    (error,) = ends(asked, capsys)
    assert "encoded images and captions" in error and "checkpoints and weights files" in error


def test_a_hub_s_source_is_looked_at_before_anything_is_encoded(edit, edit_whole, photos, tmp_path, monkeypatch, capsys):  # noqa: F811
    """It is fetched first, its header read, and only then come the encoders."""
    folder = tmp_path / "fetched" / "transformer"
    folder.mkdir(parents=True)
    edit.plain().save_pretrained(folder)
    file = folder / WEIGHTS
    save_file(dict(list(load_file(file).items())[:-1]), file)

    def snapshot_download(repository, allow_patterns, ignore_patterns, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError("not here")
        return str(tmp_path / "fetched")

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    for module in (checks.environment, checks.model):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    monkeypatch.setattr(ImageRun, "request", lambda *_, **__: pytest.fail("rows were read"))
    for module in (checks.facts, checks.data):
        monkeypatch.setattr(module, "usable_rows", lambda *_, **__: [])
    monkeypatch.setattr(sources, "auth_check", lambda repository: None)
    asked = options(edit, edit_whole, photos, tmp_path / "runs")
    asked[asked.index("--source") + 1] = "owner/model"
    assert main("lora", [*asked, "--encoders", str(edit_whole.folder)]) == 2
    assert "has no" in capsys.readouterr().err
    with pytest.raises(TrainerError):
        edit.backbone.outline("owner/model", fetch=True)

    def absent(repository):
        raise OSError(f"no connection to {repository}\nmore")

    monkeypatch.setattr(sources, "auth_check", absent)
    (error,) = ends([*asked, "--encoders", str(edit_whole.folder)], capsys)
    assert "'owner/model'" in error and "could not be fetched from the hub (no connection to owner/model)" in error and RUN
