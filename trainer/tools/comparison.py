"""What an evaluation finds: the measures of each network at each number of steps, and a grid of each prompt."""

from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from twinflow.presets import Sampling

from ..runs import drawing, pictures
from ..runs.previews import smaller
from . import measures
from .features import Features
from .gallery import Drawn, Gallery
from .measures import Seen


def measured(
    gallery: Gallery, networks: list[Drawn], bases: list[Drawn | None], features: Features, folder: Path
) -> tuple[list[dict[str, Any]], list[tuple[str, Path]]]:
    """The table of each network, and of each prompt its grid; the pictures of one prompt are in memory at a time."""
    found: list[dict[int, list[dict[str, Any]]]] = [{s.steps: [] for s in own.samplings} for own in networks]
    own_base: list[list[float | None]] = [[] for _ in networks]
    grids = []
    folder.mkdir(exist_ok=True)
    for row, prompt in enumerate(tqdm(gallery.prompts, desc="comparing", unit="prompt")):
        looks: dict[tuple[int, int], Tensor] = {}
        seen: dict[tuple[int, int], Seen] = {}
        for own in {id(own): own for own in (*networks, *filter(None, bases))}.values():
            for sampling in own.samplings:
                images = torch.stack(list(gallery.images(own, sampling, row)))
                looks[id(own), sampling.steps] = smaller(images, gallery.each * len(networks))
                seen[id(own), sampling.steps] = measures.seen(smaller(images, 1), features)
        for i, (own, base) in enumerate(zip(networks, bases)):
            beside = seen[id(base), base.samplings[0].steps] if base else None
            own_base[i].append(measures.diversity(beside) if beside else None)
            many = seen[id(own), own.samplings[-1].steps]
            for sampling in own.samplings:
                at = seen[id(own), sampling.steps]
                values: dict[str, Any] = dict(diversity=measures.diversity(at))
                values["own"] = measures.nearness(at, many) if sampling != own.samplings[-1] else {}
                values["base"] = measures.nearness(at, beside) if beside else {}
                found[i][sampling.steps].append(values)
        path = folder / f"{row + 1:04d}-{pictures.slug(prompt.text) or 'prompt'}.png"
        draw_grid(path, gallery, networks, bases, looks)
        grids.append((prompt.text, path))
    table = []
    for own, base, by_steps, others in zip(networks, bases, found, own_base):
        rows = [summed(gallery, own, sampling, by_steps[sampling.steps]) for sampling in own.samplings]
        entry: dict[str, Any] = dict(name=own.name, rows=rows, base=None)
        if base:
            cost = costs(gallery, base, base.samplings[0])
            entry["base"] = dict(name=base.name, steps=base.samplings[0].steps, diversity=measures.mean(others)[0], **cost)
        table.append(entry)
    return table, grids


def summed(gallery: Gallery, own: Drawn, sampling: Sampling, prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over prompts, with their standard errors, and the cost of a picture."""
    row: dict[str, Any] = dict(steps=sampling.steps, style=sampling.style, **costs(gallery, own, sampling))
    row["diversity"], row["diversity_error"] = measures.mean([p["diversity"] for p in prompts])
    for name in ("own", "base"):
        for kind in ("feature", "pixel"):
            near, error = measures.mean([p[name].get(kind) for p in prompts])
            other, _ = measures.mean([p[name].get(f"{kind}_other") for p in prompts])
            row[f"{name}_{kind}"], row[f"{name}_{kind}_error"], row[f"{name}_{kind}_other"] = near, error, other
            row[f"{name}_{kind}_share"] = measures.share(near, other)
    row["prompts"] = prompts
    return row


def costs(gallery: Gallery, own: Drawn, sampling: Sampling) -> dict[str, Any]:
    """Of one picture: seconds of sampling (median), and the most memory, in bytes."""
    found = [own.cost[p.path] for p in gallery.pictures(own) if p.sampling == sampling]
    device = [c["device"] for c in found if "device" in c]
    return dict(
        seconds=median(c["seconds"] for c in found), host=max(c["host"] for c in found), device=max(device) if device else None
    )


def draw_grid(
    path: Path, gallery: Gallery, networks: list[Drawn], bases: list[Drawn | None], looks: dict[tuple[int, int], Tensor]
) -> None:
    """Rows are seeds, by network; columns its evaluations, then its base."""
    columns: dict[str, list[Tensor | None]] = {}
    labels = []
    for own, base in zip(networks, bases):
        start = len(labels)
        for number in range(gallery.each):
            labels.append(own.name if len(networks) > 1 and number == 0 else "")
        shown = {f"{s.steps} NFE": looks[id(own), s.steps] for s in own.samplings}
        if base:
            shown[f"base, {base.samplings[0].steps} steps"] = looks[id(base), base.samplings[0].steps]
        for head, images in shown.items():
            column = columns.setdefault(head, [])
            column += [None] * (start - len(column)) + [image[None] for image in images]
    whole = {head: column + [None] * (len(labels) - len(column)) for head, column in columns.items()}
    drawing.grid(whole, path, least=96, labels=labels if any(labels) else ())
