"""What trainer.inspect says of files of every family, and that diffusers does what it says."""

import pytest
import torch
from safetensors.torch import save_file

from trainer.inspect import main
from twinflow.weights import load, read_header, save

from .conftest import bare_pipeline
from .forms import written
from .test_convert import gguf, in_folder
from .test_files import trained
from .test_packed import write_gguf

PLAIN = {"qwen-image-edit": "Qwen-Image", "openuni": "SANA"}  # what files of a variant look like
CUT = "model-{:05}-of-00002.safetensors"


def told(path, capsys, code=0):
    assert main([str(path)]) == code
    out = capsys.readouterr()
    return out.out if code == 0 else out.err


def test_a_model_in_its_forms(family, tmp_path, capsys):
    """One file, shards and a folder of the same weights, with their dtypes, names and prefix."""
    core, model = family.backbone.core, in_folder(family, tmp_path / "folder", second=True)
    tensors = family.backbone.to_file(dict(model.state_dict()))
    second = [name for name in tensors if core.time.name in name or core.native_time.name in name or name in core.second]
    save({f"model.diffusion_model.{name}": t for name, t in tensors.items()}, tmp_path / "one.safetensors")
    names = sorted(tensors)
    for i, half in enumerate((names[::2], names[1::2]), 1):
        save({name: tensors[name] for name in half}, tmp_path / CUT.format(i))
    one, shards, folder = (told(tmp_path / name, capsys) for name in ("one.safetensors", CUT.format(2), "folder"))
    title = PLAIN.get(core.name, core.title)
    for text in (one, shards, folder):
        number = len(model.state_dict() if text is folder else tensors)
        assert "a TwinFlow model, with a second time embedder" in text and f"{number} tensors" in text
        assert f"second time embedder: {len(second)} tensors" in text or text is folder
        assert f": {title}, " in text
        assert f"ComfyUI has no {title}" in text if not core.gguf else "TwinFlow Model Loader loads it, two times" in text
    assert "behind 'model.diffusion_model.'" in one and "2 files" in shards
    if core.gguf:
        assert "take one file, not shards" in shards and "take one file, not a folder" in folder
    assert "from_pretrained loads it and drops the second time embedder" in folder


def test_a_lora_and_an_adapter(family, tmp_path, capsys):
    _, adapter = trained(family, "lora-two", tmp_path)
    _, folded = trained(family, "lora-fold", tmp_path)
    text = told(adapter, capsys)
    modules = len(family.backbone.lora_targets(family.plain(), "attention"))
    assert "a TwinFlow adapter (LoRA and second time embedder)" in text and f"LoRA: rank 2; {modules} modules" in text
    assert "twinflow.step: 7" in text and "load_lora_weights refuses it" in text
    text = told(folded, capsys)
    assert "a LoRA of " in text and "trained with folded times" in text
    if family.backbone.core.gguf:
        whole = len(family.backbone.lora_targets(family.plain(), "all"))
        assert f"applies {whole} of {whole} modules" in text and "TwinFlow LoRA Loader applies it" in text


def test_without_metadata_the_modules_tell(family, tmp_path, capsys):
    _, path = trained(family, "lora-fold", tmp_path)
    save(load(path), path)
    assert f"a LoRA of {PLAIN.get(family.backbone.core.name, family.backbone.core.title)}" in told(path, capsys)


def test_diffusers_does_as_is_said(family, tmp_path, capsys):
    """It refuses an adapter, drops an embedder, takes a LoRA behind transformer. whole."""
    _, adapter = trained(family, "lora-two", tmp_path)
    with pytest.raises(ValueError):
        bare_pipeline(family, family.plain()).load_lora_weights(str(tmp_path), weight_name=adapter.name)
    tensors = {name: t for name, t in load(adapter).items() if ".lora_" in name}
    plain = {f"transformer.{name.removeprefix(family.backbone.prefix)}": t for name, t in tensors.items()}
    save(plain, tmp_path / "plain.safetensors")
    assert "load_lora_weights applies it" in told(tmp_path / "plain.safetensors", capsys)
    pipeline = bare_pipeline(family, family.plain())
    pipeline.load_lora_weights(str(tmp_path), weight_name="plain.safetensors")
    applied = {name for name, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
    assert applied == set(family.backbone.lora_targets(family.plain(), "attention"))
    in_folder(family, tmp_path / "folder", second=True)
    loaded = family.cls.from_pretrained(tmp_path / "folder")
    assert loaded.state_dict().keys() == family.plain().state_dict().keys()


def test_quantised_files(family, tmp_path, capsys):
    tensors = family.backbone.to_file(dict(family.plain().state_dict()))
    for form in ("scale_weight", "weight_scale"):
        text = told(written(tensors, form, tmp_path / f"{form}.safetensors"), capsys)
        assert "layers with scales" in text and "fp8 " in text
    save_file({**tensors, "x.weight.absmax": torch.ones(2)}, tmp_path / "bnb.safetensors")
    assert "quantised: as bitsandbytes" in told(tmp_path / "bnb.safetensors", capsys)
    if gguf is None:
        return
    path = write_gguf(tmp_path / "x.gguf", tensors, gguf.GGMLQuantizationType.Q8_0)
    text, core = told(path, capsys), family.backbone.core
    assert "GGUF, general.architecture: qwen_image" in text
    if core.gguf:
        assert ("ComfyUI-GGUF loads it" if core.gguf == "qwen_image" else "ComfyUI-GGUF refuses it: its architecture") in text


def test_bad_input_is_one_line(family, tmp_path, capsys):
    _, path = trained(family, "lora-two", tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-3])
    (tmp_path / "no.gguf").write_bytes(b"GGML")
    (tmp_path / "x.ckpt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    save({"a": torch.ones(1)}, tmp_path / CUT.format(1))
    save(load(path), tmp_path / "bad.safetensors", read_header(path).metadata | {"twinflow.time": "three"})
    for name, words in {
        "cut.safetensors": "cut off", "no.gguf": "does not begin with GGUF", "x.ckpt": "is a .ckpt file",
        "gone": "is not there", "empty": "holds no .safetensors", CUT.format(1): "1 of its 2 shards are not beside it",
        "bad.safetensors": "twinflow.time is 'three'",
    }.items():  # fmt: skip
        error = told(tmp_path / name, capsys, code=2)
        assert words in error and error.count("\n") == 1, error
