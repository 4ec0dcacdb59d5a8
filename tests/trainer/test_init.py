"""--init: training that starts from an adapter, a LoRA of any layout, or a TwinFlow model."""

import hashlib
import json
import shutil
from typing import Any

import pytest
import torch

from trainer.backbones import backbone
from trainer.cli import main
from trainer.config.resolving import resolve
from trainer.generate import main as draw
from trainer.weights import files, origin
from trainer.weights.inference import load_trained
from trainer.weights.trainee import Trainee, VelocityModel
from twinflow.weights import load, read_header, save

DIGITS = backbone("digits")


@pytest.fixture
def go(finished, tmp_path, tiny, capsys):
    """go(option, ...): exit code and what is said; the base is that of the finished runs."""
    base = ["--base", str(finished / "digits-lora" / "base.safetensors"), "--out", str(tmp_path / "runs"), "--evaluate", "0"]

    def run(*options, mode="lora"):
        code = main(mode, [*tiny, *base, "--sample-every", "0", *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    go: Any = run
    go.out = tmp_path / "runs"
    return go


@pytest.fixture
def adapter(finished):
    return files.final(finished / "digits-lora", "digits-lora")


@pytest.fixture
def whole(finished):
    return files.final(finished / "digits-full", "digits-full")


def base(finished):
    return DIGITS.load(finished / "digits-lora" / "base.safetensors")


def inputs():
    g = torch.Generator().manual_seed(1)
    x, embeds = torch.randn(3, 3, 8, 8, generator=g), torch.randn(3, 2, 64, generator=g)
    t, r = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.0, 0.4, 0.3])
    return x, t, r, (embeds, torch.ones(3, 2, dtype=torch.bool))


def begun(finished, path, mode="lora", **options):
    """What would be trained, at step 0, and what was said."""
    settings = resolve(mode, {"model": "digits", "init": str(path), **options}, notify=lambda line: None)
    start, _ = origin.opened(DIGITS, settings, begun=False)
    assert start is not None
    trainee = Trainee(DIGITS, origin.model(DIGITS, settings, lambda: base(finished)), settings)
    said = start.start(trainee) if start.adapter else ""
    return trainee, said


@pytest.mark.parametrize("options", [{}, {"rank": 11}, {"rank": 8, "alpha": 3, "rslora": True}])
def test_an_adapter_of_ours_says_what_it_said(finished, adapter, options):
    trainee, said = begun(finished, adapter, **options)
    expected = load_trained(DIGITS, base(finished), adapter)(*inputs())
    torch.testing.assert_close(trainee.network(*inputs()), expected, rtol=0, atol=2e-5)
    assert "second time embedder" in said and ("filled up to 11" in said) == (options.get("rank") == 11)
    if not options:  # to the last bit
        written, file = trainee.file(trainee.tensors), load(adapter)
        assert written.keys() == file.keys() and all(torch.equal(written[name], t) for name, t in file.items())


def test_what_is_filled_up_can_learn(finished, adapter):
    trainee, _ = begun(finished, adapter, rank=11)
    trainee.network(*inputs()).square().sum().backward()
    up = next(p for name, p in trainee.tensors.items() if ".lora_B." in name and p.grad is not None and p.grad.any())
    assert up.shape[1] == 11 and up.grad is not None and up.grad[:, 8:].abs().sum() > 0 and not up[:, 8:].any()


