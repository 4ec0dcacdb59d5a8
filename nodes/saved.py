"""What a file's `twinflow.*` metadata say travels with the model: after core's own loaders, too, and into what core saves."""

import functools
import threading
from dataclasses import replace

import comfy.model_base
import comfy.model_detection
import comfy.sd

from ..twinflow.weights import Provenance, WeightsError

KEY = "twinflow"
KEPT = ("twinflow.", "modelspec.trigger_phrase")  # of what core does not write itself


def remembered(model: comfy.model_base.BaseModel) -> Provenance | None:
    """Of the file that a model was loaded from, by whatever loader."""
    return vars(model.model_config).get(KEY)  # ComfyUI's configurations answer any name, and complain


def provenance_of(patcher) -> Provenance | None:
    """Of the adapter or LoRA that was applied last, else of the model's own file."""
    return patcher.get_attachment(KEY) or remembered(patcher.model)


def attach_provenance(patcher, provenance: Provenance | None) -> None:
    if provenance is not None:
        patcher.set_attachments(KEY, provenance)


def remember() -> None:
    """Let core's detection note the metadata, and core's saving nodes write them.  Once a process."""
    detect, save = comfy.model_detection.model_config_from_unet, comfy.sd.save_checkpoint
    if hasattr(detect, KEY):
        return
    unused = threading.local()  # core asks again, without the metadata, once it has renamed diffusers' keys

    @functools.wraps(detect)
    def model_config_from_unet(*args, **kwargs):
        config = detect(*args, **kwargs)
        metadata = kwargs.get("metadata") or getattr(unused, "metadata", None) or {}
        unused.metadata = metadata if config is None else None
        try:
            found = Provenance.from_metadata(metadata)
        except WeightsError:  # written by hand; our own loader names the fault
            found = None
        if config is not None and found is not None:
            setattr(config, KEY, found)
        return config

    @functools.wraps(save)
    def save_checkpoint(output_path, model, *args, metadata=None, **kwargs):
        provenance = provenance_of(model)
        if provenance is not None:
            ours = replace(provenance, rank=None).to_metadata()  # a LoRA is part of the weights by now
            metadata = {**(metadata or {}), **{key: value for key, value in ours.items() if key.startswith(KEPT)}}
        return save(output_path, model, *args, metadata=metadata, **kwargs)

    setattr(model_config_from_unet, KEY, True)
    comfy.model_detection.model_config_from_unet = model_config_from_unet
    comfy.sd.save_checkpoint = save_checkpoint
