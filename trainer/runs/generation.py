"""Images that are asked for of a run: what is drawn, from which weights, under which names."""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from twinflow.objective import Condition
from twinflow.presets import Sampling
from twinflow.weights import Provenance, read_header

from .. import TrainerError, console
from ..backbones import Backbone, backbone
from ..config import Settings, read_settings
from ..data import prompts
from ..data.prompts import Prompt
from ..data.report import Report, listing
from ..data.row import ImageFile
from ..weights import files, origin
from ..weights.inference import generate, load_trained, noise
from . import drawing, pictures, run_of
from .previews import near, smaller

MOST = 2**63 - 1  # of a seed


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


def draw(args: argparse.Namespace) -> None:
    grid, folder = places(args.output)
    if not -MOST <= args.seed <= MOST:
        raise TrainerError(f"--seed is {args.seed}; expected a number of at most 63 bits")
    if args.each < 1:
        raise TrainerError(f"--each is {args.each}; expected 1 or more")
    if args.run.is_file():
        raise TrainerError(f"{args.run}: is a file; expected the folder of a run, such as {args.run.parent}")
    settings = read_settings(args.run)
    known = backbone(settings.model)
    kind, weights = run_of(known), chosen(args.run, settings.run.name, args.checkpoint)
    provenance = Provenance.from_metadata(read_header(weights).metadata)
    if provenance is None:
        raise TrainerError(f"{weights}: has no twinflow metadata; expected a file that trainer.lora or trainer.full wrote")
    recommended = provenance.sampler or known.sampling
    if args.steps is not None and args.steps not in (listed := [s.steps for s in recommended]):
        raise TrainerError(f"--steps {args.steps}: {weights} recommends settings for {', '.join(map(str, listed))} steps")
    usual = size_of(args.size, settings, known), bool(args.size)
    asked = asked_for(args.prompts or list(kind.usual()), args.reference, known)
    device = Accelerator().device
    conditions = kind.conditions(settings, args.run, asked, device)
    console.loading(f"the transformer of {known.name}")
    network = load_trained(known, origin.below(known, settings, lambda: kind.plain(settings, args.run)), weights).to(device)
    wanted = [
        Drawing(row, prompt, cond, shape(network.model, known, prompt, cond, usual), sampling, number, seed + number)
        for row, (prompt, cond) in enumerate(zip(asked, conditions))
        for sampling in [near(n, recommended) for n in prompt.steps or (args.steps or recommended[0].steps,)]
        for seed in [args.seed if prompt.seed is None else prompt.seed]
        for number in range(args.each)
    ]
    latents = [
        generate(network, noise(1, own.shape, own.seed).to(device), own.cond, own.sampling, seed=own.seed).cpu()
        for own in tqdm(wanted, desc="drawing", unit="image")
    ]
    del network
    console.loading(f"the autoencoder of {known.name}")
    about: dict[str, Any] = dict(model=settings.model, run=settings.run.name, trained=provenance.step, weights=weights.name)
    about |= dict(hash=digest(weights), base=settings.data.source or known.core.models[known.name] or known.name)
    shown: dict[tuple[int, int], list[Tensor]] = {}
    for own, image in zip(wanted, kind.images(settings, latents, device)):
        facts = pictures.about(own.prompt.text, own.seed, own.sampling, (image.shape[-2], image.shape[-1]), **about)
        path = grid if len(wanted) == 1 and grid.parent != folder else folder / file_name(own, args.each)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.write(image[0], path, facts)
        shown.setdefault((own.row, own.sampling.steps), []).append(smaller(image, len(asked)))
    if len(wanted) == 1 and grid.parent != folder:
        print(f"drew {grid}")
        return
    columns = {
        f"{n} NFE": [torch.cat(made) if (made := shown.get((row, n))) else None for row in range(len(asked))]
        for n in sorted({steps for _, steps in shown})
    }
    title = f"{settings.run.name}, step {provenance.step}"
    drawing.grid(columns, grid, least=64, labels=[prompt.text for prompt in asked], title=title)
    print(f"drew {len(wanted)} image{'s' * (len(wanted) > 1)} in {folder}, and {grid}, which shows all")


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


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as opened:
        found = hashlib.sha256()
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
