"""What a run looks like while it trains: a grid every few hundred steps, and its pictures one by one.

A row a prompt; the base at many steps beside the model that is trained at 1, 2 and 4.  The base is drawn once and kept in
samples/base, whose files say what they are, so that a run that goes on finds them.  All that is drawn at one step ends with
--sample-minutes: the model that is trained comes first, the base in the time that is left.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from twinflow.objective import Condition, Velocity
from twinflow.presets import SAMPLING, Sampling, near

from ..config.settings import Settings
from ..training.log import Log
from ..training.loop import said_anywhere
from ..weights.inference import Guided, generate, noise
from . import drawing, pictures

USUAL = (1, 2, 4)  # network evaluations of the model that is trained
WIDEST, TALLEST = 512, 8192  # pixels of an image in a grid, and of all its rows


@dataclass(frozen=True)
class Shown:
    """A row of the grids.

    cond: for one image; empty: the unconditional one.  shape: (C, h, w) of its latents; size: (height, width) in pixels.
    across: images of it, side by side.  steps: network evaluations, none: the usual.  guidance: of the base, None: as it is
    trained in.  note: what stands under the prompt.  more: what else decides it.
    """

    text: str
    size: tuple[int, int]
    seed: int
    shape: tuple[int, int, int]
    cond: Condition
    empty: Condition
    across: int = 1
    steps: tuple[int, ...] = ()
    guidance: float | None = None
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)


class OutOfTime(Exception):
    pass


class Deadline:
    """The end of the time for one preview.  asked: of all processes at once, where they draw together."""

    def __init__(self, minutes: float, asked: Callable[[bool], bool]):
        self.end, self.asked = time.monotonic() + minutes * 60 if minutes else math.inf, asked

    def watch(self, velocity: Velocity) -> Velocity:
        """The same velocity, which raises OutOfTime when the time is over."""

        def watched(x: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
            if math.isfinite(self.end) and self.asked(time.monotonic() > self.end):
                raise OutOfTime
            return velocity(x, t, r, cond)

        return watched


class Cell(NamedTuple):
    """Of a grid: the row and, of the trained model, the network evaluations (0: the base)."""

    row: int
    steps: int


class Previews:
    """The previews of one run.  images: latents to pictures (see Run).  model: names the base."""

    def __init__(
        self, rows: list[Shown], recommended: tuple[Sampling, ...], settings: Settings, folder: Path, log: Log, model: str,
        images: Callable[[Settings, list[Tensor], torch.device], Any], chunk: int,
    ):  # fmt: skip
        self.rows, self.recommended, self.settings, self.folder, self.log = rows, recommended, settings, folder / "samples", log
        self.model, self.images, self.chunk = model, images, chunk
        self.said: set[str] = set()
        wanted = settings.logging.sample_base
        self.base_sampling = replace(SAMPLING[30], steps=wanted) if wanted else None
        self.base: dict[int, Tensor] = {}  # by row, in the main process: the base's pictures as the grid shows them
        self.given_up = False

    def draw(self, step: int, network: Velocity, base: Velocity | None, *, together: bool) -> None:
        """The grid of a step, and its pictures.  base: the model that training started from, None where it is not held.

        together: all processes are here, and each draws its part of every picture.
        """
        accelerator, main = self.log.accelerator, self.log.accelerator.is_main_process
        asked = (lambda said: said_anywhere(said, accelerator)) if together else lambda said: said
        deadline = Deadline(self.settings.logging.sample_minutes, asked)
        try:
            latents = self.trained(step, deadline.watch(network)) | self.untrained(step, base, deadline, together)
            if main:
                self.write(step, latents)
        except torch.OutOfMemoryError:
            if together:  # the others wait in the same forward
                raise
            self.say(
                "memory", f"step {step}: no samples, out of memory; draw smaller ones (--prompts) or none; training goes on"
            )

    def trained(self, step: int, network: Velocity) -> dict[Cell, Tensor]:
        made: dict[Cell, Tensor] = {}
        try:
            for i, row in enumerate(self.rows):
                for sampling in self.samplings(row):
                    made[Cell(i, sampling.steps)] = self.sampled(network, row, sampling)
        except OutOfTime:
            whole = len({cell.row for cell in made})
            minutes = self.settings.logging.sample_minutes
            self.say(
                "time",
                f"step {step}: {whole} of {len(self.rows)} prompts are drawn in --sample-minutes {minutes:g}; give more "
                "or fewer prompts (--sample-minutes 0 has no end)",
            )
        return made

    def untrained(self, step: int, base: Velocity | None, deadline: Deadline, together: bool) -> dict[Cell, Tensor]:
        """What is missing of the base's column, as far as there is time."""
        if self.base_sampling is None or self.given_up:
            return {}
        made: dict[Cell, Tensor] = {}
        missing = self.missing(together)
        if missing and base is None:
            self.given_up = True
            self.say(
                "base", f"step {step}: the base is not drawn beside the samples: its weights are no longer here, "
                "since all of them are trained",
            )  # fmt: skip
            return {}
        try:
            for i in missing:
                row = self.rows[i]
                assert base is not None
                guided = Guided(deadline.watch(base), row.empty, self.guidance(row))
                made[Cell(i, 0)] = self.sampled(guided, row, self.base_sampling)
        except OutOfTime:
            self.given_up = not made
            rest = "it is left out" if self.given_up else "the rest follows with the next samples"
            self.say(
                "base time", f"step {step}: of the base {len(made)} of {len(missing)} prompts are drawn in --sample-minutes "
                f"{self.settings.logging.sample_minutes:g}; {rest}",
            )  # fmt: skip
        return made

    def sampled(self, network: Velocity, row: Shown, sampling: Sampling) -> Tensor:
        """Latents (across, C, h, w), always from the same noise."""
        start = noise(row.across, row.shape, row.seed).to(self.log.accelerator.device)
        cond = tuple(c.expand(row.across, *c.shape[1:]) for c in row.cond)
        return generate(network, start, cond, sampling, seed=row.seed, chunk=self.chunk).cpu()

    def samplings(self, row: Shown) -> list[Sampling]:
        return [near(steps, self.recommended) for steps in row.steps or USUAL]

    def guidance(self, row: Shown) -> float:
        return self.settings.cfg_scale if row.guidance is None else row.guidance

    def facts(self, row: Shown, steps: int, step: int = 0) -> dict[str, Any]:
        """What a picture's file says of it."""
        settings = self.settings
        if steps == 0:
            assert self.base_sampling
            more = dict(guidance=self.guidance(row), base=self.model, across=row.across)
            return pictures.about(row.text, row.seed, self.base_sampling, row.size, model=settings.model, **more, **row.more)
        sampling = near(steps, self.recommended)
        more = dict(model=settings.model, run=settings.run.name, trained=step)
        return pictures.about(row.text, row.seed, sampling, row.size, **more, **row.more)

    def file(self, i: int, steps: int, step: int) -> Path:
        stem = "-".join(filter(None, [f"{i + 1:02d}", pictures.slug(self.rows[i].text)]))
        if steps == 0:
            return self.folder / "base" / f"{stem}.png"
        return self.folder / f"step-{step:06d}" / f"{stem}-{steps}-nfe.png"

    def missing(self, together: bool) -> list[int]:
        """The rows whose base is not drawn yet; what the main process says, where all draw together."""
        main = self.log.accelerator.is_main_process
        if main:
            self.find_base()
        rows = [i for i in range(len(self.rows)) if main and i not in self.base]
        if not together:
            return rows
        said = torch.tensor([float(i in rows) for i in range(len(self.rows))], device=self.log.accelerator.device)
        summed = self.log.accelerator.reduce(said)
        assert isinstance(summed, Tensor)
        return summed.nonzero().flatten().tolist()

    def find_base(self) -> None:
        """Read what an earlier call of the same run has drawn, once."""
        if "found" in self.said:
            return
        self.said.add("found")
        for i, row in enumerate(self.rows):
            found = pictures.read(self.file(i, 0, 0))
            if found and found[1] == self.facts(row, 0) | {"version": found[1].get("version")}:
                strip = found[0].unflatten(2, (row.across, -1)).permute(2, 0, 1, 3)
                self.base[i] = smaller(strip, len(self.rows))

    def write(self, step: int, latents: dict[Cell, Tensor]) -> None:
        """Pictures one by one, then the grid, on disk and in the trackers."""
        made = self.images(self.settings, list(latents.values()), self.log.accelerator.device)
        shown: dict[Cell, Tensor] = {}
        for cell, image in zip(latents, made):
            row, image = self.rows[cell.row], image.float().cpu()
            shown[cell] = smaller(image, len(self.rows))
            if cell.steps == 0 or row.across == 1:
                strip = image.permute(1, 2, 0, 3).flatten(2)
                path = self.file(cell.row, cell.steps, step)
                path.parent.mkdir(parents=True, exist_ok=True)
                pictures.write(strip, path, self.facts(row, cell.steps, step))
            if cell.steps == 0:
                self.base[cell.row] = shown[cell]
        shown |= {Cell(i, 0): image for i, image in self.base.items()}
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:06d}.png"
        columns = sorted({cell.steps for cell in shown})
        drawing.grid(
            {self.heading(n): [shown.get(Cell(i, n)) for i in range(len(self.rows))] for n in columns}, path,
            labels=[row.text for row in self.rows], notes=[row.note for row in self.rows],
            title=f"{self.settings.run.name}, step {step}", least=64,
        )  # fmt: skip
        self.log.image("samples", path, step)
        for cell, image in shown.items():
            if cell.steps and self.rows[cell.row].across == 1:
                self.log.image(f"sample_{cell.row + 1:02d}/{cell.steps}_nfe", image[0], step)

    def heading(self, steps: int) -> str:
        if steps:
            return f"{steps} NFE"
        assert self.base_sampling
        scale = self.settings.cfg_scale
        return f"base, {self.base_sampling.steps} steps" + (f", CFG {scale:g}" if scale != 1 else "")

    def say(self, what: str, line: str) -> None:
        """Once, by the main process."""
        if what not in self.said and self.log.accelerator.is_main_process:
            tqdm.write(line)
        self.said.add(what)


def smaller(images: Tensor, rows: int) -> Tensor:
    """Images (B, C, H, W), made smaller where they are wider or taller than is shown of so many rows."""
    share = max(128, min(WIDEST, TALLEST // rows)) / max(images.shape[-2:])
    return F.interpolate(images, scale_factor=share, mode="area") if share < 1 else images
