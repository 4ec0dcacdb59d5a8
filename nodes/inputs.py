"""Prompts, latents and sigmas that a user connects: one sentence for those of another model."""

import math
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.model_sampling
import torch
from torch import Tensor

from .supported import backbone_of, names

LATENT_BYTES = 16  # a number: the noise, the latent and what is drawn, in float32, and a copy
BEYOND = 4  # times all memory: ComfyUI's estimate is generous

_widths: WeakKeyDictionary = WeakKeyDictionary()


def widths_of(model) -> dict:
    """Of the model that ComfyUI has loaded (see Backbone.widths); nothing for one that the pack does not know."""
    if model not in _widths:
        record, shells = backbone_of(model), {}
        for name, module in model.diffusion_model.named_modules():
            own = [*module.named_parameters(name, recurse=False), *module.named_buffers(name, recurse=False)]
            for part, value in own:
                shape = getattr(value, "tensor_shape", value.shape)
                if part.endswith("weight") and hasattr(module, "in_features"):  # also of weights that are kept packed
                    shape = (module.out_features, module.in_features)
                shells[part] = torch.empty(tuple(shape), device="meta")
        try:
            found = record.layout.to_diffusers(shells) if record else {}
            _widths[model] = record.widths({key: tuple(shell.shape) for key, shell in found.items()}) if record else {}
        except (KeyError, ValueError, IndexError):
            _widths[model] = {}
    return _widths[model]


def check_prompts(model, which: str, conditioning) -> None:
    """Raises ValueError for CONDITIONING that the model cannot take.  which: positive or negative."""
    if not conditioning:
        raise ValueError(f"the {which} prompt is empty (no conditioning came in): connect a CLIP Text Encode")
    for embedding, extra in conditioning:
        check_prompt(model, which, embedding, extra.get("pooled_output"))
        for latent in extra.get("reference_latents") or ():
            check_latent(model, latent, f"a reference image of the {which} prompt")


def check_prompt(model, which: str, embedding: Tensor | None, pooled: Tensor | None) -> None:
    """Raises ValueError for an embedding of other widths than the model's."""
    widths, record = widths_of(model), backbone_of(model)
    if record is None or "text" not in widths:
        return
    fix = f"Encode it with {record.title}'s text encoder, or choose a prompts file that was made for this model"
    found = None if embedding is None else embedding.shape[-1]
    if found != widths["text"]:
        raise ValueError(
            f"the {which} prompt was made for another model: it is {found} wide, {record.title} takes {widths['text']}. {fix}"
        )
    if "pooled" in widths:
        found = None if pooled is None else pooled.shape[-1]
        if found != widths["pooled"]:
            what = "has no pooled embedding" if found is None else f"has a pooled embedding {found} wide"
            raise ValueError(
                f"the {which} prompt was made for another model: it {what}, {record.title} takes one of {widths['pooled']}. "
                f"{fix}"
            )


def check_numbers(what: str, value, fix: str, depth: int = 8) -> None:
    """Raises ValueError where a number or tensor, or one inside a list or dict, is NaN or infinite."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for own in inner if depth else ():
        check_numbers(what, own, fix, depth - 1)
    if isinstance(value, Tensor) and value.is_floating_point() and not getattr(value, "is_nested", False):
        ends = (value if value.element_size() > 1 else value.float()).aminmax() if value.numel() else ()  # without a copy
        finite = all(map(math.isfinite, ends))
    else:
        finite = not isinstance(value, float) or math.isfinite(value)
    if not finite:
        raise ValueError(f"{what} has values that are not numbers (NaN or infinity): {fix}")


def check_room(what: str, size: float) -> None:
    """Raises ValueError where this many bytes are more than the computer has free."""
    if size > (free := comfy.model_management.get_free_memory(torch.device("cpu"))):
        raise ValueError(f"{what} would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: choose less")


def check_numel(what: str, samples: Tensor) -> None:
    """Raises ValueError for a latent that a sampler has no room for, before it takes any: it would end the whole server."""
    if not getattr(samples, "is_nested", False):
        check_room(f"{what}, {'x'.join(map(str, samples.shape))} numbers,", LATENT_BYTES * samples.numel())


def check_size(model, shape: torch.Size, what: str) -> None:
    """The same for one that the model has no room for."""
    step, most = model.memory_required(list(shape)), comfy.model_management.get_total_memory()
    if step > BEYOND * most:
        name = f"{what}, {shape[0]} of {shape[-1]}x{shape[-2]} latent pixels,"
        raise ValueError(
            f"{name} would take about {step / 1e9:.0f} GB at each step, of {most / 1e9:.0f} GB in all: choose less"
        )


def check_latent(model, samples, what: str = "the latent") -> None:
    """Raises ValueError for a latent of another model.  An empty one fits all: ComfyUI gives it the channels it needs."""
    wanted, name = model.latent_format, type(model).__name__
    record = backbone_of(model)
    name = record.title if record else name
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5):
        raise ValueError(f"{what} is not of an image: connect an empty latent or an image encoded with {name}'s VAE")
    still = record is not None and record.still and samples.shape[2] > 1
    if samples.ndim == 5 and (still or wanted.latent_dimensions == 2):
        raise ValueError(
            f"{what} is of a video ({samples.shape[2]} frames), {name} makes images: connect an empty image latent, such as "
            "EmptySD3LatentImage, or an image encoded with its VAE"
        )
    check_size(model, samples.shape, what)
    check_numbers(what, samples, "encode the image again, with the VAE in float32 (--fp32-vae)")
    if samples.shape[1] != wanted.latent_channels and torch.count_nonzero(samples):
        raise ValueError(
            f"{what} has {samples.shape[1]} channels, those of {name} have {wanted.latent_channels}: encode the image with "
            f"{name}'s VAE"
        )


def check_flow(model, model_sampling) -> None:
    """Raises ValueError for a model that predicts something else than a velocity."""
    if not isinstance(model_sampling, comfy.model_sampling.CONST):
        raise ValueError(
            f"the model {type(model).__name__} does not predict a flow-matching velocity; the TwinFlow sampler needs one that "
            f"does ({names()}). Use another SAMPLER for this model"
        )


def check_times(times: Tensor) -> None:
    """Raises ValueError for sigmas that are not flow-matching times, falling from at most 1 to at least 0."""
    fix = "Connect TwinFlow Schedule, or another scheduler made for this model"
    if times.max() > 1:
        raise ValueError(f"sigmas start at {times.max():.4g}; flow-matching times lie between 1 and 0. {fix}")
    if not times.isfinite().all() or times.min() < 0 or (times.diff() >= 0).any():
        some = ", ".join(f"{float(t):.4g}" for t in times[:6])
        raise ValueError(f"sigmas are {some}{', ...' if len(times) > 6 else ''}; expected times that fall from 1 to 0. {fix}")
