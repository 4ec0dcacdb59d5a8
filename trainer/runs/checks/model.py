"""Checks of the model: its files, those of its encoders, what --init names, and the layers that settings name or count."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from twinflow.plain_json import loads
from twinflow.weights import WeightsError, read_header

from ...backbones import sources
from ...plan.card import has_gpu
from ...plan.memory import skeleton
from ...training import checkpoint
from ...weights import origin
from ...weights.block_swap import blocks_of
from ..encoders import check as check_encoders
from ..encoders import source_of
from .facts import Facts


def source(facts: Facts, notify: Callable) -> None:
    """The headers of --source or --base: family, layout, completeness; and what must lie beside --base."""
    _ = facts.known
    own = facts.settings.data.source
    if facts.reads("data") and sources.is_hub_id(own) and has_gpu() and facts.published.outline(own) is None:
        sources.ask(own)
    path, beside = facts.settings.base.path, getattr(facts.kind, "beside", "")
    if path and beside:
        read_header(path.parent / beside)


def encoders(facts: Facts, notify: Callable) -> Iterator[str]:
    """The files of the text encoders and the autoencoder, as far as they are here."""
    if not facts.reads("data"):
        return
    facts.kind.check_encoders(facts.settings)
    check_encoders(facts.settings, torch.device("cpu"))
    where, files = source_of(facts.published, facts.settings), list[Path]()
    for look in (facts.published.text_files, facts.published.image_files):
        try:
            with sources.headers_only(fetch=False):
                files += look(where)
        except sources.NotHere:
            pass
    for path in files:
        try:
            if path.suffix == ".safetensors":
                read_header(path)
            elif path.suffix == ".json":
                loads(path.read_text("utf-8"))
        except WeightsError as error:
            yield str(error)
        except (OSError, ValueError) as error:
            yield f"{path}: cannot be read ({error}); expected JSON, as in a diffusers model"


def targets(facts: Facts, notify: Callable) -> None:
    if facts.settings.mode == "lora":
        facts.known.lora_targets(skeleton(facts.known), facts.settings.adapter.targets)


def init(facts: Facts, notify: Callable) -> None:
    """The file of --init, against the model and the run that may have begun."""
    own = facts.settings
    if own.mode != "base":
        origin.opened(facts.published, own, begun=checkpoint.newest(own.folder / "checkpoints") is not None)


def block_swap(facts: Facts, notify: Callable) -> Iterator[str]:
    if (wanted := facts.settings.memory.block_swap) > (most := len(blocks_of(skeleton(facts.known)))):
        yield f"--block-swap is {wanted}; expected at most {most}, the blocks of {facts.known.name}"
