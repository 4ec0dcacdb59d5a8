"""Images that are asked for: what is drawn, with which network and settings, under which names."""

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from twinflow.objective import Condition
from twinflow.presets import SAMPLING, Sampling, near
from twinflow.sampler import Stochasticity, check_sampling
from twinflow.weights import Provenance, read_header

from .. import TrainerError, console
from ..backbones import Backbone, backbone
from ..backbones.sources import in_dtype
from ..config.resolving import resolve
from ..config.saved import read_settings
from ..config.settings import DTYPES, Settings
from ..data import free, prompts
from ..data.prompts import Prompt
from ..data.report import Report, listing
from ..data.row import ImageFile
from ..training.meters import most_memory
from ..weights import files, origin
from ..weights.inference import Guided, generate, load_trained, noise, ready
from ..weights.quantise import check_quantisation
from ..weights.trainee import Plain, VelocityModel
from . import drawing, pictures, run_of
from .previews import smaller

MOST = 2**63 - 1  # of a seed
PLAIN_STEPS = 8  # in fewer one expects TwinFlow; some plain models are made for as few
PLACES, MEMORY = ("source", "encoders", "encoders_device", "encoders_dtype"), ("quantize", "block_swap", "dtype")


@dataclass(frozen=True)
class Drawing:
    """One image to draw.  row: the number of its prompt.  number: of the images of this prompt at these steps."""

    row: int
    prompt: Prompt
    cond: Condition
    shape: tuple[int, ...]
    sampling: Sampling
    number: int
    seed: int


@dataclass(frozen=True)
class Subject:
    """What is drawn with.  name: of it.  folder: where its run has kept what it needs (words, prompts, a base).

    network: loads it, as a Velocity with its model.  recommended: settings, best first.  plain: it is not distilled.
    about: for the pictures.  each: images a prompt, where the user does not say.  base: loads what it was distilled from,
    likewise, None where that is itself.
    """

    name: str
    settings: Settings
    folder: Path
    network: Callable[[], Any]
    recommended: tuple[Sampling, ...]
    about: dict[str, Any]
    plain: bool = False
    each: int = 1
    base: Callable[[], Any] | None = None


def of_run(args: argparse.Namespace) -> Subject:
    """Raises TrainerError."""
    if args.run.is_file():
        raise TrainerError(f"{args.run}: is a file; expected the folder of a run, such as {args.run.parent}, or --weights")
    settings = read_settings(args.run)
    known = backbone(settings.model)
    changes = {name: getattr(settings_of(args, known).data, name) for name in PLACES if getattr(args, name) is not None}
    settings = settings.model_copy(update=dict(data=settings.data.model_copy(update=changes)))
    kind, weights = run_of(known), chosen(args.run, settings.run.name, args.checkpoint)
    provenance = Provenance.from_metadata(read_header(weights).metadata)
    if provenance is None:
        raise TrainerError(f"{weights}: has no twinflow metadata; expected a file that trainer.lora or trainer.full wrote")

    def network() -> VelocityModel:
        below = origin.below(known, settings, lambda: kind.plain(settings, args.run))
        return load_trained(known, below if args.dtype is None else in_dtype(below, DTYPES[args.dtype]), weights)

    def base() -> Plain:
        below = kind.plain(settings, args.run)
        return Plain(known, below if args.dtype is None else in_dtype(below, DTYPES[args.dtype]))

    about = dict(model=settings.model, run=settings.run.name, trained=provenance.step, weights=weights.name)
    about |= dict(hash=digest(weights), base=settings.data.source or known.core.models[known.name] or known.name)
    recommended = provenance.sampler or known.sampling
    return Subject(
        f"{settings.run.name}, step {provenance.step}", settings, args.run, network, recommended, about, each=5, base=base
    )


def settings_of(args: argparse.Namespace, known: Backbone) -> Settings:
    """What the options say of the model and of memory, beside the model's defaults.  Raises TrainerError."""
    given = {name: getattr(args, name) for name in (*PLACES, *MEMORY) if getattr(args, name) is not None}
    settings = resolve("lora", {"model": known.name, **given})
    check_quantisation(settings.memory.quantize)
    return settings


