"""metrics.csv, the trackers (TensorBoard, Weights & Biases) and what the curves are drawn from."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .trackers import brief

TERMS = ("loss", "one_step", "multi_step", "any_step", "few_step", "fake", "rectify")
FIELDS = ("stage", "step", "seconds", "rate", *TERMS, "grad_norm", "skipped", *(f"validation_{term}" for term in TERMS))


class Log:
    """Writes a line every `every` steps.  After a resume the lines beyond the checkpoint are dropped, not doubled."""

    def __init__(self, path: Path, accelerator: Accelerator, every: int):
        self.path, self.accelerator, self.every, self.failed = path, accelerator, every, False
        self.before, self.lost = 0, set[str]()  # steps of earlier stages, which W&B counts on from; trackers that failed
        self.rows: list[dict] = []
        if path.exists():
            with open(path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def open_stage(self, stage: str, step: int, seconds: float) -> None:
        """Go on logging this stage after this step."""
        self.stage = stage
        self.before = max((int(r["step"]) for r in self.rows if r["stage"] != stage), default=0)
        self.rows = [r for r in self.rows if r["stage"] != stage or int(r["step"]) <= step]
        if self.accelerator.is_main_process:
            with open(self.path, "w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(self.rows)

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
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, FIELDS).writerow(row)
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
