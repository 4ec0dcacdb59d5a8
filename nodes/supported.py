"""The backbones that this pack has ComfyUI's classes of: those with a file in nodes/backbones.  Their names are made here."""

import pkgutil
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

import comfy.model_base

from ..twinflow.backbones import Backbone, all_backbones, find

_of_networks: WeakKeyDictionary = WeakKeyDictionary()


@cache
def supported() -> dict[str, Backbone]:
    """The records by the name of their file, which is the same in nodes/backbones and in twinflow/backbones."""
    there = {info.name for info in pkgutil.iter_modules([str(Path(__file__).with_name("backbones"))])}
    return {file: record for file, record in all_backbones().items() if file in there}


def backbone_of_keys(keys) -> Backbone | None:
    """The backbone that has a tensor of these names (without prefixes), if the pack supports it."""
    record = find(keys)
    return record if any(record is other for other in supported().values()) else None


def backbone_of(model: comfy.model_base.BaseModel) -> Backbone | None:
    """The backbone of a model that ComfyUI has loaded; None for one that the pack does not know.

    Remembered by the network, whose thousands of names take long to list and are asked for at every sampling.
    """
    network = model.diffusion_model
    if network not in _of_networks:
        _of_networks[network] = backbone_of_keys(network.state_dict().keys())
    return _of_networks[network]


def names(last: str = " or ") -> str:
    """For messages: "FLUX.2 klein, Krea 2, Qwen-Image, Qwen-Image-2.1, SD3.5 or Z-Image"."""
    return _listed([record.title for record in supported().values()], last)


def names_with_notes(comma: str = ", ", last: str = " and ") -> str:
    """For help pages: the published variants, too, and what a backbone needs of ComfyUI."""
    layouts = [record.layout for record in supported().values()]
    variants = [record for record in all_backbones().values() if record.variant and any(record.models.values())]
    listed = [*supported().values(), *(record for record in variants if any(record.layout is layout for layout in layouts))]
    return _listed([record.title + (f" ({record.note})" if record.note else "") for record in listed], last, comma)


def _listed(titles: list[str], last: str, comma: str = ", ") -> str:
    titles = sorted(titles)
    return last.join(filter(None, [comma.join(titles[:-1]), titles[-1]]))
