"""Bases that are quantised in their file: unpacked with their scales, or refused by name before a tensor is read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import TrainerError
from trainer.backbones.packed import open_weights
from twinflow.weights import WeightsError

from .conftest import families
from .forms import E4M3, FORMS, mark, matrices, written

try:
    import gguf
except ImportError:
    gguf = None

in_comfyui = families(lambda backbone: backbone.name not in ("sana", "openuni"))  # ComfyUI has no SANA


@pytest.fixture
def native(family):
    """A tiny model and its tensors under ComfyUI's names; sizes that a file can tell."""
    model = family.plain()
    return model, family.backbone.to_file(dict(model.state_dict()))


def near(model, wanted, error):
    """And what is no matrix is as it was."""
    state = wanted.state_dict()
    for name, t in model.state_dict().items():
        if t.ndim == 2 and name.endswith(".weight") and min(t.shape) > 1:
            assert 0 < (t - state[name]).norm() <= error * state[name].norm(), name
        else:
            assert torch.equal(t, state[name]), name


@in_comfyui
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("form", FORMS)
def test_a_packed_base_is_the_plain_one_within_its_error(family, native, form, prefix, tmp_path):
    model, tensors = native
    path = written(tensors, form, tmp_path / "base.safetensors", prefix)
    near(family.backbone.load(str(path), dtype=torch.float32), model, FORMS[form][2])
    assert {t.dtype for n, t in family.backbone.load(str(path)).state_dict().items() if n.endswith("to_q.weight")} == {
        torch.bfloat16
    }


@in_comfyui
def test_formats_in_the_metadata(family, native, tmp_path):
    model, tensors = native
    written(tensors, "weight_scale", tmp_path / "marked.safetensors")
    found = {n: t for n, t in load_file(tmp_path / "marked.safetensors").items() if not n.endswith(".comfy_quant")}
    layers = {name.removesuffix(".weight"): {"format": "float8_e4m3fn"} for name in matrices(tensors)}
    path = tmp_path / "base.safetensors"
    save_file(found, path, {"_quantization_metadata": json.dumps(dict(format_version="1.0", layers=layers))})
    near(family.backbone.load(str(path), dtype=torch.float32), model, 0.04)


FAULTS = {
    "scale lost, old": ("scale_weight", lambda t, m: t.pop(f"{m}.scale_weight"), "scale is not in the file"),
    "all scales lost, old": (
        "scale_weight", lambda t, m: [t.pop(n) for n in list(t) if ".scale_" in n], "have no scale"
    ),
    "scale lost, marked": ("weight_scale", lambda t, m: t.pop(f"{m}.weight_scale"), "scale is not in the file"),
    "scale and mark lost": (
        "weight_scale", lambda t, m: (t.pop(f"{m}.weight_scale"), t.pop(f"{m}.comfy_quant")), "have no scale"
    ),
    "int8 without anything": ("int8", lambda t, m: (t.pop(f"{m}.weight_scale"), t.pop(f"{m}.comfy_quant")), "whole numbers"),
    "weight lost": ("weight_scale", lambda t, m: t.pop(f"{m}.weight"), "belong to no weight"),
    "scales of another size": ("weight_scale", lambda t, m: t.update({f"{m}.weight_scale": torch.ones(3)}), "3 scales"),
    "nvfp4": ("weight_scale", lambda t, m: t.update({f"{m}.comfy_quant": mark("nvfp4")}), "is quantised as nvfp4"),
    "rotated": (
        "int8", lambda t, m: t.update({f"{m}.comfy_quant": mark("int8_tensorwise", convrot=True)}), "int8_tensorwise, rotated"
    ),
    "nunchaku": ("weight_scale", lambda t, m: t.update({f"{m}.wscales": torch.ones(3)}), "SVDQuant"),
    "bitsandbytes": ("weight_scale", lambda t, m: t.update({f"{m}.weight.absmax": torch.ones(3)}), "bitsandbytes NF4"),
}  # fmt: skip


