"""A model with its second time embedder, from one file or from a plain base and an adapter; or one line that says why not."""

import importlib
import inspect
import logging
from collections import Counter

import comfy.sd
import torch

from ..twinflow.backbones import Backbone
from ..twinflow.weights import WeightsError
from . import gguf_files, lora
from .model_files import ModelFile, open_file
from .supported import names
from .time_conditioning import TimeConditioning, attach, has_second_embedder

DTYPES = {
    "default": {},
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def load_model(path: str, adapter_path: str | None, strength: float, dtype: str):
    """(ModelPatcher, report).  Raises WeightsError; never returns a model without its time conditioning."""
    base, adapter = open_file(path), open_file(adapter_path) if adapter_path else None
    backbone = checked_backbone(base)
    source = second_embedder_in(base, adapter, backbone)
    patcher, loaded = build(base, adapter if source is adapter else None, backbone, dtype)
    lines = [described(base, backbone), *missing_lines(patcher, base, loaded)]
    if source is not None:
        lines.append(f"second time embedder: {len(source.second)} tensors, from {source.name}")
    if adapter is not None:
        patcher, applied = with_lora(patcher, adapter, strength, backbone)
        lines += [described(adapter, None), applied]
    patcher = with_time_conditioning(patcher, backbone, [f for f in (adapter, base) if f is not None])
    patcher.cached_patcher_init = (load_patcher, (path, adapter_path, strength, dtype))
    return patcher, "\n".join(lines)


def load_patcher(path, adapter_path, strength, dtype, disable_dynamic=False):
    """How ComfyUI makes a second, independent copy of the model (another GPU, prompts with hooks)."""
    patcher, _ = load_model(path, adapter_path, strength, dtype)
    return patcher.clone(disable_dynamic=True) if disable_dynamic else patcher


def checked_backbone(file: ModelFile) -> Backbone:
    if file.backbone is None:
        raise WeightsError(
            f"{file.name}: is not a {names()} model ({file.keys_found()}). "
            "Choose a diffusion model file; LoRAs and adapters belong in the adapter input"
        )
    return file.backbone


def second_embedder_in(base: ModelFile, adapter: ModelFile | None, backbone: Backbone) -> ModelFile | None:
    """The file whose second embedder is used; None for a model that was trained with the folded time t - r/2."""
    source = adapter if adapter is not None and adapter.second else base
    if not source.second:
        if adapter is None and base.provenance is not None and base.provenance.time == "fold":
            return None
        if adapter is None:
            raise WeightsError(
                f"{base.name}: has no second time embedder ({backbone.second[0]} and the like; found {base.keys_found()}). "
                "Choose its TwinFlow adapter or embedder file in the adapter input; for a LoRA without an embedder use core's "
                "Load Diffusion Model and the TwinFlow LoRA Loader"
            )
        raise WeightsError(
            f"{adapter.name}: has no second time embedder ({backbone.second[0]} and the like; found {adapter.keys_found()}), "
            f"nor has {base.name}. A LoRA without one belongs in the TwinFlow LoRA Loader, after core's Load Diffusion Model"
        )
    found = set(native(source, backbone, source.second))
    if missing := sorted(set(backbone.second) - found):
        raise WeightsError(
            f"{source.name}: its second time embedder does not fit {backbone.title}: missing {', '.join(missing)}; "
            f"found {', '.join(sorted(found))}. Fetch the file again, or choose the one made for {backbone.title}"
        )
    return source


def build(base: ModelFile, adapter: ModelFile | None, backbone: Backbone, dtype: str):
    """(ModelPatcher, the keys that went in), the second embedder taken from the adapter where one is given."""
    tensors = native(base, backbone)
    if adapter is not None:
        tensors |= native(adapter, backbone, adapter.second)
    keys = set(tensors)
    options = dict(DTYPES[dtype])
    pack = None
    if any(gguf_files.is_quantised(t) for t in tensors.values()):
        pack = gguf_files.quantised_pack()
        assert pack is not None  # else nothing is kept quantised
        options = {"custom_operations": importlib.import_module(".ops", pack.__package__).GGMLOps()}
    load = comfy.sd.load_diffusion_model_state_dict
    extra = {"metadata": base.metadata} if "metadata" in inspect.signature(load).parameters else {}  # ComfyUI 0.4
    patcher = load(tensors, model_options=options, **extra)
    if patcher is None:
        raise WeightsError(
            f"{base.name}: this ComfyUI does not know the model ({backbone.title}; {base.keys_found()}). Update ComfyUI"
        )
    if backbone.second[0] in keys and not has_second_embedder(patcher.model):
        raise WeightsError(
            f"{base.name}: ComfyUI built {type(patcher.model).__name__}, which leaves the second embedder out. "
            "Another pack may have changed its model detection: disable the others, or report the file"
        )
    return pack.GGUFModelPatcher.clone(patcher) if pack else patcher, keys


def native(file: ModelFile, backbone: Backbone, keys: list[str] | None = None) -> dict[str, torch.Tensor]:
    """These tensors of the file, all without a list, under ComfyUI's names."""
    try:
        return backbone.layout.to_native(file.tensors(keys))
    except ValueError as error:
        raise WeightsError(f"{file.name}: {error}. Fetch the file again") from None


def missing_lines(patcher, base: ModelFile, loaded: set[str]) -> list[str]:
    """Raises WeightsError for weights that the model has and the file lacks; tells of those that it has too many."""
    wanted = set(patcher.model.diffusion_model.state_dict())
    missing = sorted(key for key in wanted - loaded if key.endswith((".weight", ".bias")))
    if missing:
        raise WeightsError(
            f"{base.name}: {len(missing)} of the model's weights are not in the file: {', '.join(missing[:6])}"
            f"{', ...' if len(missing) > 6 else ''} (found {base.keys_found()}). Fetch the file again"
        )
    unused = sorted(loaded - wanted)
    return ["missing: none"] + ([f"not used: {len(unused)} ({', '.join(unused[:6])})"] if unused else [])


def with_lora(patcher, adapter: ModelFile, strength: float, backbone: Backbone):
    """(patcher, report) with the LoRA of an adapter file, if it has one."""
    keys = [key for key in adapter.keys if lora.is_part(key)]
    if not keys:
        return patcher, f"{adapter.name}: no LoRA in it; only its second embedder is used"
    patcher, result = lora.apply(patcher, adapter.tensors(keys), strength, backbone.layout)
    if not result.applied:
        raise WeightsError(
            f"{adapter.name}: none of its {len(result.dropped)} LoRA modules fits this {backbone.title} model: "
            f"{', '.join(result.dropped[:6])}. Choose the adapter that was made for this base"
        )
    return patcher, result.report()


def with_time_conditioning(patcher, backbone: Backbone, files: list[ModelFile]):
    """The patcher with the time conditioning and the sampling that its files name; the first file that names one wins."""
    ours = [f.provenance for f in files if f.provenance is not None]
    two = has_second_embedder(patcher.model)
    if two and ours:
        backbone.native_time.of(patcher.model.diffusion_model).signed = ours[0].signed_time
    time = TimeConditioning("two" if two else "fold", recommended=next((p.sampler for p in ours if p.sampler), ()))
    logging.info("[TwinFlow] %s: time conditioning %r", files[-1].name, time.rule)
    return attach(patcher, time)


def described(file: ModelFile, backbone: Backbone | None) -> str:
    """The file's name, what is in it, and its own metadata."""
    dtypes = ", ".join(f"{name} ({n})" for name, n in Counter(file.dtypes).most_common())
    kind = ""
    if backbone is not None:
        kind = f"{backbone.title}, {'ComfyUI' if backbone.layout.native in file.keys else 'diffusers'} names, "
    lines = [f"{file.name}: {kind}{len(file.keys)} tensors, {dtypes}"]
    texts = {key: value for key, value in file.metadata.items() if key != "format"}
    return "\n".join(
        lines + [f"  {key}: {value if len(value) <= 200 else value[:200] + '...'}" for key, value in sorted(texts.items())]
    )
