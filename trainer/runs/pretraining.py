"""The base of a model that is trained here: flow matching of the transformer and its prompts' tokens together."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from twinflow.objective import Condition, Objective, Velocity

from ..backbones.small_qwen_image import SmallQwenImage
from ..config.sections import Training
from ..config.settings import Settings
from ..tensors import sharding
from ..training import disk, optimizers
from ..training.log import Log
from ..training.loop import Data, Job, train
from ..weights import files
from ..weights.teachers import WithWeights
from . import drawing


class Base(nn.Module):
    """What is trained, as v(x_t, t, r, cond); r is not used.  table: makes the transformer's condition of the data's."""

    def __init__(self, backbone: SmallQwenImage, table: nn.Module, transformer: nn.Module):
        super().__init__()
        self.backbone, self.table, self.transformer = backbone, table, transformer

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor:
        return self.backbone.velocity(self.transformer, x, t, self.table(*cond))


@dataclass
class Plan:
    """What makes a base.

    fresh: a new network, always the same one.  write: its files, by folder.  version: changes with what is written in code and
    decides the weights.  preview: columns of a grid (see Run.preview), and what stands beside its rows.
    """

    fresh: Callable[[], Base]
    data: Data
    objective: Objective
    write: Callable[[Any, Path], None]
    validation: Data | None = None
    preview: Callable[[Velocity, torch.device], dict[str, list[Tensor]]] | None = None
    labels: tuple[str, ...] = ()


@runtime_checkable
class HasBase(Protocol):
    """A Run (see the package) whose base is trained here."""

    def base_plan(self, settings: Settings) -> Plan: ...

    def judge_base(self, settings: Settings, folder: Path) -> dict[str, Any]:
        """What is measured of the finished base, for metrics.json."""
        ...


def pretrain(plan: Plan, settings: Settings, folder: Path, accelerator: Accelerator, log: Log, lost: Callable[[], bool]) -> int:
    """Train the base, from wherever an earlier call left it, and write its files into the folder; returns its steps.

    lost: see training.loop.Job.
    A base that is a run of its own can be used from every save on, and can be gone on with after the last.
    """
    network, base, logging = plan.fresh(), settings.base, settings.logging
    own, called, main = settings.mode == "base", settings.run.name, accelerator.is_main_process
    for name in network.backbone.idle(network.transformer):
        network.transformer.get_submodule(name).requires_grad_(False)
    tensors = {name: p for name, p in network.named_parameters() if p.requires_grad}
    training = Training(
        steps=base.steps, batch=base.batch, accumulation=1, lr=base.lr, matrix_lr=base.matrix_lr, optimizer=base.optimizer,
        warmup=base.steps // 30, betas=(0.9, 0.95),
    )  # fmt: skip

    def observe(step: int, values: dict[str, dict[str, Tensor]]) -> None:
        made = plan.preview(WithWeights(network, values["weights"]), accelerator.device) if plan.preview else {}
        if accelerator.is_main_process:
            (folder / "samples").mkdir(exist_ok=True)
            path = folder / "samples" / f"step-{step:06d}.png"
            drawing.grid(made, path, labels=plan.labels)
            drawing.losses(log.rows, folder / "loss.png")
            log.image("samples", path, step)

    def whole(values: dict[str, dict[str, Tensor]]) -> Base:
        weights = sharding.gathered({**network.state_dict(), **values["weights"]}, keep=main)
        made = plan.fresh()  # where that one is sharded
        if main:
            made.load_state_dict(weights)
        return made

    def keep_weights(step: int, values: dict[str, dict[str, Tensor]]) -> Path | None:
        made, path = whole(values), files.base_at_step(folder, called, step)
        size = disk.size_of(values["weights"].values())
        if not main or not disk.attempt(path, size, lambda: plan.write(made, path.parent), tqdm.write):
            return None
        files.prune(folder, called, logging.keep_weights)
        return path

    job = Job(
        name="base",
        network=network,
        tensors=tensors,
        groups=optimizers.groups_of(network, tensors, training),
        data=plan.data,
        objective=plan.objective,
        training=training,
        averages={"weights": base.ema},
        validation=plan.validation,
        validate_every=logging.validate_every,
        observe=observe if plan.preview and own else None,
        observe_every=logging.sample_every,
        keep_weights=keep_weights if own else None,
        lost=lost,
    )
    values = train(
        job, accelerator, log, folder / "checkpoints",
        seed=settings.run.seed, model="", save_every=logging.save_every, keep=logging.keep if own else 1,
    )  # fmt: skip
    made = whole(values)
    if main:
        plan.write(made, folder)
    if own:
        keep_weights(job.done, values)
    accelerator.wait_for_everyone()
    return job.done
