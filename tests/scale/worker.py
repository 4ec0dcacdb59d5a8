"""One of two processes that train together; started by test_distributed.py, with a folder and what to do.

    worker.py FOLDER train ddp|fsdp2       three steps of tiny models, against one process with twice the batch;
                                           stopped and going on, against never stopping
    worker.py FOLDER run   ddp|fsdp2 MODE  a whole run on digits
    worker.py FOLDER images fsdp2 OPTION.. a whole run of trainer.full with these options

FSDP on CPUs is what accelerate does not offer, so it is told that it may.
"""

import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin
from tiny import batch, config, plain  # beside this file; a dependency brings a package named tests
from torch.distributed.fsdp import FSDPModule

from trainer.cli import main as command
from trainer.config.resolving import resolve
from trainer.config.sections import Training
from trainer.console import guarded
from trainer.data.order import rows_at
from trainer.runs import digits
from trainer.runs import run as runs
from trainer.runs.run import averaged
from trainer.seeds import seed_of
from trainer.tensors import sharding
from trainer.training import checkpoint, loop, optimizers
from trainer.training.log import Log
from trainer.weights.teachers import WithWeights
from trainer.weights.trainee import Trainee
from twinflow import objective as twinflow
from twinflow.ema import EMA
from twinflow.objective import Draws, Objective
from twinflow.roles import Roles, share_out

PROCESSES, STEPS, RATE = 2, 3, 0.3
# so narrow a guidance range that often only one process has a row in it; four roles, shared out over two micro-batches
OBJECTIVE = Objective(guidance_ratio=0.5, guidance_range=(0.3, 0.7), dt=0.05, barron_scale=0.3)
BATCH, PARTS = 2, 2
CASES = {"ddp": (("qwen-image", "lora"), ("sd3.5", "full")), "fsdp2": (("sd3.5", "lora"), ("qwen-image", "full"))}


class Rows:
    """Eleven rows of noise."""

    def __init__(self, name: str):
        self.all = batch(name, 11)

    def __len__(self):
        return 11

    def batch_at(self, index, batch, seed):
        rows = torch.tensor([row for _, row in rows_at(index * batch, batch, len(self), seed)])
        x, cond, uncond = self.all
        return x[rows], tuple(c[rows] for c in cond), tuple(c[rows] for c in uncond)


def shard(accelerator: Accelerator) -> Accelerator:
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
    )
    return accelerator


def start(kind: str) -> Accelerator:
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    return shard(accelerator) if kind == "fsdp2" else accelerator


def trainee_of(name: str, mode: str) -> Trainee:
    backbone, model = plain(name)
    torch.manual_seed(1)
    made = Trainee(backbone, model, config(mode, checkpointing=True, guide="base"))
    for p in made.tensors.values():
        p.data.add_(torch.randn_like(p) * 0.02)
    return made


def train(name, mode, accelerator, folder, steps=STEPS, **changes):
    """The trainee, its log, and each step's gradients (whole, on the main process)."""
    trainee, gradients = trainee_of(name, mode), []

    def record(optimizer, *_):
        found = {key: p.grad for key, p in trainee.tensors.items()}
        gradients.append(sharding.gathered(found, keep=accelerator.is_main_process))

    build = optimizers.build

    def watched(*args, **kwargs):
        built = build(*args, **kwargs)
        built[0].register_step_pre_hook(record)
        return built

    job = loop.Job(
        name="distil",
        network=trainee.network,
        tensors=trainee.tensors,
        groups=optimizers.groups_of(trainee.network, trainee.tensors, trainee.settings.training, trainee.second),
        data=Rows(name),
        objective=OBJECTIVE,
        training=Training(steps=steps, batch=BATCH, accumulation=PARTS, schedule="constant", clip=0, warmup=0),
        averages={"teacher": 0.9, "weights": 0.5},
        teacher=lambda averages: averaged(trainee, averages),
        guide=lambda averages: trainee.base(),
    )
    for key, value in changes.items():
        setattr(job, key, value)
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder / "metrics.csv", accelerator, 1)
    optimizers.build = watched
    try:
        values = loop.train(job, accelerator, log, folder / "checkpoints", seed=0, model="x", save_every=2, keep=9)
    finally:
        optimizers.build = build
    return trainee, log, gradients, values


def merged(parts: list[tuple]):
    """Batches of the processes (x, cond, uncond, draws, roles) as one batch, their rows together by role."""
    roles = parts[0][-1]
    order = [k * BATCH + i for rows in roles.rows.values() for k in range(len(parts)) for i in range(rows.start, rows.stop)]
    assert sorted(order) == list(range(BATCH * len(parts)))
    together = lambda tensors: torch.cat(tensors)[order]
    x = together([p[0] for p in parts])
    cond, uncond = (tuple(together(list(cs)) for cs in zip(*(p[i] for p in parts))) for i in (1, 2))
    draws = Draws(*(together(list(ds)) for ds in zip(*(p[3] for p in parts))))
    rows = {role: slice(s.start * len(parts), s.stop * len(parts)) for role, s in roles.rows.items()}
    return x, cond, uncond, draws, Roles(rows, roles.share)


