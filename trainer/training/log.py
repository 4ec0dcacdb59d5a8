"""metrics.csv, the trackers (TensorBoard, Weights & Biases) and what the curves are drawn from."""

import csv
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

TERMS = ("loss", "one_step", "multi_step", "any_step", "few_step", "fake", "rectify")
FIELDS = ("stage", "step", "seconds", "rate", *TERMS, "grad_norm", "skipped", *(f"validation_{term}" for term in TERMS))


class Log:
    """Writes a line every `every` steps.  After a resume the lines beyond the checkpoint are dropped, not doubled."""

    def __init__(self, path: Path, accelerator: Accelerator, every: int):
        self.path, self.accelerator, self.every, self.failed = path, accelerator, every, False
        self.rows: list[dict] = []
        if path.exists():
            with open(path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def open_stage(self, stage: str, step: int, seconds: float) -> None:
        """Go on logging this stage after this step."""
        self.stage = stage
        self.rows = [r for r in self.rows if r["stage"] != stage or int(r["step"]) <= step]
        if self.accelerator.is_main_process:
            with open(self.path, "w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(self.rows)

    def step(self, step: int, seconds: float, rate: float, values: dict[str, float], *, now: bool = False) -> None:
        """Note one step; the terms of the loss by their names.  now: whether or not it is its turn."""
        if not (step % self.every == 0 or now) or not self.accelerator.is_main_process:
            return
        row = {"stage": self.stage, "step": step, "seconds": f"{seconds:.2f}", "rate": f"{rate:.6g}"}
        row |= {name: f"{value:.6g}" for name, value in values.items()}
        self.rows.append(row)
        try:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, FIELDS).writerow(row)
            self.accelerator.log({f"{self.stage}/{name}": value for name, value in values.items()}, step=step)
            self.failed = False
        except OSError as error:  # a full disk, for one; it is said once
            if not self.failed:
                tqdm.write(f"{self.path}: step {step} could not be logged ({error.strerror or error}); training goes on")
            self.failed = True

    def image(self, path: Path, step: int) -> None:
        """Show a PNG in the trackers, too."""
        pixels = np.asarray(Image.open(path))[None]
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": pixels}, step, **options)
