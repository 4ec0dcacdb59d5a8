"""A model with its second time embedder, from one file or from a plain base and an adapter; or one line that says why not."""

import inspect
import re
from contextlib import contextmanager

import comfy.sd
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ..twinflow.backbones import WEIGHT_BIAS, Backbone, all_backbones
from ..twinflow.layouts import last_block
from ..twinflow.weights import WeightsError
from . import gguf_files, lora
from .model_files import ModelFile, is_own_base, open_file
from .quantised import COMPANIONS, MARK, METADATA
from .report import Report
from .saved import attach_provenance
from .supported import names
from .time_conditioning import attach, has_second_embedder
from .times import TimeConditioning

DTYPES = {
    "default": {},
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
OTHER_MODELS = {
    "first_stage_model.": "a VAE",
    "decoder.": "a VAE",
    "encoder.": "a VAE or a text encoder",
    "text_model.": "a text encoder",
}


@contextmanager
def one_line():
    """Errors about files as plain ValueErrors, before which ComfyUI's page writes no module path."""
    try:
        yield
    except WeightsError as error:
        raise ValueError(str(error)) from None


def load_model(path: str, adapter_path: str | None, strength: float, dtype: str, disable_dynamic: bool = False):
    """(ModelPatcher, Report).  Raises WeightsError; never returns a TwinFlow model without its time conditioning."""
    base, adapter = open_file(path), open_file(adapter_path) if adapter_path else None
    backbone = checked_backbone(base)
    source = second_embedder_in(base, adapter, backbone)
    patcher, loaded, unpacked = build(base, adapter if source is adapter else None, backbone, dtype, disable_dynamic)
    unused = unused_keys(patcher, base, loaded, backbone)
    details = [*described(base), "missing: none"]
    if base.beside:
        details.append(f"also in the file, not read: {base.beside} tensors of a VAE or text encoders")
    if source is not None:
        details.append(f"second time embedder: {len(source.second)} tensors, from {source.name}")
    if unused:
        details.append(f"not used: {len(unused)} ({', '.join(unused[:6])})")
    if unpacked:
        details.append(f"unpacked to bf16, for ComfyUI cannot use them as they are: {unpacked} weights")
    parts = [title(base, backbone), base.dtypes()]
    warnings = []
    if adapter is not None:
        patcher, applied = with_lora(patcher, adapter, strength, backbone)
        details += described(adapter)
        if applied is not None:
            known, fault = adapter.recognised
            details += [*applied.details(), *(known.details() if known else [])]
            warnings += [*applied.warnings(adapter.name), *filter(None, [fault])]
            parts += [applied.verdict(), *([known.verdict()] if known else [])]
    time = time_conditioning_in(patcher, backbone, [f for f in (adapter, base) if f is not None])
    patcher = attach(patcher, time)
    parts.insert(2, {"two": "two-time", "fold": "folded time", "off": "plain base"}[time.rule])
    patcher.cached_patcher_init = (load_patcher, (path, adapter_path, strength, dtype))
    return patcher, Report(", ".join(parts), details, warnings)


def load_patcher(path, adapter_path, strength, dtype, disable_dynamic=False):
    """How ComfyUI makes a second, independent copy of the model (another GPU, prompts with hooks, torch.compile)."""
    return load_model(path, adapter_path, strength, dtype, disable_dynamic)[0]


def checked_backbone(file: ModelFile) -> Backbone:
    """Raises WeightsError for a file that is not a model, or of a family's member that there are no TwinFlow weights for."""
    backbone = file.backbone
    if backbone is None:
        if file.keys and len(file.lora) > len(file.keys) / 2:
            raise WeightsError(
                f"{file.name}: is a LoRA, not a model. Choose the base model here and this file as the adapter; a LoRA without "
                "a second time embedder belongs in the TwinFlow LoRA Loader"
            )
        if file.second:
            raise WeightsError(
                f"{file.name}: holds a second time embedder only. Choose the base model here and this file as the adapter"
            )
        what = next(
            (f"looks like {what}" for start, what in OTHER_MODELS.items() if any(k.startswith(start) for k in file.keys)), ""
        )
        raise WeightsError(
            f"{file.name}: {what or 'is another model'}. Choose the diffusion model of {names()}, from "
            f"models/diffusion_models ({file.keys_found()})"
        )
    for key, title in backbone.others.items():
        if key in file.keys:
            raise WeightsError(
                f"{file.name}: is {title}, which has no TwinFlow weights. Choose a {backbone.title} model, or load this one "
                "with core's Load Diffusion Model and sample it with KSampler"
            )
    return backbone


def second_embedder_in(base: ModelFile, adapter: ModelFile | None, backbone: Backbone) -> ModelFile | None:
    """The file whose second embedder is used; None for a model that was trained with the folded time t - r/2, and for a base
    of ours, which is there to compare with.
    """
    source = adapter if adapter is not None and adapter.second else base
    if not source.second:
        folded = base.provenance is not None and base.provenance.time == "fold"
        if adapter is None and (folded or is_own_base(base)):
            return None
        if adapter is None:
            raise WeightsError(
                f"{base.name}: is a plain {backbone.title}, without TwinFlow's second time embedder. Choose its TwinFlow "
                "adapter or embedder file in the adapter input; for a LoRA without an embedder use core's Load Diffusion Model "
                "and the TwinFlow LoRA Loader"
            )
        if not adapter.lora:
            raise WeightsError(
                f"{adapter.name}: is no TwinFlow adapter: it has neither a second time embedder nor a LoRA. Choose the adapter "
                f"that was made for {backbone.title} ({adapter.keys_found()})"
            )
        raise WeightsError(
            f"{adapter.name}: is a LoRA without a second time embedder, and {base.name} has none either. Use core's Load "
            "Diffusion Model for the base and the TwinFlow LoRA Loader for this file"
        )
    check_second(source, base, backbone)
    return source


def seen(one: Tensor, other: Tensor) -> tuple[int, ...]:
    """Of a weight's shape what both tell: 4-bit formats pack several columns in a number, never rows."""
    return tuple(one.shape if one.is_floating_point() and other.is_floating_point() else one.shape[:1])


def check_second(source: ModelFile, base: ModelFile, backbone: Backbone) -> None:
    """Raises WeightsError for a second embedder of another backbone, of another width, or with parts missing."""
    found = in_native(source, backbone, shells(source, source.second))
    if missing := sorted(set(backbone.second) - set(found)):
        raise WeightsError(
            f"{source.name}: its second time embedder is not that of {backbone.title}. Choose the file made for "
            f"{backbone.title}, or the base that this one was made for (missing {', '.join(missing)}; found "
            f"{', '.join(sorted(found))})"
        )
    first = in_native(base, backbone, shells(base, [key for key in base.keys if key.endswith(WEIGHT_BIAS)]))
    for key in backbone.second:
        own, other = first.get(key.replace("_2.", ".", 1)), found[key]
        if own is not None and seen(own, other) != seen(other, own):
            raise WeightsError(
                f"{source.name}: its second time embedder is {(*other.shape, 1)[0]} wide, the time embedder of {base.name} "
                f"{(*own.shape, 1)[0]}, so it was made for another model. Choose the one that was made for this base ({key})"
            )


def shells(file: ModelFile, keys: list[str]) -> dict[str, Tensor]:
    """Tensors of these shapes, without values; of whole numbers where the file's are, floating else."""
    whole = {key: file.entries[key][0] in ("I8", "U8") for key in keys}
    return {k: torch.empty(file.entries[k][1], dtype=torch.uint8 if whole[k] else None, device="meta") for k in keys}


def build(base: ModelFile, adapter: ModelFile | None, backbone: Backbone, dtype: str, disable_dynamic: bool):
    """(ModelPatcher, the keys that went in, how many weights had to be unpacked), the second embedder taken from the adapter
    where one is given.
    """
    last = last_block(base.keys)

    def keep(key: str) -> bool:
        module, _, end = key.rpartition(".")
        return end == "weight" and (base.native or backbone.layout.is_whole(module, last))

    stored = base.tensors(keep=keep, dtype=torch.bfloat16)
    packed = any(gguf_files.is_quantised(t) for t in stored.values())
    unpacked = sum(f"{module}.{MARK}" not in stored for module in base.layers)
    tensors = in_native(base, backbone, stored)
    del stored
    if adapter is not None:
        tensors |= in_native(adapter, backbone, adapter.tensors(adapter.second))
    keys, second = set(tensors), {key: tensors[key] for key in backbone.second if key in tensors}
    pack = gguf_files.quantised_pack() if packed else None
    options = dict(DTYPES[dtype])
    if pack is not None:
        options = {"custom_operations": pack.GGMLOps()}
        disable_dynamic = True  # ComfyUI-GGUF's patcher moves whole weights
    load = comfy.sd.load_diffusion_model_state_dict
    metadata = {key: value for key, value in base.metadata.items() if key != METADATA}  # its layers have their marks by now
    known = inspect.signature(load).parameters  # ComfyUI 0.3.64 has neither
    extra = {"metadata": metadata, "disable_dynamic": disable_dynamic}
    try:
        patcher = load(tensors, model_options=options, **{name: value for name, value in extra.items() if name in known})
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:  # of odd sizes
        raise WeightsError(mismatch(base, backbone, str(error))) from None
    if patcher is None:
        needed = f", which needs {backbone.note}" if backbone.note else ""
        raise WeightsError(f"{base.name}: this ComfyUI does not know {backbone.title}{needed}. Update it ({base.keys_found()})")
    if backbone.second[0] in keys and not has_second_embedder(patcher.model):
        raise WeightsError(
            f"{base.name}: ComfyUI takes it for {type(patcher.model).__name__}, which has no second time embedder. "
            f"Choose a {backbone.title} model"
        )
    network = patcher.model.diffusion_model
    for name in backbone.uncalled:
        network._modules.pop(name, None)
    if disable_dynamic:
        settle_dtypes(network)
    for key, tensor in second.items():  # few numbers that every step hangs on: never rounded to fp8
        if comfy.utils.get_attr(network, key).dtype in FP8 and tensor.dtype not in FP8:
            comfy.utils.set_attr_param(network, key, tensor.clone())
    if pack is not None:
        patcher = pack.GGUFModelPatcher.clone(patcher)
    if packed or len(base.layers) > unpacked:
        patcher.add_callback(CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, refuse_hooks)
    return patcher, keys, unpacked


def settle_dtypes(network: torch.nn.Module) -> None:
    """With dynamic VRAM on, ComfyUI leaves weights in the file's dtype, also in a model that is to be loaded whole, whose
    layers do not cast them (SD3.5 in bf16, computed in fp16, on an NVIDIA card).
    """
    for module in network.modules():
        dtype = getattr(module, "weight_comfy_model_dtype", None)
        if dtype is not None and not getattr(module, "comfy_cast_weights", True):
            module.to(dtype)


def refuse_hooks(patcher, *args) -> None:
    """ComfyUI fails on a scheduled LoRA, whatever the loader, with text that helps nobody."""
    if any(patcher.hook_patches.values()):
        raise ValueError(
            "a scheduled (hook) LoRA cannot change weights that are kept quantised. Apply the LoRA to the "
            "model with the TwinFlow LoRA Loader, or choose a bf16 file of the model"
        )


def in_native(file: ModelFile, backbone: Backbone, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ComfyUI's names."""
    try:
        return backbone.layout.to_native(tensors)
    except ValueError as error:
        raise WeightsError(f"{file.name}: {error}. Fetch the file again") from None


def mismatch(file: ModelFile, backbone: Backbone, text: str) -> str:
    """What torch says of tensors that do not fit, in a sentence."""
    found = re.findall(r"size mismatch for (\S+): .*?shape torch.Size\((.*?)\).*?torch.Size\((.*?)\)", text)
    if not found:
        return f"{file.name}: ComfyUI cannot build {backbone.title} from it ({' '.join(text.split())[:300]})"
    key, has, wants = found[0]
    return (
        f"{file.name}: {len(found)} of its weights have other sizes than {backbone.title}'s, so it is of another size or "
        f"variant. Choose a file of {backbone.title} ({key} is {has}, expected {wants})"
    )


def unused_keys(patcher, base: ModelFile, loaded: set[str], backbone: Backbone) -> list[str]:
    """What the file has and the model does not use.  Raises WeightsError for weights that the model has and the file lacks,
    and for scales that nothing reads.
    """
    wanted = {key for key in patcher.model.diffusion_model.state_dict() if not key.endswith(".temp.weight")}  # ComfyUI-GGUF's
    is_weight = lambda key: key.endswith((".weight", ".bias")) or backbone.layout.is_parameter(key)
    missing = sorted(filter(is_weight, wanted - loaded))
    if missing:
        raise WeightsError(
            f"{base.name}: {len(missing)} of the model's weights are not in the file, so it is not complete. Fetch the file "
            f"again ({', '.join(missing[:6])}{', ...' if len(missing) > 6 else ''})"
        )
    unused = sorted(loaded - wanted)
    if scales := [key for key in unused if key.rpartition(".")[2] in COMPANIONS - {"input_scale", MARK}]:
        raise WeightsError(
            f"{base.name}: ComfyUI leaves {len(scales)} of its scales out, so the weights would be wrong. Choose a bf16 or "
            f"GGUF file of the model ({', '.join(scales[:3])})"
        )
    return unused


def with_lora(patcher, adapter: ModelFile, strength: float, backbone: Backbone):
    """(patcher, lora.Applied) with the LoRA of an adapter file; None in its place where the file has none."""
    if not adapter.lora:
        return patcher, None
    patcher, result = lora.apply(patcher, adapter.tensors(adapter.lora), strength, backbone.layout, adapter.metadata)
    if not result.applied:
        raise WeightsError(f"{adapter.name}: {result.why_nothing(backbone.title)}")
    return patcher, result


def time_conditioning_in(patcher, backbone: Backbone, files: list[ModelFile]) -> TimeConditioning:
    """The time conditioning and the sampling that the patcher's files name; the first file that names one wins."""
    ours = [f.provenance for f in files if f.provenance is not None]
    two = has_second_embedder(patcher.model)
    if two and ours:
        backbone.native_time.of(patcher.model.diffusion_model).signed = ours[0].signed_time
    attach_provenance(patcher, ours[0] if ours else None)
    rule = "two" if two else "fold" if ours else "off"
    return TimeConditioning(rule, recommended=next(filter(None, (f.sampler for f in files)), ()))


def title(file: ModelFile, backbone: Backbone) -> str:
    """Of the variant whose weights these are by the file's own word, such as Emoji, which has a Qwen-Image's names."""
    said = file.metadata.get("twinflow.base_model")
    own = (record.title for record in all_backbones().values() if record.name == said and record.layout is backbone.layout)
    return next(own, backbone.title)


def described(file: ModelFile) -> list[str]:
    """The file's name, what is in it, and its own metadata."""
    names = "" if file.backbone is None else f"{'ComfyUI' if file.native else 'diffusers'} names, "
    texts = {key: value for key, value in file.metadata.items() if key not in ("format", METADATA)}
    return [
        f"{file.name}: {names}{len(file.keys)} tensors, {file.dtypes()}",
        *(f"  {key}: {value if len(value) <= 200 else value[:200] + '...'}" for key, value in sorted(texts.items())),
    ]
