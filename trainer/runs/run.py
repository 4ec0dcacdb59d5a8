"""One run from its configuration to its folder: prepare, distil, write the weights, judge them, draw the pictures."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from twinflow.weights import save, write_json

from .. import TrainerError
from ..training import optimizers
from ..plan import table as plan
from ..weights import quantise, sharding
from . import drawing as report, summary
from ..weights.trainee import Trainee, With
from ..backbones import backbone
from ..config import DTYPES, Config, read_config
from ..training.log import Log
from ..training.loop import Job, train
from ..plan.memory import skeleton
from ..plan.sizes import SIZES


def run(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    model = backbone(config.model)
    quantise.check(config.quantize)
    optimizers.check(config.optimizer)
    folder = open_folder(config)
    if (done := read_json(folder / "metrics.json")) and done.get("config_hash") == config.hash():
        print(f"{folder} is finished; look at {folder / 'grid.png'}, or train another with --name or other settings")
        return
    accelerator = start_accelerator(config, folder)
    plan.check_machine(config, accelerator.device)
    log = Log(folder / "metrics.csv", accelerator, config.log_every)
    if config.mode == "lora" and config.model in SIZES:  # a mistake is found before hours of encoding
        model.lora_targets(skeleton(SIZES[config.model]), config.targets)
    prepared = model.prepare(config, folder, accelerator, log)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # the LoRA's first weights
        trainee = Trainee(model, prepared.model, config)
    write_json(config.model_dump(mode="json"), folder / "config.json")  # only now: a run that cannot be leaves no trace
    count = sum(p.numel() for p in trainee.tensors.values())
    accelerator.print(f"{config.mode}: {count:,} of {trainee.count:,} parameters are trained")
    job = Job(
        name="distil",
        network=trainee.network,
        tensors=trainee.tensors,
        groups=trainee.groups(),
        data=prepared.data,
        objective=config.objective(),
        steps=config.steps,
        batch=config.batch,
        accumulation=config.accumulation,
        schedule=config.schedule,
        warmup=config.warmup,
        betas=config.betas,
        weight_decay=config.weight_decay,
        clip=config.clip,
        averages={key: decay for key, decay in (("teacher", config.ema), ("weights", config.weights_ema)) if decay},
        teacher=lambda averages: averaged(trainee, averages),
        guide=lambda averages: trainee.base() if config.guide == "base" else None,
        validation=prepared.validation,
        validate_every=config.validate_every,
        observe=lambda step, values: observe(model, prepared, trainee, step, values, folder, log),
        observe_every=config.sample_every,
    )
    values = train(
        job, accelerator, log, folder / "checkpoints",
        seed=config.seed, config_hash=config.hash(), save_every=config.save_every, keep=config.keep,
    )  # fmt: skip
    best = values["weights" if config.weights_ema else "last"]
    best = sharding.gathered(trainee.complete(best), keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        finish(config, model, trainee, best, folder, log)
    accelerator.end_training()


def finish(config: Config, model, trainee: Trainee, best: dict, folder: Path, log: Log) -> None:
    """Write the weights file, then what is judged and drawn from that file."""
    weights = folder / f"{config.name}.safetensors"
    dtype = DTYPES[config.dtype if config.save_dtype == "auto" else config.save_dtype]
    tensors = {name: t.to(dtype) for name, t in trainee.file(best).items()}
    save(tensors, weights, trainee.provenance(config.steps).to_metadata())
    print(f"wrote {weights}")
    report.losses(log.rows, folder / "loss.png")
    metrics = {"config_hash": config.hash(), "seconds": seconds(log.rows)}
    if config.evaluate:
        metrics |= model.evaluate(config, folder, weights)
    summary.write(config, model, folder, log.rows, metrics)
    print(f"read {folder / 'summary.md'}")
    write_json(metrics, folder / "metrics.json")


def averaged(trainee: Trainee, averages) -> With | None:
    """The student with the EMA's values: its teacher."""
    if "teacher" not in averages:
        return None
    return With(trainee.network, dict(zip(trainee.tensors, averages["teacher"].shadow)))


def observe(model, prepared, trainee: Trainee, step: int, values, folder: Path, log: Log) -> None:
    """A grid of samples from the weights as they are now, from the same noise every time."""
    now = values.get("weights", values["last"])
    made = model.preview(With(trainee.network, now), prepared, log.accelerator.device)
    if log.accelerator.is_main_process:
        (folder / "samples").mkdir(exist_ok=True)
        path = folder / "samples" / f"step-{step:06d}.png"
        report.grid(made, path)
        log.picture(path, step)


def seconds(rows: list[dict]) -> dict[str, float]:
    """Training time by stage, as the log has it."""
    return {stage: max(float(r["seconds"]) for r in rows if r["stage"] == stage) for stage in {r["stage"] for r in rows}}


def open_folder(config: Config) -> Path:
    """The run's folder, made if need be.  Raises TrainerError where it is unusable or another run's."""
    if not config.name or Path(config.name).name != config.name or config.name.startswith("."):
        raise TrainerError(f"--name is {config.name!r}; expected a plain name without slashes")
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainerError(
            f"--out {config.out}: {folder} cannot be made ({error.strerror}); expected a writable folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise TrainerError(f"--out {config.out}: {folder} cannot be written to; expected a writable folder")
    if not (folder / "config.json").exists():
        return folder
    other = read_config(folder)
    if other.hash() != config.hash():
        names = [n for n in Config.model_fields if getattr(other, n) != getattr(config, n)]
        changes = ", ".join(f"{n} was {getattr(other, n)}, is {getattr(config, n)}" for n in names[:4])
        raise TrainerError(f"{folder} holds a run with other settings ({changes}); use another --name, or delete it")
    return folder


def read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TrainerError(f"{path}: cannot be read ({error}); use another --name, or delete the file") from None


def start_accelerator(config: Config, folder: Path) -> Accelerator:
    tracker = config.tracker
    if tracker == "auto":
        tracker = "tensorboard" if find_spec("tensorboard") else "none"
    elif tracker != "none" and not find_spec(tracker):
        raise TrainerError(f"--tracker {tracker}: is not installed; pip install {tracker}, or --tracker none")
    accelerator = Accelerator(
        mixed_precision="no",  # config.dtype decides, not what accelerate was configured with
        log_with=None if tracker == "none" else tracker,
        project_dir=folder / "logs",
        # buffers are constants, and processes need not make equally many forwards
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    check_launch(config, accelerator)
    if tracker != "none":
        accelerator.init_trackers(config.name)
    return accelerator


def check_launch(config: Config, accelerator: Accelerator) -> None:
    """Raises TrainerError for a way of distributing that these settings cannot be trained in."""
    kind = accelerator.distributed_type
    if kind == DistributedType.NO or "MULTI" in kind.value:
        return
    if kind != DistributedType.FSDP or not accelerator.is_fsdp2:
        raise TrainerError(
            f"accelerate was told to use {kind.value}; expected DDP (--multi_gpu) or --use_fsdp --fsdp_version 2"
        )
    wanted = dict(quantize="none", block_swap=0, optimizer="adamw")
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise TrainerError(
                f"--{name.replace('_', '-')} is {getattr(config, name)}; expected {value} with FSDP, which shards plain weights"
            )