def alone(name: str, mode: str):
    """The same steps in one process with twice the batch, written out: losses, and gradients by step."""
    trainee, data = trainee_of(name, mode), Rows(name)
    tensors = trainee.tensors
    ema, base = EMA(tensors.values(), 0.9), trainee.base()
    teacher = WithWeights(trainee.network, dict(zip(tensors, ema.shadow)))
    losses, gradients = [], []
    for step in range(STEPS):
        ema.update()
        total = 0.0
        for part in range(PARTS):
            parts = []
            for process in range(PROCESSES):
                x, cond, uncond = data.batch_at((step * PARTS + part) * PROCESSES + process, BATCH, 0)
                seed = seed_of(0, step, part, process, "draws")
                draws = twinflow.draw(x, OBJECTIVE, torch.Generator().manual_seed(seed))
                roles = share_out(BATCH, OBJECTIVE.roles, part=part, parts=PARTS)
                parts.append((x, cond, uncond, draws, roles))
            x, cond, uncond, draws, roles = merged(parts)
            networks = twinflow.Networks(trainee.network, teacher, base)
            loss = twinflow.loss(networks, twinflow.Batch(x, cond, uncond), OBJECTIVE, roles, draws).total / PARTS
            loss.backward()
            total += loss.item()
        losses.append(total)
        gradients.append({key: p.grad for key, p in tensors.items()})
        with torch.no_grad():
            for p in tensors.values():
                p.sub_(RATE * p.grad)
        for p in tensors.values():
            p.grad = None
    return losses, gradients


def sgd(groups, training):
    return [torch.optim.SGD([group | {"lr": RATE} for group in groups])]


def steps(accelerator, folder, kind):
    optimizers.build, adamw = sgd, optimizers.build  # whose step follows the gradient, not only its sign
    optimizers.set_rate, rate = (lambda *_: None), optimizers.set_rate
    for name, mode in CASES[kind]:
        if kind == "fsdp2":
            shard(accelerator)  # its plugin remembers the classes of the last model
        trainee, log, gradients, _ = train(name, mode, accelerator, folder / f"{name}-{mode}", save_every=99)
        sharded = [isinstance(p, sharding.DTensor) for p in sharding.parameters(trainee.network).values()]
        assert all(sharded) if kind == "fsdp2" else not any(sharded)
        if accelerator.is_main_process:
            losses, wanted = alone(name, mode)
            worst = 0.0
            for step, (loss, row) in enumerate(zip(losses, log.rows, strict=True)):
                assert abs(float(row["loss"]) - loss) < 1e-5 * max(1, loss), (name, mode, step, row["loss"], loss)
                assert wanted[step].keys() == gradients[step].keys() and len(gradients) == STEPS
                for key, gradient in wanted[step].items():
                    error = (gradients[step][key] - gradient).abs().max().item()
                    assert error < 1e-5, (name, mode, step, key, error)
                    worst = max(worst, error)
                largest = max(g.abs().max().item() for g in wanted[step].values())
                assert largest > 1e-3, largest
            print(f"{kind} {name} {mode}: losses {losses}, gradients up to {largest:.1e} within {worst:.1e}", flush=True)
        accelerator.wait_for_everyone()
    optimizers.build, optimizers.set_rate = adamw, rate


def resume(accelerator, folder, kind):
    for mode in ("lora", "full"):
        if kind == "fsdp2":
            shard(accelerator)
        place = folder / mode
        whole = train("qwen-image", mode, accelerator, place, 4)[-1]
        if accelerator.is_main_process:
            newest = checkpoint.newest(place / "checkpoints")  # as if killed at step 3
            shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
        accelerator.wait_for_everyone()
        _, _, gradients, again = train("qwen-image", mode, accelerator, place, 4)
        assert len(gradients) == 3, "two steps, and the one of zeros that primes the optimiser"
        for key, tensors in whole.items():
            for name, tensor in tensors.items():
                assert torch.equal(sharding.local(again[key][name]), sharding.local(tensor)), (mode, key, name)
        accelerator.wait_for_everyone()
        print(f"{kind} {mode}: resumed bit-equal", flush=True)


def whole_run(folder, kind, mode):
    original = runs.start_accelerator
    if kind == "fsdp2":
        runs.start_accelerator = lambda *args: shard(original(*args))
        cut = loop.Job.shard

        def told(job, accelerator):
            cut(job, accelerator)
            print(f"{job.name}: {sum(isinstance(m, FSDPModule) for m in job.network.modules())} parts", flush=True)

        loop.Job.shard = told
    shown, digits.DigitsRun.shown = digits.DigitsRun.shown, lambda *args: shown(*args)[:2]  # all that is drawn takes long
    settings = dict(
        out=folder, base_steps=2, base_batch=8, steps=4, batch=2, accumulation=2, save_every=2, sample_every=2, log_every=1,
        sample_base=2, evaluate=0, tracker="none", optimizer="adamw", base_optimizer="adamw", checkpointing=True, ema=0.9,
    ) | (dict(rank=2) if mode == "lora" else {})  # fmt: skip
    runs.run(resolve(mode, settings))


def main():
    torch.set_num_threads(1)
    folder, task, kind, *rest = Path(sys.argv[1]), *sys.argv[2:]
    if task == "run":
        sys.exit(guarded(lambda: whole_run(folder, kind, *rest)))
    if task == "images":
        original = runs.start_accelerator
        runs.start_accelerator = lambda *args: shard(original(*args))
        sys.exit(command("full", rest))
    assert task == "train", task
    accelerator = start(kind)
    steps(accelerator, folder, kind)
    resume(accelerator, folder, kind)
    accelerator.end_training()


if __name__ == "__main__":
    main()