def draw(args: argparse.Namespace, subject_of: Callable[[argparse.Namespace], Subject]) -> None:
    """Raises TrainerError."""
    began, (grid, folder) = time.monotonic(), places(args.output)
    subject = subject_of(args)
    each = subject.each if args.each is None else args.each
    if not -MOST <= args.seed <= MOST:
        raise TrainerError(f"--seed is {args.seed}; expected a number of at most 63 bits")
    if each < 1:
        raise TrainerError(f"--each is {each}; expected 1 or more")
    if args.guidance is not None and not subject.plain:
        raise TrainerError(f"--guidance {args.guidance:g}: is trained into {subject.name}; it is for plain models")
    settings = subject.settings
    known, memory = backbone(settings.model), settings_of(args, backbone(settings.model)).memory
    usual = size_of(args.size, settings, known), bool(args.size)
    kind = run_of(known)
    asked = asked_for(args.prompts or list(kind.usual()), args.reference, known)
    samplings = [[sampling_of(n, args, subject) for n in prompt.steps or (args.steps,)] for prompt in asked]
    if subject.plain and (fewest := min(s.steps for row in samplings for s in row)) < PLAIN_STEPS:
        file = getattr(known, "distilled", "FILE")
        console.notice(f"{subject.name}: drawn in {fewest} NFE without TwinFlow weights; with them: --weights {file}")
    scales = [scale_of(prompt, args, subject) for prompt in asked]
    guided = [prompt._replace(text=settings.data.guidance_prompt) for prompt, scale in zip(asked, scales) if scale != 1]
    device = Accelerator().device
    conditions = kind.conditions(settings, subject.folder, [*asked, *guided], device)
    empty = iter(conditions[len(asked) :])
    console.loading(f"the transformer of {known.name}")
    network = ready(subject.network(), memory.quantize, memory.block_swap, device, known.name)
    velocities = [network if scale == 1 else Guided(network, next(empty), scale) for scale in scales]
    wanted = [
        Drawing(row, prompt, cond, shape(network.model, known, prompt, cond, usual), sampling, number, seed + number)
        for row, (prompt, cond) in enumerate(zip(asked, conditions))
        for sampling in samplings[row]
        for seed in [args.seed if prompt.seed is None else prompt.seed]
        for number in range(each)
    ]
    latents = [
        generate(velocities[own.row], noise(1, own.shape, own.seed).to(device), own.cond, own.sampling, seed=own.seed).cpu()
        for own in tqdm(wanted, desc="drawing", unit="image")
    ]
    del network, velocities
    free()
    console.loading(f"the autoencoder of {known.name}")
    shown: dict[tuple[int, int], list[Tensor]] = {}
    for own, image in zip(wanted, kind.images(settings, latents, device)):
        about = subject.about | (dict(guidance=scales[own.row]) if scales[own.row] != 1 else {})
        facts = pictures.about(own.prompt.text, own.seed, own.sampling, (image.shape[-2], image.shape[-1]), **about)
        path = grid if len(wanted) == 1 and grid.parent != folder else folder / file_name(own, each)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.write(image[0], path, facts)
        shown.setdefault((own.row, own.sampling.steps), []).append(smaller(image, len(asked)))
    if len(wanted) == 1 and grid.parent != folder:
        print(f"drew {grid}")
    else:
        columns = {
            f"{n} NFE": [torch.cat(made) if (made := shown.get((row, n))) else None for row in range(len(asked))]
            for n in sorted({steps for _, steps in shown})
        }
        drawing.grid(columns, grid, least=64, labels=[prompt.text for prompt in asked], title=subject.name)
        print(f"drew {len(wanted)} image{'s' * (len(wanted) > 1)} in {folder}, and {grid}, which shows all")
    print(f"took {time.monotonic() - began:.0f} s and at most {most_memory(device)}")


def sampling_of(steps: int | None, args: argparse.Namespace, subject: Subject) -> Sampling:
    """The file's setting, or the published one of the style that is asked for, with the options' values in place of its own.

    steps: None for the usual number.  Raises TrainerError.
    """
    style, settings = args.style or ("multi" if subject.plain else None), subject.recommended
    listed = [s.steps for s in settings]
    if steps is not None and steps == args.steps and steps not in listed and style is None:
        raise TrainerError(
            f"--steps {steps}: {subject.name} recommends settings for {', '.join(map(str, listed))} steps; expected one of "
            "these, or --style few, any or multi besides"
        )
    if style:
        settings = tuple(s for s in (*settings, *SAMPLING.values()) if s.style == style)
    changes: dict[str, Any] = dict(order=args.order, extrapolation=args.extrapolation)
    changes["stochasticity"] = share(args.stochasticity)
    changes["start_gap"], changes["end_gap"] = numbers("--gaps", args.gaps, 2) or (None, None)
    changes["warp"] = numbers("--warp", args.warp, 3)
    changes["sigmas"] = () if args.gaps or args.warp or args.order else None  # they are of another schedule
    found = replace(near(steps or settings[0].steps, settings), **{n: v for n, v in changes.items() if v is not None})
    try:
        check_sampling(found.times(), found.style, found.order, found.stochasticity, found.extrapolation)
    except ValueError as error:
        raise TrainerError(f"sampling in {found.steps} steps: {error}") from None
    return found


def scale_of(prompt: Prompt, args: argparse.Namespace, subject: Subject) -> float:
    """Of a plain model's guidance."""
    scale = next((s for s in (prompt.guidance, args.guidance) if s is not None), 1.0)
    if not 0 <= scale < math.inf:
        raise TrainerError(f"--guidance is {scale}; expected 1 (none) or more")
    return scale if subject.plain else 1.0


def share(text: str | None) -> Stochasticity | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text  # sde