LAYOUTS = {
    "diffusers": "transformer.{}.lora_{}.weight",
    "ours": "diffusion_model.{}.lora_{}.weight",
    "bare": "{}.lora_{}.weight",
    "peft": "base_model.model.{}.lora_{}.default.weight",
    "kohya": "lora_unet_{}.lora_{}.weight",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_lora_of_any_layout(finished, tmp_path, layout, mode):
    """Merged by hand, the base says the same.  Beside it, a text encoder's LoRA, which is left out and named."""
    g, model = torch.Generator().manual_seed(0), base(finished)
    targets = DIGITS.lora_targets(model, "attention")
    tensors, alpha = {}, 3.0 if layout == "kohya" else None
    with torch.no_grad():
        for name in targets[:-1]:
            weight = model.get_submodule(name).weight
            down, up = (torch.randn(shape, generator=g) * 0.1 for shape in ((4, weight.shape[1]), (weight.shape[0], 4)))
            own, halves = (name.replace(".", "_"), ("down", "up")) if layout == "kohya" else (name, "AB")
            tensors |= {LAYOUTS[layout].format(own, half): t for half, t in zip(halves, (down, up))}
            if alpha:
                tensors[f"lora_unet_{own}.alpha"] = torch.tensor(alpha)
            weight += (alpha / 4 if alpha else 1) * up @ down
    for half in ("down", "up"):
        tensors[f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{half}.weight"] = torch.zeros(2, 2)
    save(tensors, tmp_path / "style.safetensors")
    options = {"targets": "attention", "time": "fold"} if mode == "lora" else {}
    trainee, said = begun(finished, tmp_path / "style.safetensors", mode, **options)
    x, t, _, cond = inputs()
    r = torch.zeros_like(t) if mode == "lora" else t
    expected = VelocityModel(DIGITS, model, "fold")(x, t, torch.zeros_like(t), cond)
    torch.testing.assert_close(trainee.network(x, t, r, cond), expected, rtol=0, atol=2e-5)
    assert "1 layers of a text encoder" in said and "style.safetensors" in said
    assert ("1 more layers start at zero" in said and "rank 4, filled up to 8" in said) == (mode == "lora")


def test_the_alpha_of_a_file_s_metadata(finished, tmp_path, adapter):
    tensors = {name: t for name, t in load(adapter).items() if ".lora_" in name}
    settings = dict(lora_alpha=4, r=8)
    save(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    trainee, said = begun(finished, tmp_path / "x.safetensors", time="fold")
    for name, t in trainee.file(trainee.tensors).items():
        torch.testing.assert_close(t, tensors[name] * (0.5 if ".lora_B." in name else 1))
    assert "second" not in said
    _, said = begun(finished, tmp_path / "x.safetensors")
    assert "it has no second time embedder, so a new one is trained" in said


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_twinflow_model_takes_the_place_of_the_model(finished, whole, mode):
    distilled = load_trained(DIGITS, base(finished), whole)
    trainee, _ = begun(finished, whole, mode)
    torch.testing.assert_close(trainee.network(*inputs()), distilled(*inputs()), rtol=0, atol=1e-6)
    frozen, (x, t, _, cond) = trainee.base(), inputs()
    with torch.no_grad():
        for p in trainee.tensors.values():
            p.add_(0.1)
    torch.testing.assert_close(frozen(x, t, t, cond), distilled(x, t, t, cond), rtol=0, atol=1e-6)


def test_a_style_on_a_distilled_base(go, whole, tmp_path):
    """From the command to a picture; the adapter lies on the distilled model, and its file says so."""
    code, out = go("--init", whole, "--name", "style", "--evaluate", "40")
    assert code == 0, out
    folder = go.out / "style"
    header = read_header(files.final(folder, "style"))
    assert (
        header.metadata["twinflow.init"] == f"digits-full.safetensors sha256:{hashlib.sha256(whole.read_bytes()).hexdigest()}"
    )
    assert str(whole.parent) not in json.dumps(header.metadata)
    config = json.loads((folder / "config.json").read_text())
    assert config["init"] == str(whole) and config["init_file"]["holds"] == "model"
    assert f"--init {whole}" in (folder / "summary.md").read_text()
    assert draw([str(folder), "--prompts", "3", "--output", str(tmp_path / "x.png")]) == 0
    code, out = go("--init", whole, "--name", "style", "--evaluate", "40")
    assert code == 0 and "is finished" in out
    moved = shutil.copy(whole, tmp_path / "elsewhere.safetensors")
    code, out = go("--init", moved, "--name", "style", "--steps", "9")
    assert code == 0 and "step 8 of 9" in out, out
    code, out = go("--name", "style", "--steps", "10")
    assert code == 2 and "was begun from digits-full.safetensors" in out and "--name NEW" in out
    save({name: t + 0.01 for name, t in load(whole).items()}, tmp_path / "other.safetensors", read_header(whole).metadata)
    code, out = go("--init", tmp_path / "other.safetensors", "--name", "style", "--steps", "10")
    assert code == 2 and "was trained from other weights" in out, out


def test_a_run_from_an_adapter_needs_it_once(go, adapter, tmp_path):
    mine = shutil.copy(adapter, tmp_path / "stage1.safetensors")
    code, out = go("--init", mine, "--name", "two", "--steps", "2")
    assert code == 0 and "starting from stage1.safetensors: the LoRA of" in out
    other = tmp_path / "other.safetensors"
    save({name: t + 0.01 for name, t in load(adapter).items()}, other, read_header(adapter).metadata)
    code, out = go("--init", other, "--name", "two", "--steps", "4")
    assert code == 0 and "is not read again: the run has begun, from stage1.safetensors" in out and "step 2 of 4" in out
    mine.unlink()
    code, out = go("--init", mine, "--name", "two", "--steps", "5")
    assert code == 0 and "step 4 of 5" in out
    told = read_header(files.final(go.out / "two", "two")).metadata["twinflow.init"]
    assert told == f"stage1.safetensors sha256:{hashlib.sha256(adapter.read_bytes()).hexdigest()}"
    code, out = go("--name", "two", "--steps", "6")
    assert code == 0 and "--init not given" in out
    assert read_header(files.final(go.out / "two", "two")).metadata["twinflow.init"] == told


def test_killed_and_resumed_is_bit_equal(go, adapter, tmp_path):
    """Stopped after two steps; the file is gone when it goes on."""
    mine = shutil.copy(adapter, tmp_path / "stage1.safetensors")
    constant = ["--schedule", "constant", "--init", mine]
    assert go(*constant, "--name", "whole", "--steps", "4")[0] == 0
    assert go(*constant, "--name", "cut", "--steps", "2")[0] == 0
    mine.unlink()
    assert go(*constant, "--name", "cut", "--steps", "4")[0] == 0
    a, b = (load(files.final(go.out / name, name)) for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    start = load(adapter)
    assert all(a[name].shape == start[name].shape and (a[name] - start[name]).abs().max() < 0.3 for name in start)


def test_trainer_full_from_an_adapter_and_from_a_model(go, adapter, whole):
    for name, path in (("merged", adapter), ("again", whole)):
        code, out = go("--init", path, "--name", name, mode="full")
        assert code == 0, out
        code, out = go("--init", path, "--name", name, "--steps", "9", mode="full")
        assert code == 0 and "step 8 of 9" in out, out


def changed(adapter, path, change):
    tensors, metadata = load(adapter), dict(read_header(adapter).metadata)
    change(tensors, metadata)
    save(tensors, path, metadata)
    return path


def put(name, value):
    return lambda tensors, metadata: tensors.update({name: value})


A = "diffusion_model.proj_out.lora_A.weight"
B = "diffusion_model.time_text_embed_2.timestep_embedder.linear_1.bias"
NOTHING = lambda tensors, metadata: None  # noqa: E731
FAULTS = {  # what is done to an adapter of ours, the options, and what is said
    "another model": (
        lambda t, m: m.update({"twinflow.base_model": "z-image"}),
        [],
        "is of z-image; expected a file of digits",
    ),
    "unknown block": (put("transformer.blocks.77.q.lora_A.weight", torch.zeros(8, 64)), [], "blocks.77.q"),
    "half a LoRA": (lambda t, m: t.pop(A), [], "no lora_down.weight"),
    "DoRA": (put("diffusion_model.proj_out.dora_scale", torch.ones(3)), [], "is no plain LoRA (dora_scale)"),
    "another size": (put(A, torch.zeros(8, 5)), [], "it is of another model"),
    "not finite": (put(A, torch.full((8, 64), float("nan"))), [], "not finite"),
    "a weight beside": (put("proj_out.bias", torch.zeros(3)), [], "'proj_out.bias' (1 such), which is no LoRA"),
    "rank": (NOTHING, ["--rank", "4"], "is of rank 8, which does not fit into --rank 4; expected --rank 8 or more"),
    "targets": (NOTHING, ["--targets", "attention"], "outside --targets attention; expected --targets all"),
    "folded": (NOTHING, ["--time", "fold"], "expected --time two"),
    "embedder": (lambda t, m: t.pop(B), [], "embedder does not fit"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_started_from(go, adapter, tmp_path, fault, monkeypatch):
    change, options, said = FAULTS[fault]
    monkeypatch.setattr("trainer.runs.digits.DigitsRun.prepare", None)  # nothing is made before
    path = changed(adapter, tmp_path / "x.safetensors", change)
    code, out = go("--init", path, *options)
    assert code == 2 and said in out and out.startswith("error: ") and out.count("\n") == 1, out
    assert not list(go.out.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: None, "is not there"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), "not a safetensors file"),
        (lambda path: save({"a.weight": torch.zeros(2)}, path), "neither a LoRA nor a TwinFlow model"),
        (lambda path: save({}, path), "neither a LoRA nor a TwinFlow model"),
    ],
)
def test_files_of_other_kinds(go, tmp_path, make, said):
    make(tmp_path / "x.safetensors")
    code, out = go("--init", tmp_path / "x.safetensors")
    assert code == 2 and said in out and out.count("\n") == 1 and "x.safetensors" in out


def test_a_cut_file(go, adapter, whole, tmp_path):
    for path in (adapter, whole):
        (tmp_path / "x.safetensors").write_bytes(path.read_bytes()[:-50])
        code, out = go("--init", tmp_path / "x.safetensors")
        assert code == 2 and "cut off" in out and out.count("\n") == 1


def test_a_model_of_another_size(go, whole, tmp_path):
    tensors = load(whole)
    save(tensors | {"img_in.weight": torch.zeros(64, 64)}, tmp_path / "x.safetensors", read_header(whole).metadata)
    code, out = go("--init", tmp_path / "x.safetensors")
    assert code == 2 and "'img_in.weight' is (64, 64)" in out and out.count("\n") == 1
    save(tensors | {"more.weight": torch.zeros(4)}, tmp_path / "x.safetensors", read_header(whole).metadata)
    code, out = go("--init", tmp_path / "x.safetensors")
    assert code == 2 and "'more.weight' (1 such)" in out
    code, out = go("--init", whole, "--time", "fold")
    assert code == 2 and "expected --time two" in out


def test_a_base_is_trained_from_nothing(finished, adapter, tmp_path, capsys):
    assert main("base", ["--model", "digits", "--init", str(adapter), "--out", str(tmp_path)]) == 2
    assert "--init means nothing to trainer.base" in capsys.readouterr().err
