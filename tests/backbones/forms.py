"""The forms of ComfyUI's quantised files, written: matrices with their scales, all else as it is."""

import json

import torch
from safetensors.torch import save_file

E4M3 = torch.float8_e4m3fn


def matrices(tensors):
    return {name for name, t in tensors.items() if t.ndim == 2 and name.endswith(".weight") and min(t.shape) > 1}


def mark(kind, **options):
    return torch.tensor(list(json.dumps(dict(format=kind) | options).encode()), dtype=torch.uint8)


def fp8(t, rows, dtype=E4M3):
    top = t.abs().amax(1, keepdim=True) if rows else t.abs().amax()
    scale = (top / torch.finfo(dtype).max).clamp(min=1e-12)
    return (t / scale).to(dtype), scale.squeeze(-1) if rows else scale


def old(t, name, dtype=E4M3):
    weight, scale = fp8(t, rows=False, dtype=dtype)
    return {f"{name}.weight": weight, f"{name}.scale_weight": scale, f"{name}.scale_input": torch.tensor(1.0)}


def new(t, name, rows=False):
    weight, scale = fp8(t, rows)
    return {f"{name}.weight": weight, f"{name}.weight_scale": scale, f"{name}.comfy_quant": mark("float8_e4m3fn")}


def int8(t, name):
    scale = t.abs().amax(1, keepdim=True) / 127
    return {f"{name}.weight": (t / scale).round().to(torch.int8), f"{name}.weight_scale": scale,
            f"{name}.comfy_quant": mark("int8_tensorwise")}  # fmt: skip


FORMS = {  # how a matrix is written, what else is in the file, the error that the format makes
    "scale_weight": (old, {"scaled_fp8": torch.zeros(2, dtype=E4M3)}, 0.04),
    "scale_weight e5m2": (lambda t, name: old(t, name, torch.float8_e5m2), {"scaled_fp8": torch.zeros(0, dtype=E4M3)}, 0.08),
    "weight_scale": (new, {}, 0.04),
    "weight_scale a row": (lambda t, name: new(t, name, rows=True), {}, 0.04),
    "int8": (int8, {}, 0.01),
}


def written(tensors, form, path, prefix=""):
    write, beside, _ = FORMS[form]
    out = dict(beside)
    for name, t in tensors.items():
        out |= write(t, name.removesuffix(".weight")) if name in matrices(tensors) else {name: t}
    save_file({prefix + name: t.contiguous() for name, t in out.items()}, path)
    return path
