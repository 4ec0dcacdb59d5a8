"""Everything that can be known before work: one list of checks, each a small function; a run and --dry-run go through the same.

A check yields what it finds, or raises TrainerError; nothing is fetched, made, encoded or loaded, and all is said in one go.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch

from twinflow.plain_json import loads
from twinflow.weights import WeightsError, read_header

from .. import SEVERAL, TrainerError, data
from ..backbones import Backbone, attention, backbone, sources
from ..config.options import flag
from ..config.settings import OPTIONS, Settings
from ..console import notice
from ..data import prompts as prompt_files
from ..data.buckets import Buckets
from ..data.image_files import Broken, size
from ..data.report import Report
from ..data.row import Row
from ..plan import disk, memory, table
from ..plan.card import Card, card
from ..plan.memory import GIB, Plan, skeleton
from ..training import checkpoint, optimizers
from ..training.disk import short
from ..weights import compiling, origin, quantise
from ..weights.block_swap import blocks_of
from . import run_of
from .encoders import check as check_encoders
from .encoders import source_of

NEEDED = {"accelerate": "1.10", "diffusers": "0.38", "peft": "0.19", "torch": "2.6", "transformers": "5"}
LONGEST_NAME = 200  # bytes: disks take 255, of which steps and endings need some
WITH_FSDP = dict(quantize="none", block_swap=0, optimizer="adamw", compile=False)  # which shards plain weights


class Facts:
    """What the checks ask about a run, found out when it is first asked for.  Raises TrainerError then."""

    def __init__(self, settings: Settings):
        self.settings, self.published = settings, backbone(settings.model)
        self.kind: Any = run_of(self.published)

    def reads(self, name: str) -> bool:
        """Whether the model reads this option or section."""
        return name not in self.published.unread

    @cached_property
    def known(self) -> Backbone:
        """The backbone of the size that --source has."""
        own, base = self.settings, self.settings.base.path
        source = own.data.source if self.reads("data") else str(base or "")
        model = self.published.outline(source) if source else None
        return self.published.sized(model) if model is not None else self.published

    @cached_property
    def rows(self) -> list[Row]:
        own = self.settings.data
        return usable_rows(self, own.data, "--dataset" if own.dataset else "--data", dataset=own.dataset)

    @cached_property
    def plan(self) -> Plan:
        return memory.plan(self.known, self.settings, cards())

    @cached_property
    def card(self) -> Card | None:
        return card()


class Missing(str):
    """What is found of a machine, or of data, that a dry run may yet be without: it only says so."""


def check(settings: Settings, notify: Callable[[str], None] = notice, *, dry: bool = False) -> None:
    """Raises TrainerError with all that is found, a line each.  notify: is told what may be meant, or is yet missing."""
    facts, found = Facts(settings), list[str]()
    for own in CHECKS:
        try:
            for text in own(facts, notify) or ():
                if dry and isinstance(text, Missing):
                    notify(f"a run would end here: {text}")
                else:
                    found.append(text)
        except (TrainerError, WeightsError) as error:
            found.append(str(error))
        if found and own is machine:  # all else is for another machine
            break
    if found := list(dict.fromkeys(found)):
        raise TrainerError(*found, most=SEVERAL)


def machine(facts: Facts, notify: Callable) -> Iterator[str]:
    """A published model where there is no GPU.  (What the user has made small is welcome.)"""
    settings, published = facts.settings, bool(facts.published.core.models[facts.settings.model])
    source = settings.data.source
    if has_gpu() or not published or (source and not sources.is_hub_id(source)):
        return
    it = memory.plan(facts.published, settings)
    largest = sorted(it.items.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {value / GIB:.1f}" for name, value in largest)
    yield Missing(
        f"{settings.model} needs a GPU, and PyTorch sees none here: as it is set, this run takes {it.total / GIB:.0f} GiB on "
        f"the card ({shares}, ...; --plan lists the cards that would do); to try the trainer on this machine: --model digits"
    )


def has_gpu() -> bool:
    return torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")


def packages(facts: Facts, notify: Callable) -> Iterator[str]:
    settings = facts.settings
    for name, least in NEEDED.items():
        if numbers(found := version_of(name)) < numbers(least):
            yield f"{name} {found or 'is not installed'}; expected {least} or newer (pip install -U 'twinflow[trainer]')"
    tracker = settings.logging.tracker
    if tracker not in ("auto", "none") and not find_spec(tracker):
        yield f"--tracker {tracker}: is not installed; pip install {tracker}, or --tracker none"
    wanted = {}
    if settings.mode != "base":
        quantise.check_quantisation(settings.memory.quantize)
        optimizers.check_optimizer(settings.training.optimizer)
        wanted |= {quantise.PACKAGE.get(settings.memory.quantize): f"--quantize {settings.memory.quantize}"}
        if facts.reads("data"):
            kind = settings.data.encoders_dtype
            wanted |= {quantise.PACKAGE.get(kind): f"--encoders-dtype {kind}"}
        wanted |= {"torchao": "--optimizer adamw8bit"} if settings.training.optimizer == "adamw8bit" else {}
    for package, option in wanted.items():
        if package and (why := not_importable(package)):
            yield f"{option}: {package} cannot be imported ({why}); pip install -U {package}, or another {option.split()[0]}"
    for package, name in getattr(facts.kind, "packages", {}).items():
        if not find_spec(package):
            yield f"--model {settings.model}: needs {package}, which is not installed; pip install {name}"


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.partition("+")[0])[:2]))


def not_importable(package: str) -> str:
    """Why; "" where it is."""
    try:
        import_module(package)
    except Exception as error:  # whatever a package does that was built for another machine
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def launch(facts: Facts, notify: Callable) -> Iterator[str]:
    """What accelerate's FSDP cannot shard."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        now = facts.settings.flat()
        for name, value in WITH_FSDP.items():
            if now[name] != value:
                yield f"{flag(name)} is {now[name]}; expected {value} with FSDP, which shards plain weights"


