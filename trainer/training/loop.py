"""The training loop: one for every backbone, for the base and for its distillation, for a LoRA and for all weights.

Every draw and the order of the data are functions of (seed, step, micro-batch, process), never of a generator that
lives on: resuming needs no random state, and is exact.
"""

import math
import signal
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import Tensor, nn
from tqdm import tqdm

from twinflow.draws import shifted
from twinflow.ema import EMA
from twinflow.objective import Batch, Condition, Loss, Networks, Objective, Velocity, draw, loss
from twinflow.roles import share_out

from .. import Diverged, Lost, Stopped
from ..config.sections import Training
from ..console import AGAIN
from ..seeds import seed_of
from ..tensors import deferred, sharding
from . import checkpoint, optimizers
from .ahead import Ahead
from .log import Log
from .meters import Meters

PATIENCE = 10  # steps without a finite gradient before training gives up


class Data(Protocol):
    """Rows that are ready to train on."""

    def __len__(self) -> int: ...

    def batch_at(self, index: int, batch: int, seed: int) -> tuple[Tensor, Condition, Condition]:
        """Micro-batch number `index`, counted over all processes from the run's start: latents (B, C, H, W), their
        condition, and the unconditional one in the same shapes.  A function of these arguments alone."""
        ...


@dataclass
class Job:
    """What is trained, on what, and for how long.

    network: v(x_t, t, r, cond), trained through `tensors` (by name), in optimiser groups with a "kind" (see optimizers) and a
    "peak" learning rate.  training: the section of the settings.
    averages: decay by key, kept of the tensors; "teacher" is updated before the step, all others after it.
    teacher, guide: given the averages, the networks of the objective (None: the student itself).
    validation: rows for the loss on what is not trained on, every validate_every steps and after the last.
    observe: called with (step, values by average's key, "last" among them) for sample grids; by every process where the
    weights are sharded, else by the main one.
    keep_weights: called like observe at every save before the last step, for files that can be used; returns what it wrote.
    shift: factor by which the times of a batch of these latents are moved (see draws.shifted); None moves none.
    lost: whether the run's folder was removed or moved away: training saves there once more, and stops.
    done: steps that lie behind when train returns; more than asked for where an earlier call was asked for more.
    """

    name: str
    network: nn.Module
    tensors: dict[str, nn.Parameter]
    groups: list[dict[str, Any]]
    data: Data
    objective: Objective
    training: Training
    averages: dict[str, float] = field(default_factory=dict)
    teacher: Callable[[dict[str, EMA]], Velocity | None] = lambda averages: None
    guide: Callable[[dict[str, EMA]], Velocity | None] = lambda averages: None
    validation: Data | None = None
    validate_every: int = 0
    observe: Callable[[int, dict[str, dict[str, Tensor]]], None] | None = None
    observe_every: int = 0
    keep_weights: Callable[[int, dict[str, dict[str, Tensor]]], Path | None] | None = None
    shift: Callable[[Tensor], float] | None = None
    lost: Callable[[], bool] = lambda: False
    done: int = 0

    @property
    def steps(self) -> int:
        return self.training.steps

    @property
    def rows(self) -> int:
        """Of one step, in one process."""
        return self.training.batch * self.training.accumulation

    def shard(self, accelerator: Accelerator) -> None:
        """The network, as accelerate is configured; it gets new parameters."""
        names, values = {id(p): name for name, p in self.tensors.items()}, deferred.waiting(self.network)
        plugin: Any = accelerator.state.fsdp_plugin
        asked = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
        fsdp2_prepare_model(accelerator, self.network)
        # which notes this network's blocks: a next one, after a base, has others, and would be cut as no resumed run is
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = asked
        deferred.share_out(self.network, values)
        live = dict(self.network.named_parameters())
        self.tensors.update({name: live[name] for name in self.tensors})
        for group in self.groups:
            group["params"] = [live[names[id(p)]] for p in group["params"]]


