"""TwinFlow Save: a patched MODEL with its metadata, whole, or what differs from its file as an adapter."""

import os
from dataclasses import replace

import comfy.lora
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..twinflow.backbones import Backbone
from ..twinflow.layouts import exchanged
from ..twinflow.weights import Provenance, file_order, save_streamed
from . import gguf_files
from .loading import one_line
from .node import Node
from .quantised import COMPANIONS
from .report import Report, shown
from .saved import provenance_of
from .schedule import CATEGORY
from .search import found_by
from .supported import backbone_of, names
from .time_conditioning import has_second_embedder, time_conditioning_of
from .values import check_values

PREFIX = "diffusion_model."
WHOLE, ADAPTER = "one file", "base + adapter"
DTYPES = {"as it is": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Save(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowSave",
            display_name="TwinFlow Save",
            category=CATEGORY,
            **found_by("save model", "merge", "export", "checkpoint"),
            description=(
                "Saves the model as it is now, with its LoRAs and its time conditioning, for the TwinFlow Model Loader: in one "
                "file, or as its base and an adapter."
            ),
            inputs=[
                io.Model.Input("model", tooltip=f"A {names()} model, with whatever LoRAs are applied to it."),
                io.String.Input(
                    "filename_prefix",
                    default="models/twinflow",
                    tooltip="Where in ComfyUI's output folder, and how the files' names begin.",
                ),
                io.Combo.Input(
                    "save_as",
                    options=[WHOLE, ADAPTER],
                    default=WHOLE,
                    tooltip=(
                        "one file: all weights, LoRAs merged. base + adapter: the weights without LoRAs, and beside them the "
                        "LoRAs and the second time embedder."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="as it is",
                    tooltip="How the weights are written. as it is: as they are in memory; what is quantised as bfloat16.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(display_name="report", tooltip="The files that were written.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, filename_prefix="models/twinflow", save_as=WHOLE, dtype="as it is") -> io.NodeOutput:
        written = write(model, filename_prefix, save_as, DTYPES[dtype])
        report = Report(f"saved {' and '.join(os.path.basename(path) for path in written)}", [f"  {path}" for path in written])
        return io.NodeOutput(report.text(), ui=shown(cls, report))


def write(patcher, prefix: str, save_as: str, dtype: torch.dtype | None) -> list[str]:
    """The paths of the new files.  Raises ValueError for a model that the pack does not know, or that is kept as GGUF."""
    record = backbone_of(patcher.model)
    if record is None:
        raise ValueError(f"{type(patcher.model).__name__} is no model of {names()}: save it with core's ModelSave")
    comfy.model_management.throw_exception_if_processing_interrupted()
    folder, name, number, *_ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    path = lambda what: os.path.join(folder, f"{name}_{number:05}{what}.safetensors")
    keys = [key for key in patcher.model.diffusion_model.state_dict() if key.rpartition(".")[2] not in COMPANIONS]
    if any(gguf_files.is_quantised(stored(patcher, key)) for key in keys):
        raise ValueError(
            "the model's weights are kept as GGUF, which cannot be saved: load its .safetensors file, or unpack it"
        )
    about = metadata(patcher, record)
    if save_as == WHOLE:
        put(path("_"), {key: (kind(patcher, key, dtype), lambda k=key: patched(patcher, k)) for key in keys}, patcher, about)
        return [path("_")]
    second = set(record.second) & set(keys)
    adapter = {key: patched(patcher, key) for key in second}
    for key in keys:
        if key not in second and patches_of(patcher, key):
            adapter |= change(patcher, key)
    if not adapter:
        raise ValueError("the model has neither LoRA nor second time embedder, so no adapter can be saved: choose one file")
    ranks = [len(t) for name, t in adapter.items() if name.endswith(".lora_A.weight")]
    rank = {"twinflow.rank": str(max(ranks))} if ranks and "twinflow.time" in about else {}
    base = {key: (kind(patcher, key, dtype), lambda k=key: original(patcher, k)) for key in keys if key not in second}
    put(path("_base"), base, patcher, {"twinflow.base_model": about["twinflow.base_model"]})
    put(path("_adapter"), {PREFIX + key: (dtype or t.dtype, lambda t=t: t) for key, t in adapter.items()}, None, about | rank)
    return [path("_base"), path("_adapter")]


def put(path: str, tensors: dict, patcher, about: dict[str, str]) -> None:
    """tensors: name -> (dtype, what makes it); one is in memory at a time."""
    shape = lambda name, make: make().shape if patcher is None else stored(patcher, name).shape
    outlines = {name: torch.empty(shape(name, make), dtype=dtype, device="meta") for name, (dtype, make) in tensors.items()}
    bar = comfy.utils.ProgressBar(len(tensors))

    def made():
        for name in file_order(outlines):
            tensor = tensors[name][1]().to(outlines[name].dtype)
            check_values(os.path.basename(path), {name: tensor})
            bar.update(1)
            yield tensor

    with one_line():
        save_streamed(outlines, made(), path, about)


def stored(patcher, key: str) -> Tensor:
    """The weight without patches, wherever the model lies by now."""
    kept = patcher.backup.get(PREFIX + key)
    return comfy.utils.get_attr(patcher.model, PREFIX + key) if kept is None else kept.weight


def is_packed(weight: Tensor) -> bool:
    return type(weight) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def kind(patcher, key: str, dtype: torch.dtype | None) -> torch.dtype:
    """In which a weight is written."""
    weight = stored(patcher, key)
    if not weight.is_floating_point():
        return weight.dtype
    lossy = is_packed(weight) or (weight.dtype.itemsize == 1 and patches_of(patcher, key))
    return dtype or (torch.bfloat16 if lossy else weight.dtype)


def original(patcher, key: str) -> Tensor:
    weight = stored(patcher, key).detach()
    return (weight.dequantize() if is_packed(weight.data) else weight).cpu()


def patches_of(patcher, key: str) -> list:
    return patcher.patches.get(PREFIX + key, [])


def patched(patcher, key: str) -> Tensor:
    """The weight with its patches, float32 where there are any."""
    weight, patches = original(patcher, key), patches_of(patcher, key)
    return comfy.lora.calculate_weight(patches, weight.float().clone(), PREFIX + key) if patches else weight


def change(patcher, key: str) -> dict[str, Tensor]:
    """What the patches of a weight add to it: as one LoRA where they are plain ones, else as the whole difference."""
    module, _, end = key.rpartition(".")
    rows = stored(patcher, key).shape[0]
    halves = [half_of(patch, rows) for patch in patches_of(patcher, key)]
    if end == "weight" and all(halves):
        downs, ups = zip(*(pair for pair in halves if pair))
        return {f"{module}.lora_A.weight": torch.cat(downs), f"{module}.lora_B.weight": torch.cat(ups, 1)}
    difference = patched(patcher, key) - original(patcher, key).float()
    return {f"{module}.{'diff' if end == 'weight' else 'diff_b'}": difference}


def half_of(patch: tuple, rows: int) -> tuple[Tensor, Tensor] | None:
    """(A, B) in float32 of a plain LoRA patch, for all rows of the weight; None for any other."""
    strength, adapter, strength_model, offset, function = patch
    if type(adapter).__name__ != "LoRAAdapter" or strength_model != 1 or (offset is not None and offset[0] != 0):
        return None
    up, down, alpha, *others = adapter.weights
    if any(other is not None for other in others) or up.ndim != 2 or down.ndim != 2 or (function and function is not exchanged):
        return None
    up = up.float().cpu() * (strength * (1 if alpha is None else alpha / len(down)))
    whole = torch.zeros(rows, len(down))
    first, count = (0, rows) if offset is None else offset[1:]
    whole[first : first + count] = exchanged(up) if function else up
    return down.float().cpu(), whole


def metadata(patcher, record: Backbone) -> dict[str, str]:
    """Of the file that the weights or the LoRA came from, with the times that the model gets now."""
    time, known = time_conditioning_of(patcher.model, patcher.model_options), provenance_of(patcher)
    rule = "two" if has_second_embedder(patcher.model) else time.rule
    name = known.base_model if known and known.base_model else record.name
    if rule == "off":
        return {"twinflow.base_model": name}
    signed = record.native_time.of(patcher.model.diffusion_model).signed if rule == "two" else True
    found = known or Provenance(rule, name)
    now = replace(found, time=rule, base_model=name, rank=None, sampler=time.recommended, signed_time=signed)
    return now.to_metadata()
