"""One run from its settings to its folder: prepare, distil, write the weights, judge them, draw the grids."""

import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from tqdm import tqdm

from twinflow.atomic import write_atomically, write_json
from twinflow.ema import EMA
from twinflow.plain_json import loads
from twinflow.weights import file_order, save_streamed

from .. import Lost, TrainerError
from ..backbones import Backbone, backbone, trainable
from ..config.options import flag
from ..config.saved import INIT, read_settings
from ..config.settings import DTYPES, OPTIONS, Settings
from ..tensors import sharding
from ..tensors.deferred import Deferred, made
from ..tensors.deferred import outlines as outlines_of
from ..training import checkpoint, disk, optimizers, trackers
from ..training.log import Log
from ..training.loop import Job, train
from ..weights import files, origin
from ..weights.teachers import WithWeights
from ..weights.trainee import Trainee
from . import Run, checks, drawing, lock, resume, run_of, summary
from .folder import LONGEST_NAME, is_plain, not_writable
from .pretraining import HasBase, pretrain
from .previews import Previews

LOOK = "grid.png", "quality.md", "summary.md"  # of a finished run, the first that is there
TRAINS = "data", "base", "training", "memory", "adapter", "guidance", "objective"  # sections that bear on the weights


def run(settings: Settings) -> None:
    """Train as the settings say, from wherever an earlier call with the same ones left off.  Raises TrainerError."""
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    known = backbone(settings.model)
    if not is_wanted(settings):
        return
    checks.check(settings)
    folder, changes = open_folder(settings)
    with lock.held(folder) as lost:
        distil(settings, known, run_of(known), folder, changes, lost)


def dry_run(settings: Settings) -> None:
    """All that a run does before it makes or loads anything.  Raises TrainerError."""
    with redirect_stdout(sys.stderr):
        if is_wanted(settings):
            checks.check(settings, dry=True)
            if (settings.folder / ".lock").exists():
                with lock.held(settings.folder):  # by nobody else
                    pass


def is_wanted(settings: Settings) -> bool:
    """Whether the folder can hold the run, which is not finished; nothing is made.  Raises TrainerError."""
    name, folder = settings.run.name, settings.folder
    if settings.mode == "base" and not isinstance(run_of(backbone(settings.model)), HasBase):
        own = [name for name in trainable() if isinstance(run_of(backbone(name)), HasBase)]
        raise TrainerError(f"--model {settings.model} has a published base; expected one of {', '.join(own)}")
    if not is_plain(name):
        raise TrainerError(f"--name is {name!r}; expected a plain name without slashes, of at most {LONGEST_NAME} bytes")
    if why := not_writable(folder):
        raise TrainerError(f"--out {settings.run.out}: {folder} {why}; expected a writable folder")
    then = read_settings(folder, print) if (folder / "config.json").exists() else None
    changes = resume.changes(settings, then) if then else {}
    return not (base_finished if settings.mode == "base" else finished)(settings, folder, changes)


def finished(settings: Settings, folder: Path, changes: dict[str, str]) -> bool:
    """Whether so many steps are trained and judged, which is said.  Raises TrainerError where nothing is left to go on from."""
    if (done := read_json(folder / "metrics.json")) is None or not (folder / "config.json").exists():
        return False
    before, option = read_settings(folder).training, "steps"
    step, wanted = done.get("step", before.steps), settings.training.steps
    if settings.training.epochs is not None:  # how many steps these are, is known with the data
        wanted, option = before.steps if settings.training.epochs == before.epochs else step + 1, "epochs"
    return is_finished(step, wanted, files.final(folder, settings.run.name), folder, changes, option)


