"""Checks of where it all goes: the card, the host's memory, the disk, and the folder of the cache."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import psutil
import torch

from ...plan import disk, memory, table
from ...plan.card import cards
from ...plan.memory import GIB
from ...training.disk import short
from ..folder import not_writable
from .facts import Facts


def on_the_card(facts: Facts, notify: Callable) -> Iterator[str]:
    """Whether the plan fits the card that is there, and the card computes as asked."""
    own, settings = facts.card, facts.settings
    if own is None or settings.mode == "base":
        return
    if not own.is_supported:
        yield (
            f"{own.name} has compute capability {own.level}, for which this PyTorch ({torch.__version__}) is not built "
            f"({' '.join(own.built)}); install a build of PyTorch that has it"
        )
    if settings.memory.dtype == "bf16" and own.capability < (8, 0):
        notify(f"{own.name} (compute capability {own.level}) has no bfloat16 units: --dtype bf16 is emulated, and slow")
    need = facts.plan.peak
    if need - memory.RESERVE > own.total:
        flags = table.advice(facts.known, settings, own.total / GIB, cards())
        help = f"it would fit with {flags}" if flags else "no option makes it fit; --plan lists the cards that would do"
        yield f"this run takes about {need / GIB:.1f} GiB of {own.name}, which has {own.total / GIB:.1f} GiB; {help}"
    elif need > own.free:
        notify(
            f"this run takes about {need / GIB:.1f} GiB of {own.name}, of which {own.free / GIB:.1f} GiB are free; it may "
            "run out of memory: close what else uses the card, or see --plan"
        )


def in_host_memory(facts: Facts, notify: Callable) -> None:
    if facts.card is None or facts.settings.mode == "base":
        return
    if (need := facts.plan.host_peak) > (there := psutil.virtual_memory().total):
        notify(
            f"this run takes about {need / GIB:.0f} GiB of host memory, of which this machine has {there / GIB:.0f} GiB; "
            "it may run out of memory, see --plan"
        )


def on_disk(facts: Facts, notify: Callable) -> Iterator[str]:
    """Whether the caches, checkpoints and weights files to come have space."""
    settings, known = facts.settings, facts.known
    if settings.mode == "base":
        return
    saved = disk.states(known, settings), disk.weights(known, settings)
    there = size_of(settings.folder / "checkpoints")
    needs = [(settings.folder, max(0, sum(own.total for own in saved) - there), "checkpoints and weights files")]
    if facts.reads("data"):
        folder = facts.kind.cache_folder(settings)
        rows = facts.rows if settings.data.data or settings.data.dataset else []
        captions = [(row.captions[0], side) for row in rows for side in row.source.resolutions]
        done = sum(1 for _ in (folder / "captions").glob("*/*"))  # more or less of these
        needs.append((folder, disk.cache(known, settings, captions[done:]), "encoded images and captions"))
    by_disk: dict[int, list] = {}
    for path, need, what in needs:
        by_disk.setdefault(above(path).stat().st_dev, []).append((path, need, what))
    for found in by_disk.values():
        total, free = sum(need for _, need, _ in found), psutil.disk_usage(str(above(found[0][0]))).free
        if total > free:
            parts = " and ".join(f"{short(need)} of {what} ({path})" for path, need, what in found if need)
            yield (
                f"the disk has {short(free)} free, and this run puts about {parts} on it; free some space, use another disk "
                "(--out, --cache), or keep fewer (--keep, --keep-weights, --save-every)"
            )


def above(path: Path) -> Path:
    """The nearest folder that exists."""
    return next(p for p in chain([path], path.absolute().parents) if p.is_dir())


def size_of(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def cache_folder(facts: Facts, notify: Callable) -> Iterator[str]:
    if facts.reads("data"):
        folder = facts.kind.cache_folder(facts.settings)
        if why := not_writable(folder):
            yield f"--cache: {folder} {why}; expected a writable folder"