@in_comfyui
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_read_is_refused_in_one_line(family, native, fault, tmp_path):
    form, spoil, said = FAULTS[fault]
    tensors = load_file(written(native[1], form, tmp_path / "base.safetensors"))
    spoil(tensors, sorted(matrices(native[1]))[0].removesuffix(".weight"))
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises((TrainerError, WeightsError), match=said) as error:
        family.backbone.load(str(tmp_path / "base.safetensors"))
    assert "\n" not in str(error.value) and "base.safetensors" in str(error.value)


@in_comfyui
def test_values_that_are_not_numbers(family, native, tmp_path):
    tensors = {name: t.contiguous() for name, t in native[1].items()}
    name = sorted(matrices(tensors))[-1]
    for value in (float("nan"), float("inf")):
        for dtype in (torch.float32, torch.bfloat16):
            spoilt = {n: t.to(dtype) for n, t in tensors.items()}
            spoilt[name] = spoilt[name].clone()
            spoilt[name][1, 1] = value
            save_file(spoilt, tmp_path / "x.safetensors")
            with pytest.raises(TrainerError, match="holds values that are not numbers"):
                family.backbone.load(str(tmp_path / "x.safetensors"))
    large = {n: torch.full_like(t, 6e4).half() if n == name else t for n, t in tensors.items()}
    save_file(large, tmp_path / "x.safetensors")
    family.backbone.load(str(tmp_path / "x.safetensors"))


def test_plain_fp8_is_no_scaled_fp8(tmp_path):
    save_file({"a.weight": torch.ones(4, 4).to(E4M3), "b.weight": torch.ones(4)}, tmp_path / "x.safetensors")
    file = open_weights(tmp_path / "x.safetensors")
    assert not file.packed and torch.equal(file.tensors()["a.weight"].float(), torch.ones(4, 4))


# GGUF

needs_gguf = pytest.mark.skipif(gguf is None, reason="the gguf package is not installed")


def write_gguf(path, tensors, kind):
    """Matrices with rows of whole blocks have this type, all else float32; leading ones are dropped, as ggml's writers do."""
    writer = gguf.GGUFWriter(path, "qwen_image")
    for name, t in tensors.items():
        values = t.float().reshape(t.shape[1:] if t.ndim > 1 and t.shape[0] == 1 else t.shape).contiguous().numpy()
        if values.ndim == 2 and values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        elif values.ndim > 2:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(n) for n in values.shape])
            writer.add_tensor(name, values.reshape(values.shape[0], -1))
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@in_comfyui
@needs_gguf
@pytest.mark.parametrize("kind, error", [("Q8_0", 0.01), ("Q4_0", 0.15), ("BF16", 0.01), ("F16", 0.001)])
@pytest.mark.parametrize("names", ["native", "diffusers"])
def test_gguf(family, native, kind, error, names, tmp_path):
    model, tensors = native
    tensors = tensors if names == "native" else dict(model.state_dict())
    path = write_gguf(tmp_path / "base.gguf", tensors, gguf.GGMLQuantizationType[kind])
    found, wanted = family.backbone.load(str(path), dtype=torch.float32).state_dict(), model.state_dict()
    changed = [name for name, t in found.items() if not torch.equal(t, wanted[name])]
    tables = ("pos_embed.pos_embed", "scale_shift_table")
    assert changed and all(name in matrices(wanted) or name.endswith(tables) for name in changed)
    assert all((found[name] - wanted[name]).norm() <= error * wanted[name].norm() for name in changed)


@in_comfyui
@needs_gguf
def test_a_damaged_gguf_is_one_line(family, native, tmp_path):
    path = write_gguf(tmp_path / "base.gguf", native[1], gguf.GGMLQuantizationType.Q8_0)
    whole = path.read_bytes()
    for cut in (b"GGUF" + b"\0" * 64, whole[: len(whole) // 2], b"", b"no gguf at all, but text"):
        path.write_bytes(cut)
        with pytest.raises((TrainerError, WeightsError), match="cannot be read as GGUF") as error:
            family.backbone.load(str(path))
        assert "\n" not in str(error.value)


def test_gguf_without_its_package_says_so(family, tmp_path, monkeypatch):
    from trainer.backbones import packed

    monkeypatch.setattr(packed, "find_spec", lambda name: None)
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    with pytest.raises(TrainerError, match="pip install gguf"):
        family.backbone.load(str(tmp_path / "base.gguf"))