def is_finished(step: int, wanted: int, weights: Path, folder: Path, changes: dict[str, str], option: str) -> bool:
    """Whether step is enough and the weights are there, which is said.  option: of the steps.  Raises TrainerError."""
    states = checkpoint.list_all(folder / "checkpoints")
    if step >= wanted and weights.exists():
        look = next((path for name in LOOK if (path := folder / name).exists()), folder)
        print(f"{folder} is finished ({step} steps); look at {look}, or go on with more {flag(option)}")
        if unused := [told for name, told in changes.items() if OPTIONS[name].section in TRAINS and name != option]:
            print(f"it was trained with other settings: {', '.join(unused)}; with more {flag(option)} these hold from there on")
        return True
    gone = "" if weights.exists() else f", but {weights.name} is gone"
    if not states:
        raise TrainerError(
            f"{folder} is finished ({step} steps){gone}, and there is no checkpoint to go on from; expected --name NEW"
        )
    if gone:
        print(f"{folder} is finished ({step} steps){gone}: it is written again from {states[0]}")
    return False


def distil(
    settings: Settings, known: Backbone, kind: Run, folder: Path, changes: dict[str, str], lost: Callable[[], bool]
) -> None:
    """All that is done in the folder, which may be lost meanwhile."""
    training, logging = settings.training, settings.logging
    accelerator = start_accelerator(settings, folder)
    checkpoint.tidy(folder, main=accelerator.is_main_process)
    if changes:
        accelerator.print(f"other settings than before: {', '.join(changes.values())}")
    log = Log(folder / "metrics.csv", accelerator, logging.log_every)
    prepared = kind.prepare(settings, folder, accelerator, log)
    settings = with_steps(settings, len(prepared.data), accelerator)
    training = settings.training
    begun = checkpoint.newest(folder / "checkpoints") is not None
    first, said = origin.opened(known, settings, begun=begun)
    if said:
        accelerator.print(said)
    model = resume.fingerprint(prepared.model)
    with torch.random.fork_rng():
        torch.manual_seed(settings.run.seed)  # the LoRA's first weights
        trainee = Trainee(known, prepared.model, settings)
    if first:
        first.about = origin.noted(first, settings)
        trainee.init = first.told
        if first.adapter and not begun:
            accelerator.print(first.start(trainee))
        first.adapter = None
    about = {INIT: first.about} if first else {}
    write_json(settings.flat() | about, folder / "config.json")  # only now: a run that cannot be leaves no trace
    count = sum(p.numel() for p in trainee.tensors.values())
    accelerator.print(f"{settings.mode}: {count:,} of {trainee.count:,} parameters are trained")
    decays = {"teacher": training.ema, "weights": training.weights_ema}

    def best(values: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        return values["weights" if training.weights_ema else "last"]

    def keep_weights(step: int, values: dict[str, dict[str, Tensor]]) -> Path | None:
        path = files.at_step(folder, settings.run.name, step)
        if not write_weights(settings, trainee, best(values), path, step, main=accelerator.is_main_process):
            return None
        if accelerator.is_main_process:
            files.prune(folder, settings.run.name, logging.keep_weights)
        return path

    previews = Previews(kind.shown(settings, prepared), known.sampling, settings, folder, log, model, kind.images, known.chunk)

    def look(step: int, values: dict[str, dict[str, Tensor]]) -> None:
        now = WithWeights(trainee.network, values.get("weights", values["last"]))
        previews.draw(step, now, trainee.before(step), together=now.sharded)

    job = Job(
        name="distil",
        network=trainee.network,
        tensors=trainee.tensors,
        groups=optimizers.groups_of(trainee.network, trainee.tensors, training, trainee.second),
        data=prepared.data,
        objective=settings.objective,
        training=training,
        averages={key: decay for key, decay in decays.items() if decay},
        teacher=lambda averages: averaged(trainee, averages),
        guide=lambda averages: trainee.base() if settings.guidance.guide == "base" else None,
        validation=prepared.validation,
        validate_every=logging.validate_every,
        observe=look,
        observe_every=logging.sample_every,
        keep_weights=keep_weights,
        shift=shift_of(settings, known, prepared.model),
        lost=lost,
    )
    with closing(log):
        values = train(
            job, accelerator, log, folder / "checkpoints",
            seed=settings.run.seed, model=model, save_every=logging.save_every, keep=logging.keep,
        )  # fmt: skip
    finish(settings, kind, trainee, best(values), job.done, folder, log)
    accelerator.end_training()


def with_steps(settings: Settings, rows: int, accelerator: Accelerator) -> Settings:
    """The settings with the steps that their epochs of so many rows take, which is said."""
    training, processes = settings.training, accelerator.num_processes
    if training.epochs is None:
        return settings
    step = training.batch * training.accumulation * processes
    steps = math.ceil(training.epochs * rows / step)
    accelerator.print(f"--epochs {training.epochs}: {steps} steps, of {step} among {rows} rows each")
    return settings.model_copy(update={"training": training.model_copy(update={"steps": steps})})


def shift_of(settings: Settings, known: Backbone, model: nn.Module) -> Callable[[Tensor], float] | None:
    """Of the times of a batch of latents."""
    wanted = settings.training.time_shift
    if wanted == "resolution" and known.shift is not None:
        own = known.shift.beside(settings.data.source)
        return lambda x: own.of(known.tokens(model, x))
    return None if wanted == 1 else lambda x: float(wanted)


def run_base(settings: Settings) -> None:
    """Train a base as the settings say, from wherever an earlier call with the same ones left off.  Raises TrainerError."""
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    if not is_wanted(settings):
        return
    checks.check(settings)
    kind = run_of(backbone(settings.model))
    assert isinstance(kind, HasBase)  # else it is not wanted
    folder, changes = open_folder(settings)
    with lock.held(folder) as lost:
        make_base(settings, kind, folder, changes, lost)


def make_base(settings: Settings, kind: HasBase, folder: Path, changes: dict[str, str], lost: Callable[[], bool]) -> None:
    """All that is done in the folder, which may be lost meanwhile."""
    if changes:
        print(f"other settings than before: {', '.join(changes.values())}")
    accelerator = start_accelerator(settings, folder)
    checkpoint.tidy(folder, main=accelerator.is_main_process)
    log = Log(folder / "metrics.csv", accelerator, settings.logging.log_every)
    write_json(settings.flat(), folder / "config.json")
    step = settings.base.steps
    if not (folder / "base.safetensors").exists() or checkpoint.newest(folder / "checkpoints"):
        step = pretrain(kind.base_plan(settings), settings, folder, accelerator, log, lost)
    if accelerator.is_main_process:
        if step > settings.base.steps:
            print(f"{step} steps are trained already, more than --base-steps {settings.base.steps}: the base is of all of them")
        drawing.losses(log.rows, folder / "loss.png")
        print(f"wrote {folder / 'base.safetensors'}")
        judged = kind.judge_base(settings, folder) if settings.logging.evaluate else {}
        write_json({"step": step, "seconds": seconds(log.rows), **judged}, folder / "metrics.json")
    accelerator.end_training()


def base_finished(settings: Settings, folder: Path, changes: dict[str, str]) -> bool:
    """Whether so many steps are trained and judged, which is said.  Raises TrainerError where nothing is left to go on from."""
    if (done := read_json(folder / "metrics.json")) is None or not (folder / "config.json").exists():
        return False
    step, base = done.get("step", read_settings(folder).base.steps), folder / "base.safetensors"
    return is_finished(step, settings.base.steps, base, folder, changes, "base_steps")


def write_weights(
    settings: Settings, trainee: Trainee, values: dict[str, Tensor], path: Path, step: int, *, main: bool = True
) -> bool:
    """One file of these values, to be used as it is, a tensor at a time; False, and said, where it cannot be written.

    Where they are sharded every process must call it; the main one writes.
    """
    wanted = settings.output.save_dtype
    dtype = DTYPES[settings.memory.dtype if wanted == "auto" else wanted]
    tensors = {name: t.to(dtype) for name, t in trainee.file(values, Deferred.of).items()}
    outlines, about, written = outlines_of(tensors), trainee.provenance(step).to_metadata(), True
    source = made(tensors[name] for name in file_order(outlines))
    if main:
        write = lambda: save_streamed(outlines, source, path, about)
        written = disk.attempt(path, disk.size_of(outlines.values()), write, tqdm.write)
    sharded = sharding.is_sharded(trainee.network)
    for _ in source if sharded else ():  # others wait for what is not written any more
        pass
    return sharding.told(written) if sharded else written


def finish(settings: Settings, kind: Run, trainee: Trainee, best: dict[str, Tensor], step: int, folder: Path, log: Log) -> None:
    """Write the weights file of this step, then what is judged and drawn from that file."""
    main = log.accelerator.is_main_process
    weights = files.final(folder, settings.run.name)
    if main or sharding.is_sharded(trainee.network):
        if not write_weights(settings, trainee, best, weights, step, main=main):
            raise Lost(f"{weights} could not be saved; mend that and run the same command again, which goes on here")
    if main:
        conclude(settings, kind, trainee, step, folder, log)


def conclude(settings: Settings, kind: Run, trainee: Trainee, step: int, folder: Path, log: Log) -> None:
    """All that is made of the weights file."""
    name = settings.run.name
    if step > settings.training.steps:
        print(f"{step} steps are trained already, more than --steps {settings.training.steps}: the file is of all of them")
    weights, kept = files.final(folder, name), files.at_step(folder, name, step)
    print(f"wrote {weights}")
    disk.attempt(kept, 0, lambda: write_atomically(kept, lambda temporary: link(weights, temporary)), tqdm.write)
    files.prune(folder, name, settings.logging.keep_weights)
    drawing.losses(log.rows, folder / "loss.png")
    metrics: dict[str, Any] = {"step": step, "seconds": seconds(log.rows)}
    if settings.logging.evaluate:
        metrics |= kind.evaluate(settings, folder, weights)
    summary.write(settings, trainee.backbone, folder, log.rows, metrics)
    print(f"read {folder / 'summary.md'}")
    write_json(metrics, folder / "metrics.json")


def averaged(trainee: Trainee, averages: dict[str, EMA]) -> WithWeights | None:
    """The student with the EMA's values: its teacher."""
    if "teacher" not in averages:
        return None
    return WithWeights(trainee.network, dict(zip(trainee.tensors, averages["teacher"].shadow)))


def link(file: Path, other: str) -> None:
    """The file under another name, without a copy where the disk can do that."""
    Path(other).unlink(missing_ok=True)
    try:
        os.link(file, other)
    except OSError:
        shutil.copyfile(file, other)


def seconds(rows: list[dict]) -> dict[str, float]:
    """Training time by stage, as the log has it."""
    return {stage: max(float(r["seconds"]) for r in rows if r["stage"] == stage) for stage in {r["stage"] for r in rows}}


def open_folder(settings: Settings) -> tuple[Path, dict[str, str]]:
    """The run's folder, made if need be, and what is other than it was there, by option.

    Raises TrainerError where it cannot be made or holds a run that these settings cannot go on with.
    """
    out, folder = settings.run.out, settings.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainerError(f"--out {out}: {folder} cannot be made ({error.strerror}); expected a writable folder") from None
    then = read_settings(folder) if (folder / "config.json").exists() else None
    return folder, resume.changes(settings, then) if then else {}


def read_json(path: Path) -> Any:
    try:
        return loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        print(f"{path}: cannot be read ({error}); it is made anew")
        return None


def start_accelerator(settings: Settings, folder: Path) -> Accelerator:
    tracker = trackers.chosen(settings)
    # accelerate launch asks for it: no weights in any process but the first; here each encodes, and reads its own part
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator = Accelerator(
        mixed_precision="no",  # settings.memory.dtype decides, not what accelerate was configured with
        log_with=None if tracker == "none" else tracker,
        project_dir=folder / "logs",
        # buffers are constants, and processes need not make equally many forwards
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    check_launch(accelerator)
    trackers.start(accelerator, settings, folder)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Raises TrainerError for a way of distributing that is not known here (see checks.environment.launch, too)."""
    kind = accelerator.distributed_type
    if kind == DistributedType.NO or "MULTI" in kind.value:
        return
    if kind != DistributedType.FSDP or not accelerator.is_fsdp2:
        raise TrainerError(
            f"accelerate is configured for {kind.value}; expected DDP (--multi_gpu) or --use_fsdp --fsdp_version 2"
        )
