"""One of the processes that share out a model as they load it; started by test_loading.py, with a folder and sources in it.

Prints bytes for each source, and for the first loaded whole: by how much the process grew at most, and the part that it keeps.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed
from worker import shard  # beside this file

from trainer.backbones import sources
from trainer.config.flat import from_flat
from trainer.runs import run, run_of
from trainer.tensors import sharding
from trainer.training import loop, optimizers
from trainer.weights.trainee import Trainee
from twinflow.objective import Objective

STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field)) * 1024


def trainee(settings, accelerator, sharded=True):
    kind = run_of(run.backbone(settings.model))
    model = kind.transformer(settings, accelerator)
    torch.manual_seed(0)
    made = Trainee(kind.backbone, model, settings)
    if sharded:
        groups = optimizers.groups_of(made.network, made.tensors, settings.training)
        loop.Job("x", made.network, made.tensors, groups, None, Objective(), settings.training).shard(accelerator)
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in made.tensors.values()}
    return made


def measured(*args) -> tuple[int, int]:
    distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = resident("VmRSS")
    made = trainee(*args)
    held = sum(sharding.local(p).nbytes for p in made.network.parameters())
    return resident("VmHWM") - before, held


def main(folder: Path, *names: str) -> None:
    torch.set_num_threads(1)
    flat = dict(mode="full", model="qwen-image", out=str(folder), tracker="none")
    settings = lambda name: from_flat(flat | dict(source=str(folder / name)))
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"  # as accelerate launch does
    accelerator = shard(run.start_accelerator(settings("small"), folder))

    made = trainee(settings("small"), accelerator)  # also warms up
    accelerator.state.distributed_type, kind = "NO", accelerator.state.distributed_type
    whole = trainee(settings("small"), accelerator, sharded=False)
    accelerator.state.distributed_type = kind
    real = dict(whole.network.named_parameters())
    for name, p in made.network.named_parameters():
        assert isinstance(p, sharding.DTensor) and p.dtype == torch.float32 or not p.requires_grad, name
        assert p.requires_grad == real[name].requires_grad and p.dtype == real[name].dtype, name
        assert torch.equal(sharding.local(p), sharding.local(sharding.share(real[name].detach(), p))), name
    assert not any(b.is_meta for b in made.network.buffers())
    del made, whole, real

    for name in names:
        print("late", name, *measured(settings(name), accelerator), flush=True)
    sources.late = nullcontext
    print("whole", names[0], *measured(settings(names[0]), accelerator), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
