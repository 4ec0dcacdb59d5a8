"""Quantised layers in a safetensors file: which scales belong to which weight, and the weight that they stand for.

The forms are ComfyUI's, of today (`weight_scale` and `comfy_quant` beside each weight, or metadata) and of its first fp8 files
(`scale_weight`, and `scaled_fp8` in the file).  What is a weight times its scale is computed here; who knows more formats says
so.  One that nobody knows is refused by its name.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .plain_json import loads
from .weights import WeightsError

Entries = Mapping[str, tuple[str, tuple[int, ...]]]  # of a file: key -> (dtype, shape)

MARK, METADATA, OLD_MARK = "comfy_quant", "_quantization_metadata", "scaled_fp8"
RENAMED = {"scale_weight": "weight_scale", "scale_input": "input_scale"}  # of files with OLD_MARK
SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "weight_s_rel", "weight_s_channel")
COMPANIONS = {*SCALES, *RENAMED, "weight_codebook", MARK}
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
FLOATS = ("F32", "F16", "BF16")
INTEGERS = ("I8", "U8", "I16", "I32", "I64")
PLAIN = (*FP8.values(), "int8_tensorwise")  # weight times scale, where nothing is rotated

# Formats of other programs: what their keys look like, and what they are called.
FOREIGN = (
    (r"\.(wscales|wcscales|wtscale|smooth_factor|smooth_factor_orig|proj_down|proj_up)$", "SVDQuant (Nunchaku)"),
    (r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\.bitsandbytes__(nf4|fp4)$", "bitsandbytes NF4 or FP4"),
    (r"\.(SCB|weight_format)$", "bitsandbytes int8"),
    (r"\.weight\._(data|scale|shift)$|\.weight_qtype$", "quanto"),
    (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"\.(svd_up|svd_down|zero_point)$", "SDNQ"),
    (r"\.(weight_packed|weight_shape)$", "compressed-tensors"),
    (r"\.(W_q|weight_qdata)$", "HQQ or torchao"),
    (r"\.weight_scale_inv$", "block-wise fp8"),
)
INSTEAD = "Choose a bf16, fp8 (also scaled), GGUF or ComfyUI int8 file of the model"


@dataclass
class Layer:
    """A quantised weight.  conf: as ComfyUI writes it, "format" and its options.  parts: part -> its key, bare, in the file."""

    module: str
    conf: dict
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.conf["format"]


def foreign_format(keys: Mapping[str, object], metadata: Mapping[str, str]) -> str | None:
    """The name of another program's quantisation, if the file is in one."""
    if "nunchaku" in (metadata.get("model_class", "") + metadata.get("quantization_config", "")).lower():
        return FOREIGN[0][1]
    for pattern, name in FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            return name
    return None


def layers_of(
    name: str,
    entries: Entries,
    metadata: Mapping[str, str],
    read: Callable[[list[str]], Mapping[str, Tensor]],
    bare: Callable[[str], str],
    known: Collection[str] = PLAIN,
    reader: str = "the TwinFlow trainer",
) -> dict[str, Layer]:
    """The quantised layers by module.  bare: a key without its file's prefix.  known: formats that the reader can read.

    Raises WeightsError for a format that is not known, scales without a weight, and weights that have lost their scales.
    """
    if foreign := foreign_format(entries, metadata):
        raise WeightsError(f"{name}: is quantised as {foreign}, which {reader} cannot read. {INSTEAD}")
    parts: dict[str, dict[str, str]] = {}
    for key in entries:
        module, _, end = key.rpartition(".")
        if end in COMPANIONS:
            parts.setdefault(module, {})[RENAMED.get(end, end)] = key
    confs = {bare(module): conf for module, conf in _in_metadata(name, metadata).items()}
    marks = [own[MARK] for own in parts.values() if MARK in own]
    for key, data in (read(marks) if marks else {}).items():
        confs[key.rpartition(".")[0]] = _json(name, bytes(data.flatten().to(torch.uint8).tolist()))
    old = _old_conf(entries) if OLD_MARK in entries else None
    layers, strays = {}, []
    for module in dict.fromkeys([*parts, *confs]):
        own, conf = parts.get(module, {}), confs.get(module)
        if f"{module}.weight" not in entries:
            strays += list(own.values())  # a layer that only the metadata names does no harm
            continue
        conf = conf or old or {}
        if not conf.get("format"):
            conf = {**conf, "format": _inferred(name, module, entries, own)}
        elif conf["format"] in FP8.values():
            conf = {**conf, "format": FP8.get(entries[f"{module}.weight"][0], conf["format"])}
        _check_known(name, conf, module, entries, own, known, reader)
        layers[module] = Layer(module, conf, own)
    if strays:
        raise WeightsError(
            f"{name}: {len(strays)} scales belong to no weight of the file, so it is not complete. Fetch or convert it again "
            f"({', '.join(strays[:3])})"
        )
    _refuse_bare_integers(name, entries, layers)
    return layers