def learning_rate(step: int, training: Training) -> float:
    """The share of the peak learning rate at this step."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    course = training.schedule.removesuffix("-with-warmup")
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[course]


class Interrupts:
    """Turns the first Ctrl-C (or SIGTERM) into a wish to stop after the step; a second one stops at once."""

    def __enter__(self):
        self.wanted = False
        self.old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)


def train(
    job: Job, accelerator: Accelerator, log: Log, folder: Path, *, seed: int, model: str, save_every: int, keep: int
) -> dict[str, dict[str, Tensor]]:
    """Train job.tensors in place, going on from the newest checkpoint in folder; returns values(job, averages).

    model: names the weights that training starts from (see checkpoint.write).
    Raises Stopped after saving when interrupted, and Diverged when training has broken down.
    """
    if sharding.shards(accelerator):
        job.shard(accelerator)
        network, built = job.network, optimizers.build(job.groups, job.training)
    else:
        # what is frozen is the same everywhere: DDP need not send it, and could not send quantised weights
        ignored = [n for n, _ in job.network.named_parameters() if n not in job.tensors]
        object.__setattr__(job.network, "_ddp_params_and_buffers_to_ignore", ignored)
        network, *built = accelerator.prepare(job.network, *optimizers.build(job.groups, job.training))
    averages = {key: EMA(job.tensors.values(), decay) for key, decay in job.averages.items()}
    state = checkpoint.State(job.tensors, built, averages)
    trainer = Step(job, network, accelerator, averages, seed)  # whose guide is a copy of the weights before they are trained
    if path := checkpoint.restore(state, folder, model, accelerator.print):
        accelerator.print(f"going on with {job.name} from {path} (step {state.step} of {job.steps})")
    log.open_stage(job.name, state.step, state.seconds)

    def look():
        if job.observe and job.observe_every and (accelerator.is_main_process or trainer.sharded):
            try:
                job.observe(state.step, values(job, averages))
            except OSError as error:  # a full disk, for one
                tqdm.write(f"step {state.step}: no samples could be saved ({error.strerror or error}); training goes on")

    def keep_weights() -> Path | None:
        if job.keep_weights and (accelerator.is_main_process or trainer.sharded):
            return job.keep_weights(state.step, values(job, averages))

    if state.step == 0:
        look()
    bar = tqdm(
        total=max(job.steps, state.step), initial=state.step, desc=job.name, unit="step",
        disable=not accelerator.is_main_process, dynamic_ncols=True, mininterval=0.5,
    )  # fmt: skip
    meters = Meters(job.rows * accelerator.num_processes, accelerator.device, built)
    failures, began = 0, time.perf_counter() - state.seconds
    with Interrupts() as interrupts, bar, closing(trainer):
        while state.step < job.steps:
            meters.begin()
            rate = learning_rate(state.step, job.training)
            for optimizer in built:
                optimizers.set_rate(optimizer, rate)
            terms, norm = trainer(state.step)
            if math.isfinite(norm):
                for optimizer in built:
                    optimizer.step()
                failures = 0
                for key, average in averages.items():
                    if key != "teacher":
                        average.update()
            else:
                failures, state.skipped = failures + 1, state.skipped + 1
            for optimizer in built:
                optimizer.zero_grad(set_to_none=True)
            meters.end()
            if failures >= PATIENCE:
                raise Diverged(
                    f"{job.name}: the gradient was not finite for {PATIENCE} steps in a row (the last is step {state.step}); "
                    f"lower the learning rate; the last good checkpoint is {checkpoint.newest(folder) or 'none yet'}"
                )
            state.step += 1
            state.seconds = time.perf_counter() - began
            last, notes = state.step == job.steps, {"grad_norm": norm, "skipped": state.skipped}
            if job.validation and (state.step % job.validate_every == 0 or last):
                notes |= trainer.validate(job.validation)
            now = last or "validation_loss" in notes
            log.step(state.step, state.seconds, rate, terms | notes, now=now, meters=meters.read)
            usage = speed_and_memory(state, job.rows * accelerator.num_processes, accelerator.device)
            bar.set_postfix({k: f"{v:.3g}" for k, v in terms.items()} | usage, refresh=False)
            bar.update()
            lost = job.lost()
            stop, weights = said_anywhere(interrupts.wanted or lost, accelerator), None
            if state.step % save_every == 0 or last or stop:
                main = accelerator.is_main_process
                checkpoint.write(state, folder, model, keep, main=main, say=tqdm.write)
                weights = None if last else keep_weights()
                accelerator.wait_for_everyone()
            if lost:
                raise Lost(
                    f"{folder.parent} was removed or moved away at step {state.step} of {job.steps}; what is trained was saved "
                    f"there again as {checkpoint.newest(folder) or 'nothing'}. {AGAIN}"
                )
            if last or (job.observe_every and state.step % job.observe_every == 0):
                look()
            if stop and state.step < job.steps:
                raise Stopped(
                    f"stopped at step {state.step} of {job.steps} of {job.name}; saved as "
                    f"{checkpoint.newest(folder) or 'nothing'}{f', and to be used as {weights}' if weights else ''}"
                )
    job.done = state.step
    return values(job, averages)


def speed_and_memory(state: checkpoint.State, rows: int, device: torch.device) -> dict[str, str]:
    """For the progress bar: images a second, and the memory: the GPU's at its highest, else the process's."""
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return {"img/s": f"{rows * state.step / max(state.seconds, 1e-9):.3g}", "GiB": f"{held / 2**30:.3g}"}


def said_anywhere(said: bool, accelerator: Accelerator) -> bool:
    """Whether any process says so; all must ask."""
    said_by = accelerator.reduce(torch.tensor(float(said), device=accelerator.device))
    assert isinstance(said_by, Tensor)
    return bool(said_by.item())


def values(job: Job, averages: dict[str, EMA]) -> dict[str, dict[str, Tensor]]:
    """The trained tensors by name: "last", and each average by its key."""
    named = {key: dict(zip(job.tensors, average.shadow)) for key, average in averages.items()}
    return {"last": {name: p.detach() for name, p in job.tensors.items()}} | named


class Step:
    """One optimiser step's gradients, accumulated over its micro-batches."""

    def __init__(self, job: Job, network: nn.Module, accelerator: Accelerator, averages: dict[str, EMA], seed: int):
        self.job, self.network, self.accelerator, self.averages, self.seed = job, network, accelerator, averages, seed
        self.sharded = sharding.is_sharded(network)
        self.networks = Networks(network, job.teacher(averages), job.guide(averages), alike=self.sharded)
        self.batch, self.accumulation = job.training.batch, job.training.accumulation
        self.ahead = {id(data): Ahead(data, self.batch, seed) for data in (job.data, job.validation) if data is not None}
        self.roles = [
            share_out(self.batch, job.objective.roles, part=part, parts=self.accumulation) for part in range(self.accumulation)
        ]  # raises ValueError for a batch that cannot hold the roles

    def __call__(self, step: int) -> tuple[dict[str, float], float]:
        """Gradients of this step in the tensors; returns the loss terms and the gradient's norm before clipping."""
        job, accelerator = self.job, self.accelerator
        if "teacher" in self.averages:
            self.averages["teacher"].update()
        sums: dict[str, list] = {}
        for part in range(self.accumulation):
            last = part == self.accumulation - 1
            # sharded gradients are shared out every time: kept back, they would be whole
            with nullcontext() if last or self.sharded else accelerator.no_sync(self.network):
                found = self.loss(job.data, step, part, more=not last or step + 1 < job.steps)
                accelerator.backward(found.total / self.accumulation)
            note(sums, found)
        norm = accelerator.clip_grad_norm_(list(job.tensors.values()), job.training.clip or math.inf)
        assert norm is not None
        return self.means(sums), float(norm)

    @torch.no_grad()
    def validate(self, data: Data) -> dict[str, float]:
        """The loss terms over these rows, each seen once or nearly so, with the same draws every time."""
        sums: dict[str, list] = {}
        steps = math.ceil(len(data) / (self.job.rows * self.accelerator.num_processes))
        for step in range(steps):
            for part in range(self.accumulation):
                more = part + 1 < self.accumulation or step + 1 < steps
                note(sums, self.loss(data, step, part, "validation", more=more))
        return {f"validation_{name}": value for name, value in self.means(sums).items()}

    def loss(self, data: Data, step: int, part: int, *purpose: str, more: bool = False) -> Loss:
        """Of one micro-batch.  purpose: keeps its draws apart from those of training.  more: another one follows."""
        job, accelerator = self.job, self.accelerator
        address = (self.seed, *purpose, step, part, accelerator.process_index)
        torch.manual_seed(seed_of(*address, "dropout"))
        index = (step * self.accumulation + part) * accelerator.num_processes + accelerator.process_index
        x, cond, uncond = self.ahead[id(data)].take(index, index + accelerator.num_processes if more else None)
        x = x.to(accelerator.device)
        cond, uncond = (tuple(c.to(accelerator.device) for c in group) for group in (cond, uncond))
        draws = draw(x, job.objective, torch.Generator().manual_seed(seed_of(*address, "draws")))
        if job.shift:
            draws = shifted(draws, job.shift(x))
        return loss(self.networks, Batch(x, cond, uncond), job.objective, self.roles[part], draws)

    def close(self) -> None:
        for ahead in self.ahead.values():
            ahead.close()

    def means(self, sums: dict[str, list]) -> dict[str, float]:
        """Over the micro-batches and the processes."""
        means = self.accelerator.reduce(torch.stack([torch.stack(v).mean() for v in sums.values()]), "mean")
        assert isinstance(means, Tensor)
        return dict(zip(sums, means.tolist()))


def note(sums: dict[str, list], found: Loss) -> None:
    for name, value in {"loss": found.total.detach(), **found.terms}.items():
        sums.setdefault(name, []).append(value)