def libraries(facts: Facts, notify: Callable) -> None:
    """Attention by another library, and torch.compile: tried on a small example."""
    own = facts.settings.memory
    if facts.settings.mode == "base":
        return
    device = torch.accelerator.current_accelerator() if has_gpu() else None
    if own.attention != attention.USUAL:
        masked, alone = getattr(facts.published, "masked", True), getattr(facts.published, "own_attention", False)
        attention.check(own.attention, skeleton(facts.known), masked, device or torch.device("cpu"), alone)
    if own.compile:
        compiling.check_compiler(device or torch.device("cpu"))


def cards() -> int:
    """Over which FSDP shards."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return max(1, int(os.environ.get("WORLD_SIZE", "1"))) if fsdp else 1


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


def training_data(facts: Facts, notify: Callable) -> Iterator[str]:
    if not facts.reads("data"):
        return
    if not facts.settings.data.data and not facts.settings.data.dataset:
        expected = "a folder of images with captions, a table (.jsonl, .csv, .parquet) or, with --image-free, a .txt file"
        yield Missing(f"--data is empty; expected {expected} (or --dataset FILE)")
    else:
        _ = facts.rows


def validation_data(facts: Facts, notify: Callable) -> None:
    if facts.reads("validation") and (data := facts.settings.logging.validation):
        usable_rows(facts, data, "--validation")


def prompts(facts: Facts, notify: Callable) -> None:
    """Also where --sample-every 0 draws none."""
    if not facts.reads("prompts") or not (where := facts.settings.logging.prompts):
        return
    known = facts.published
    for prompt in prompt_files.read(where, Report(), edit=known.edits, multiple=known.pixels):
        for image in prompt.references:
            try:
                size(image.read())
            except (OSError, Broken) as error:
                raise TrainerError(f"{prompt.name}: an image to edit cannot be read ({error})") from None


def usable_rows(facts: Facts, where: str, option: str, **changes: Any) -> list[Row]:
    """The rows of a source, of which one at least can be used.  Raises TrainerError."""
    request = replace(facts.kind.request(facts.settings, where, **changes), multiple=1)  # which is looked at by itself
    report = Report()
    try:
        found = data.look(request, report)
    except TrainerError as error:
        raise TrainerError(f"{option}: {str(error).removeprefix('data: ')}") from None
    for row in found:
        try:
            for image in ([] if request.image_free else [row.target], row.references if request.edit else []):
                [size(own.read()) for own in image if own]
            return found
        except Broken as fault:
            report.skip("broken image", f"{row.name} ({fault})")
        except OSError as error:
            report.skip("image cannot be read", f"{row.name} ({error.strerror or error})")
    expected = request.expected(report)
    raise TrainerError(f"{option}: {request.dataset or where!r} holds no usable row ({report}); expected {expected}")


def resolution(facts: Facts, notify: Callable) -> Iterator[str]:
    if not facts.reads("data"):
        return
    own, known = facts.settings.data, facts.known
    if not own.dataset and own.resolution % known.pixels:
        yield f"--resolution is {own.resolution}; expected a multiple of {known.pixels} for {known.name}"
        return
    asked = {side for row in facts.rows for side in row.source.resolutions} if own.dataset else {own.resolution}
    for side in sorted(asked):
        if side % known.pixels:
            yield f"--dataset {own.dataset}: resolution is {side}; expected a multiple of {known.pixels} for {known.name}"
            continue
        buckets = Buckets(side, known.pixels, own.aspect)
        if facts.settings.objective.image_free:
            buckets.parse(own.aspects)
        longest, most = max(map(max, buckets.sizes())), known.longest(skeleton(known))
        if side > most:
            yield f"--resolution is {side}; expected at most {most} for {known.name}"
        elif longest > most:
            yield (
                f"--resolution {side} with --aspect {own.aspect:g} makes images of up to {longest} px; expected at most {most} "
                f"for {known.name}, so a smaller one of the two"
            )


def schedules(facts: Facts, notify: Callable) -> None:
    """What is given and has no effect, or another than it seems."""
    training, objective = facts.settings.training, facts.settings.objective
    if training.epochs is None and training.warmup >= training.steps:
        notify(
            f"--warmup {training.warmup} is not over within --steps {training.steps}: the learning rate never reaches its peak"
        )
    unread = {"beta": "time_normal", "logit-normal": "time_beta"}[objective.times]
    if tuple(getattr(objective, unread)) != OPTIONS[unread].default:
        notify(f"{flag(unread)} is not read: --times is {objective.times}")


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


def is_plain(name: str) -> bool:
    """Whether it can be the name of a folder and, with a step behind it, of a file."""
    forbidden = set('<>:"|?*') if os.name == "nt" else set()
    plain = Path(name).name == name == name.strip() and name.isprintable() and not name.startswith(".")
    return bool(name) and plain and not forbidden & set(name) and len(os.fsencode(name)) <= LONGEST_NAME


def not_writable(folder: Path) -> str:
    """Why a folder cannot be made, or written into; "" where it can."""
    parents = [folder, *folder.absolute().parents]
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, a zero byte in it, not to be looked into
        return f"cannot be made ({getattr(error, 'strerror', None) or error})"
    there = next((p for p in parents if os.path.lexists(p)), None)
    if there is None or not there.is_dir():
        return f"cannot be made ({there} is no folder)"
    if not os.access(there, os.W_OK | os.X_OK):
        return "cannot be written to" if there == folder else f"cannot be made ({there} cannot be written to)"
    return ""


CHECKS = (
    machine, packages, launch, source, encoders, training_data, validation_data, prompts, resolution, schedules, targets, init,
    block_swap, libraries, cache_folder, on_disk, on_the_card, in_host_memory,
)  # fmt: skip