def _in_metadata(name: str, metadata: Mapping[str, str]) -> dict[str, dict]:
    if METADATA not in metadata:
        return {}
    found = _json(name, metadata[METADATA])
    layers = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(layers, dict) or not all(isinstance(conf, dict) for conf in layers.values()):
        raise WeightsError(f"{name}: its metadata {METADATA} lists no layers; expected what ComfyUI writes. Convert it again")
    return layers


def _json(name: str, text: str | bytes):
    try:
        return loads(text)
    except ValueError:
        raise WeightsError(f"{name}: what it says of its quantisation is not JSON. Convert the file again") from None


def _old_conf(entries: Entries) -> dict:
    """ComfyUI's first fp8 files: a marker of two elements asks for full-precision products."""
    (elements,) = entries[OLD_MARK][1] or (1,)
    return {"full_precision_matrix_mult": True} if elements == 2 else {}


def _inferred(name: str, module: str, entries: Entries, own: Mapping[str, str]) -> str:
    """The format of a layer that has scales but no mark, where its tensors leave no doubt."""
    dtype, shape = entries[f"{module}.weight"]
    scale = entries[own["weight_scale"]][1] if "weight_scale" in own else None
    if scale is not None and "weight_scale_2" not in own:
        if dtype in FP8 and count(scale) in (1, shape[0]) and entries[own["weight_scale"]][0] in FLOATS:
            return FP8[dtype]
        if dtype == "I8" and count(scale) == 1:
            return "int8_tensorwise"
    what = {"U8": "nvfp4", "I8": "int8 with a scale a row", **dict.fromkeys(FP8, "mxfp8 or block-wise fp8")}.get(dtype)
    if scale is None and what is not None:
        raise WeightsError(
            f"{name}: {module} is quantised ({dtype}) but its scale is not in the file. Fetch or convert the file again"
        )
    if what is None:
        raise WeightsError(
            f"{name}: {module} has scales for a weight that is not quantised ({dtype}), so it was converted by half. "
            "Convert it again, or choose the original file"
        )
    raise WeightsError(
        f"{name}: looks like {what}, but does not say how its weights are laid out (neither {MARK} nor {METADATA}), so they "
        f"cannot be read with certainty. {INSTEAD}"
    )


def _check_known(
    name: str, conf: dict, module: str, entries: Entries, own: Mapping[str, str], known: Collection[str], reader: str
) -> None:
    kind = conf["format"]
    if kind not in known:
        those = ", ".join(sorted(known))
        raise WeightsError(f"{name}: is quantised as {kind}, which {reader} does not know ({those}). Update it. {INSTEAD}")
    dtype, shape = entries[f"{module}.weight"]
    if dtype in FLOATS:
        raise WeightsError(
            f"{name}: {module} is said to be {kind}, but its weight is {dtype}, so it was converted by half. "
            "Convert it again, or choose the original file"
        )
    scale = own.get("weight_s_rel" if "asym" in kind else "weight_scale")
    if scale is None:
        raise WeightsError(
            f"{name}: {module} is quantised ({kind}) but its scale is not in the file. Fetch or convert the file again"
        )
    if kind in PLAIN and count(entries[scale][1]) not in (1, shape[0]):
        raise WeightsError(
            f"{name}: {module} is said to be {kind}, but has {count(entries[scale][1])} scales for its {shape[0]} rows; "
            f"expected one for all or one a row. {INSTEAD}"
        )


def _refuse_bare_integers(name: str, entries: Entries, layers: Mapping[str, Layer]) -> None:
    bare = [
        key
        for key, (dtype, shape) in entries.items()
        if key.endswith(".weight") and dtype in INTEGERS and shape and key[: -len(".weight")] not in layers
    ]
    if bare:
        raise WeightsError(
            f"{name}: {len(bare)} weights are whole numbers ({entries[bare[0]][0]}) without scales, which have no meaning: "
            f"the scales were lost. Fetch or convert the file again ({', '.join(bare[:3])})"
        )


def count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def plain(layer: Layer) -> bool:
    """Whether its weight is what is stored times its scale."""
    return layer.kind in PLAIN and not _rotated(layer.conf)


def dequantised(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight (float32) that a plain layer stands for.  tensors: of the file, by bare keys."""
    weight, scale = tensors[f"{layer.module}.weight"], tensors[layer.parts["weight_scale"]].float()
    scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, *[1] * (weight.ndim - 1))
    return smoothed(layer, tensors, weight.float() * scale)


def smoothed(layer: Layer, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """With the scale of the input, so of the columns, where there is one."""
    return weight * tensors[layer.parts["pre_quant_scale"]].float() if "pre_quant_scale" in layer.parts else weight


def _rotated(conf: dict) -> bool:
    params = conf.get("params")
    return bool(conf.get("convrot") or (isinstance(params, dict) and params.get("convrot")))
