"""metrics.csv, the trackers (TensorBoard, Weights & Biases) and what the curves are drawn from."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from twinflow.atomic import append, write_text

from .trackers import brief

TERMS = ("loss", "one_step", "multi_step", "any_step", "few_step", "fake", "rectify")
FIELDS = ("stage", "step", "seconds", "rate", *TERMS, "grad_norm", "skipped", *(f"validation_{term}" for term in TERMS))


class Log:
    """Writes a line every `every` steps.  After a resume the lines beyond the checkpoint are dropped, not doubled."""

    def __init__(self, path: Path, accelerator: Accelerator, every: int):
        self.path, self.accelerator, self.every, self.failed = path, accelerator, every, False
        self.before, self.lost = 0, set[str]()  # steps of earlier stages, which W&B counts on from; trackers that failed
        self.rows, damaged = read(path)
        if damaged:
            accelerator.print(f"{path}: {counted(damaged)} damaged and left out; training is not touched by that")

    def open_stage(self, stage: str, step: int, seconds: float) -> None:
        """Go on logging this stage after this step."""
        self.stage = stage
        self.before = max((int(r["step"]) for r in self.rows if r["stage"] != stage), default=0)
        self.rows = [r for r in self.rows if r["stage"] != stage or int(r["step"]) <= step]
        if self.accelerator.is_main_process:
            write_text(lines(self.rows, header=True), self.path)

    def step(
        self, step: int, seconds: float, rate: float, values: dict[str, float], *, now: bool = False,
        meters: Callable[[], dict[str, float]] = dict,
    ) -> None:  # fmt: skip
        """Note one step; the terms of the loss by their names.  now: whether or not it is its turn.  meters: asked for what
        the trackers show beside them."""
        if not (step % self.every == 0 or now) or not self.accelerator.is_main_process:
            return
        row = {"stage": self.stage, "step": step, "seconds": f"{seconds:.2f}", "rate": f"{rate:.6g}"}
        row |= {name: f"{value:.6g}" for name, value in values.items()}
        self.rows.append(row)
        try:
            if self.failed:
                write_text(lines(self.rows, header=True), self.path)
            else:
                append(lines([row]), self.path)
            self.failed = False
        except OSError as error:  # a full disk, for one; it is said once
            if not self.failed:
                tqdm.write(f"{self.path}: step {step} could not be logged ({error.strerror or error}); training goes on")
            self.failed = True
        shown = {f"{self.stage}/{name}": value for name, value in (values | meters()).items()}
        self.track(step, lambda tracker, at: tracker.log(shown, step=at))

    def track(self, step: int, show: Callable[[Any, int], object]) -> None:
        """show(tracker, step) with every tracker; one that fails costs a line, said once."""
        for tracker in self.accelerator.trackers:
            try:
                show(tracker, step + self.before if tracker.name == "wandb" else step)
            except Exception as error:  # whatever it raises: a full disk, a lost network, a service that is down
                if tracker.name not in self.lost:
                    tqdm.write(
                        f"{tracker.name}: step {step} is not shown ({brief(error)}); training goes on, metrics.csv has all"
                    )
                self.lost.add(tracker.name)

    def image(self, name: str, image: Path | Tensor, step: int) -> None:
        """Show a picture in the trackers, too: a PNG, or (1 or 3, H, W) in [0, 1]."""
        if isinstance(image, Tensor):
            pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()[None]
        else:
            pixels = np.asarray(Image.open(image))[None]
        options = lambda tracker: {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        self.track(step, lambda tracker, at: tracker.log_images({name: pixels}, at, **options(tracker)))

    def close(self) -> None:
        """Let the trackers write what they have."""
        self.track(0, lambda tracker, at: tracker.finish())
        self.accelerator.trackers.clear()


def read(path: Path) -> tuple[list[dict], list[int]]:
    """The rows of a metrics.csv, by the fields that are known, and the numbers of lines that a fault has damaged."""
    try:
        first, *others = path.read_text("utf-8", errors="replace").splitlines() or [""]
    except FileNotFoundError:
        return [], []
    names = first.split(",")
    head = {"stage", "step", "seconds"} <= set(names)
    rows, damaged = [], [] if head else [1]
    for number, line in enumerate(others, 2):
        row = dict(zip(names if head else FIELDS, values := line.split(",")))
        row = {name: row.get(name, "") for name in FIELDS}
        if len(values) == len(names if head else FIELDS) and is_whole(row):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def is_whole(row: dict[str, str]) -> bool:
    """Whether a row is as step() writes it: a stage, its step and seconds, and numbers."""
    try:
        numbers = [float(text) for name, text in row.items() if text and name not in ("stage", "step")]  # seconds first
        return row["stage"].isalpha() and int(row["step"]) > 0 and row["seconds"] != "" and math.isfinite(numbers[0])
    except ValueError:
        return False


def lines(rows: Iterable[dict], *, header: bool = False) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def counted(numbers: list[int]) -> str:
    return f"line {numbers[0]} is" if len(numbers) == 1 else f"{len(numbers)} lines (the first is {numbers[0]}) are"
