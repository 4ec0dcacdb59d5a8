"""Checks of the data: rows to train and to validate on, prompts of the samples, sizes of images."""

from collections.abc import Callable, Iterator

from ... import TrainerError
from ...data import prompts as prompt_files
from ...data.buckets import Buckets
from ...data.image_files import Broken, size
from ...data.report import Report
from ...plan.memory import skeleton
from .facts import Facts, Missing, usable_rows


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
