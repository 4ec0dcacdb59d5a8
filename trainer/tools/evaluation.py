"""What trainer.evaluate does: pictures, measures and the page; or the folders of a benchmark."""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from twinflow.atomic import write_json
from twinflow.plain_json import loads

from .. import TrainerError
from ..backbones import backbone
from ..data.prompts import Prompt
from ..runs import run_of
from ..runs.generation import MOST, Subject, asked_for, size_of
from . import benches, report
from .comparison import measured
from .features import open_features
from .gallery import Drawn, Gallery
from .networks import drawn, subjects_of

RECORD, NUMBERS, PAGE = "evaluation.json", "measures.json", "index.html"
OURS = "images", "grids", "bench"  # folders that are written


def evaluate(args: argparse.Namespace) -> None:
    """Raises TrainerError or WeightsError, before anything is drawn as far as that can be known."""
    check_numbers(args)
    device = Accelerator().device
    known, subjects = subjects_of(args)
    bench = benches.BENCHES[args.bench[0]] if args.bench else None
    usual = size_of(args.size, subjects[0].settings, known), bool(args.size)
    args.each = args.each if args.each is not None else bench.each[0] if bench else 4
    cases = bench.read(Path(args.bench[1])) if bench else []
    if bench:
        benches.check(args.bench[0], args.each, usual[0])
        if known.edits:
            raise TrainerError(f"--bench {args.bench[0]}: {known.name} edits images; expected a model of text to image")
        asked = [Prompt(case.name, case.text) for case in cases]
        steps = args.nfe
    else:
        report.check()
        open_features(args.features)  # a fault is found before anything is drawn
        asked = asked_for(args.prompts or list(run_of(known).usual()), args.reference, known)
        asked = [own._replace(steps=()) for own in asked]  # all are drawn in the same ones
        steps = [*args.nfe, args.many]
    networks, bases = drawn(args, subjects, asked, steps)
    record = recorded(args, subjects, networks, bases, asked, usual[0])
    gallery = Gallery(args.output / "images", asked, usual, args.each, args.seed)
    everything = list({id(own): own for own in (*networks, *filter(None, bases))}.values())
    opened(args.output, record, args.overwrite)
    gallery.draw(everything, device)
    if bench:
        for own in everything:
            for sampling in own.samplings:
                place = args.output / "bench" / f"{own.slug}-{sampling.steps}-nfe"
                images = [[gallery.picture(own, sampling, row, k).path for k in range(args.each)] for row in range(len(asked))]
                print(f"wrote {place}; {bench.title} scores it by: {bench.write(place, cases, images)}")
        return
    features = open_features(args.features, device)
    table, grids = measured(gallery, networks, bases, features, args.output / "grids")
    about = record | dict(features=dict(name=features.name, distance=features.distance, **features.about))
    about |= dict(device=name_of(device), torch=torch.__version__, command=args.command)
    write_json({"settings": about, "networks": table}, args.output / NUMBERS)
    report.write(args.output / PAGE, about, table, grids)
    print(f"look at {args.output / PAGE}; its numbers are in {args.output / NUMBERS}")


def check_numbers(args: argparse.Namespace) -> None:
    """Raises TrainerError."""
    if not -MOST <= args.seed <= MOST:
        raise TrainerError(f"--seed is {args.seed}; expected a number of at most 63 bits")
    if args.each is not None and args.each < 1:
        raise TrainerError(f"--each is {args.each}; expected 1 or more")
    if args.guidance is not None and not 0 <= args.guidance < math.inf:
        raise TrainerError(f"--guidance is {args.guidance}; expected 1 (none) or more")
    try:
        args.nfe = sorted({int(part) for part in args.nfe.split(",")})
    except ValueError:
        raise TrainerError(f"--nfe is {args.nfe!r}; expected numbers by comma, such as 1,2,4,8") from None
    if args.bench and (given := [name for name in ("many", "prompts", "reference") if getattr(args, name)]):
        raise TrainerError(f"--{given[0]} is for the page; leave it out with --bench, whose prompts are the benchmark's")
    args.many = 32 if args.many is None else args.many
    args.base_steps = (0 if args.bench else args.many) if args.base_steps is None else args.base_steps
    for option, steps in (("nfe", args.nfe[0]), ("nfe", args.nfe[-1]), ("many", args.many)):
        if not 1 <= steps <= 200:
            raise TrainerError(f"--{option} is {steps}; expected 1 to 200 network evaluations")
    if not 0 <= args.base_steps <= 200:
        raise TrainerError(f"--base-steps is {args.base_steps}; expected 1 to 200 network evaluations, or 0: no base")
    if not args.bench and args.nfe[-1] >= args.many:
        raise TrainerError(f"--nfe {args.nfe[-1]}: is not below --many {args.many}, which it is compared with")
    if args.bench and args.bench[0] not in benches.BENCHES:
        raise TrainerError(f"--bench {args.bench[0]}: is unknown; expected {', '.join(benches.BENCHES)}")


def recorded(
    args: argparse.Namespace, subjects: list[Subject], networks: list[Drawn], bases: list[Drawn | None], asked: list[Prompt],
    size: tuple[int, int],
) -> dict[str, Any]:  # fmt: skip
    """All that decides the pictures, to be repeated by."""
    schedule = lambda own: {str(s.steps): s.to_json() for s in own.samplings}
    listed = [dict(name=own.name, **own.about, schedule=schedule(own)) for own in networks]
    for row, base in zip(listed, bases):
        row["beside"] = (
            None if base is None else dict(name=base.name, **base.about, schedule=schedule(base), guidance=base.scales)
        )
    first = subjects[0].settings
    sized = "data" not in backbone(first.model).unread
    return dict(
        model=first.model, networks=listed, seed=args.seed, each=args.each, nfe=args.nfe,
        many=None if args.bench else args.many, base_steps=args.base_steps, size=[size[1], size[0]] if sized else None,
        dtype=first.memory.dtype, quantize=first.memory.quantize, bench=args.bench,
        prompts=[dict(prompt=own.text, seed=own.seed, size=list(own.size)) for own in asked],
    )  # fmt: skip


def opened(output: Path, record: dict[str, Any], overwrite: bool) -> None:
    """The folder, new or with a part of the same evaluation.  Raises TrainerError."""
    record = json.loads(json.dumps(record))
    if output.exists() and not output.is_dir():
        raise TrainerError(f"--output {output}: is a file; expected a folder")
    if output.is_dir() and any(output.iterdir()):
        try:
            then = loads((output / RECORD).read_text("utf-8"))
        except (OSError, ValueError):
            raise TrainerError(
                f"--output {output}: holds other files; expected a new folder, or one of an evaluation"
            ) from None
        differ = [name for name in record if then.get(name) != record[name]]
        if differ and not overwrite and any((output / name).exists() for name in OURS):
            raise TrainerError(
                f"--output {output}: holds an evaluation with other {', '.join(differ)}; expected a new folder, or --overwrite"
            )
        if differ:
            for name in OURS:
                shutil.rmtree(output / name, ignore_errors=True)
        elif (output / OURS[0]).exists():
            print(f"going on in {output}: what is drawn there is kept")
    output.mkdir(parents=True, exist_ok=True)
    write_json(record, output / RECORD)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
