"""The networks that are compared: files and runs of one model, and what each was distilled from."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from twinflow.presets import SAMPLING, Sampling, near
from twinflow.weights import read_header

from .. import TrainerError
from ..backbones import Backbone, backbone, packed
from ..config.resolving import known_model
from ..config.saved import read_settings
from ..config.settings import Settings
from ..data.prompts import Prompt
from ..runs import pictures
from ..runs.generation import Subject, digest, of_run
from .gallery import Drawn
from .given import of_weights
from .stored import backbone_of, files_of, is_run, provenance_of


def subjects_of(args: argparse.Namespace) -> tuple[Backbone, list[Subject]]:
    """What was named, all of one model.  Raises TrainerError."""
    named: list[tuple[str | None, str]] = []  # the file or run, and its model
    wanted = known_model(args.model) if args.model else None
    for source in args.files:
        named.append((source, wanted or model_of(source)))
        if is_run(Path(source)) and wanted not in (None, model_of(source)):
            raise TrainerError(f"{source}: is a run of {model_of(source)}; expected --model {model_of(source)}, or none")
    if not named:
        if wanted is None:
            raise TrainerError("neither a file, a run nor --model is given; expected some, such as a.safetensors b.safetensors")
        shipped = getattr(backbone(wanted), "distilled", None)
        named = [(str(shipped) if shipped else None, wanted)]
    first, model = named[0]
    for source, other in named:
        if other != model:
            raise TrainerError(
                f"{source}: is of {other}, and {first} of {model}; expected files of one model, which share prompts and noise"
            )
    subjects = []
    for source, model in named:
        run = source is not None and is_run(Path(source))
        own = dict(run=Path(str(source)) if run else None, weights=None if run else source, model=None if run else model)
        subjects.append((of_run if run else of_weights)(argparse.Namespace(**vars(args) | own)))
    return backbone(model), subjects


def model_of(source: str) -> str:
    """By a run's settings, or the file's metadata and keys.  Raises TrainerError."""
    if is_run(Path(source)):
        return read_settings(Path(source)).model
    files, _ = files_of(source)
    metadata: dict[str, str] = {}
    for file in files:
        metadata |= read_header(file.path).metadata if file.path.suffix.lower() in packed.SAFE else {}
    provenance_of(source, metadata)
    try:
        return backbone_of(source, {name for file in files for name in file.entries}, metadata).name
    except TrainerError as error:
        raise TrainerError(f"{error}; or --model NAME, which says what it is") from None


def drawn(
    args: argparse.Namespace, subjects: list[Subject], asked: list[Prompt], steps: Sequence[int]
) -> tuple[list[Drawn], list[Drawn | None]]:
    """The networks, and beside each the base that it was distilled from, one for all that share it.  Raises TrainerError."""
    networks: list[Drawn] = []
    bases: list[Drawn | None] = []
    found: dict[str, Drawn] = {}
    names = titles(args.files, subjects)
    for i, (name, subject) in enumerate(zip(names, subjects), 1):
        settings, own = subject.settings, backbone(subject.settings.model)
        scales = [scale(args, prompt, settings) for prompt in asked]
        about = subject.about | (dict(files=str(args.files[i - 1])) if args.files and "hash" not in subject.about else {})
        slug = "-".join(filter(None, [f"{i:02d}", pictures.slug(name)]))
        networks.append(
            Drawn(
                name, slug, settings, subject.folder, subject.network, at_steps(steps, subject.recommended), about,
                scales if subject.plain else [1.0] * len(asked),
            )
        )  # fmt: skip
        base = None
        if subject.base is not None and args.base_steps:
            title, identity = base_of(own, subject)
            key = f"{identity} {scales}"
            if key not in found:
                one = Drawn(
                    title, f"base{f'-{len(found) + 1}' if found else ''}", settings, subject.folder, subject.base,
                    at_steps([args.base_steps], [SAMPLING[30]]), dict(model=own.name, base=identity), scales,
                )  # fmt: skip
                found[key] = one
            base = found[key]
        bases.append(base)
    return networks, bases


def at_steps(wanted: Sequence[int], recommended: Sequence[Sampling]) -> tuple[Sampling, ...]:
    """The fewest first."""
    return tuple(near(steps, recommended) for steps in sorted(set(wanted)))


def base_of(known: Backbone, subject: Subject) -> tuple[str, str]:
    """Its name, and what tells it from others.  Raises TrainerError."""
    if "data" not in known.unread:
        source = str(subject.settings.data.source or known.core.models[known.name])
        return f"base {source}", source
    file = subject.folder / "base.safetensors"
    if not file.is_file():
        raise TrainerError(f"{subject.name}: {file} is not there; expected its base beside it, or --base-steps 0")
    return "base", digest(file)


def scale(args: argparse.Namespace, prompt: Prompt, settings: Settings) -> float:
    """Of the guidance of what is not distilled: the one that is trained in, where nothing else is asked for."""
    if prompt.guidance is not None:
        return prompt.guidance
    return settings.cfg_scale if args.guidance is None else args.guidance


def titles(files: list[str], subjects: list[Subject]) -> list[str]:
    """Names that differ."""
    names = [subject.name for subject in subjects]
    return [f"{name} ({file})" if names.count(name) > 1 else name for name, file in zip(names, files or [""])]