def numbers(option: str, text: str | None, count: int) -> tuple[float, ...] | None:
    """Raises TrainerError."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        raise TrainerError(f"{option} is {text!r}; expected {count} numbers by comma, such as 0.001,0.5{',1' * (count - 2)}")
    return found


def places(output: str) -> tuple[Path, Path]:
    """The file of the grid, and the folder of the images; both can be made.  Raises TrainerError."""
    path = Path(output)
    if path.is_dir() or not path.suffix or output.endswith(("/", "\\")):
        return path / "grid.png", path
    if path.suffix.lower() != ".png":
        raise TrainerError(
            f"--output {output}: is no PNG; expected a name that ends in .png, or a folder ({path.with_suffix('')})"
        )
    return path, path.with_suffix("")


def shape(model: nn.Module, known: Backbone, prompt: Prompt, cond: Condition, usual: tuple[tuple[int, int], bool]) -> Any:
    """Of a prompt's latents (C, h, w).  usual: (height, width), and whether it was asked for."""
    if prompt.references and not usual[1] and not any(prompt.size):  # as large as the image that is edited
        return cond[-len(prompt.references)].shape[1:]
    height, width = (side or other for side, other in zip(prompt.size, usual[0]))
    return known.shape(model, (height, width))


def file_name(own: Drawing, each: int) -> str:
    parts = [f"{own.row + 1:02d}", pictures.slug(own.prompt.text), f"{own.sampling.steps}-nfe"]
    return "-".join(filter(None, [*parts, f"{own.number + 1:02d}" if each > 1 else ""])) + ".png"


def asked_for(texts: list[str], references: list[Path], known: Backbone) -> list[Prompt]:
    """The prompts that are meant.  Raises TrainerError."""
    if not texts:
        raise TrainerError("--prompts is empty; expected one or more texts, each in quotes")
    if references and not known.edits:
        raise TrainerError(f"--reference is for models that edit images; leave it out for {known.name}")
    report, images = Report(), tuple(ImageFile(path) for path in references)
    found = [prompt for n, text in enumerate(texts, 1) for prompt in read(text, f"--prompts {n}", report)]
    if report.noted:
        print(f"prompts: noted: {listing(report.noted)}")
    for i, prompt in enumerate(found):
        if "data" in known.unread and any(prompt.size):
            raise TrainerError(f"{prompt.name}: a size means nothing to {known.name}; leave it out")
        found[i] = prompt._replace(references=prompt.references or images)
        if known.edits and not found[i].references:
            raise TrainerError(f"--reference: none given to {known.name}; expected one or more images, since it edits")
        prompts.checked(found[i], edit=known.edits, multiple=known.pixels)
    return found


def read(text: str, name: str, report: Report) -> Iterator[Prompt]:
    """Of one word of the command line: a file of prompts, or a prompt itself."""
    path = Path(text)
    if path.suffix.lower() in prompts.KINDS and " " not in path.suffix:
        if not path.exists():
            raise TrainerError(f"--prompts {text}: is not there; expected a file of prompts, or a text")
        yield from prompts.of_file(path, report)
    else:
        yield prompts.of_line(name, text, Path(), report)


def digest(*files: Path) -> str:
    """SHA-256 of files, one after the other."""
    found = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(2**22):
                found.update(block)
    return found.hexdigest()


def chosen(run: Path, name: str, checkpoint: str | None) -> Path:
    """The run's weights file that --checkpoint says.  Raises TrainerError."""
    final, steps = files.final(run, name), files.by_step(run, name)
    if checkpoint is None and final.exists():
        return final
    if not steps:
        if checkpoint == "last" and final.exists():
            return final
        asked = f"--checkpoint {checkpoint}" if checkpoint else str(final)
        raise TrainerError(f"{asked}: is not there; expected a run that was saved once: train for longer, or --save-every less")
    last = max(steps)
    if checkpoint is None:
        print(f"{run} is not finished; drawing from the weights of step {last}")
    step = last if checkpoint in (None, "last") else int(checkpoint) if checkpoint.isdecimal() else -1
    if step not in steps:
        raise TrainerError(f"--checkpoint is {checkpoint}; expected last, or a step among {', '.join(map(str, steps))}")
    return steps[step]


def size_of(text: str | None, settings: Settings, known: Backbone) -> tuple[int, int]:
    """(height, width) of what --size says.  Raises TrainerError."""
    if text is None:
        return settings.data.resolution, settings.data.resolution
    width, by, height = text.lower().partition("x")
    multiple = known.pixels
    if "data" in known.unread:
        raise TrainerError(f"--size means nothing to {known.name}; leave it out")
    if (
        not (by and width.isdecimal() and height.isdecimal() and int(width) and int(height))
        or int(width) % multiple
        or int(height) % multiple
    ):
        raise TrainerError(f"--size is {text!r}; expected WIDTHxHEIGHT, both multiples of {multiple}, such as 1024x768")
    return int(height), int(width)
