"""One of two processes that keep a sharded state; started by test_sharded.py, with a folder.  The network is two matrices."""

import errno
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from trainer.tensors import sharding
from trainer.training import checkpoint, sharded
from twinflow.ema import EMA
from twinflow.weights import save


def state(shard: bool) -> checkpoint.State:
    """Of a network after two steps of AdamW, with an average; its sides are odd, so that parts are of unequal size."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    if shard:
        fully_shard(network)
    tensors = dict(network.named_parameters())
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group["peak"] = 0.1
    average = EMA(tensors.values(), 0.9)
    for _ in range(2):
        network(torch.ones(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    return checkpoint.State(tensors, [optimizer], {"teacher": average})


def blank(shard: bool) -> checkpoint.State:
    """The same network with other numbers, and nothing remembered."""
    made = state(shard)
    with torch.no_grad():
        for tensor in (*made.tensors.values(), *made.averages["teacher"].shadow):
            tensor.zero_()
    made.optimizers[0].state.clear()
    made.averages["teacher"].decay = 0.0
    return made


def whole(of: checkpoint.State) -> dict[str, torch.Tensor]:
    return {name: sharding.whole(tensor).clone() for name, tensor in checkpoint.contents(of).items()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def at(made: checkpoint.State, step: int) -> checkpoint.State:
    made.step = step
    return made


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank, said = distributed.get_rank(), []
    mine, files = state(True), folder / "checkpoints"
    keep = lambda step, keep=2: checkpoint.write(at(mine, step), files, "x", keep, main=rank == 0, say=said.append)
    names = lambda: [path.name for path in checkpoint.list_all(files)]

    for step in (1, 2, 3):
        assert keep(step) == files / f"step-0000000{step}"
        distributed.barrier()
    assert names() == ["step-00000003", "step-00000002"] and said == []
    parts = sorted(path.name for path in (files / "step-00000003").iterdir())
    assert parts == [".metadata", "__0_0.distcp", "__1_0.distcp", "about.json"], parts

    other = blank(True)
    assert not equal(whole(other), whole(mine))
    assert checkpoint.restore(other, files, "x", said.append) == files / "step-00000003" and other.step == 3
    assert equal(whole(other), whole(mine)) and said == [] and other.averages["teacher"].decay == mine.averages["teacher"].decay

    class Full(sharded.Writer):  # the disk of one process
        def write_data(self, plan, planner):
            if rank == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write_data(plan, planner)

    real, sharded.Writer = sharded.Writer, Full
    assert keep(4) is None
    sharded.Writer = real
    assert len(said) == (rank == 0) and all("No space left on device, in process 1" in line for line in said), said
    distributed.barrier()
    assert names() == ["step-00000003", "step-00000002"] and not list(files.glob(".*"))
    distributed.barrier()  # or the first would write already while the other looks
    assert keep(3) and keep(4), "over what is there, and after a failure"
    distributed.barrier()

    if rank == 0:  # the newest is cut off, and of one after it only a part was written when the power went
        part = files / "step-00000004" / "__1_0.distcp"
        part.write_bytes(part.read_bytes()[:-1])
        (files / ".step-00000005.tmp").mkdir()
        (files / ".step-00000005.tmp" / "__0_0.distcp").write_bytes(b"half")
    distributed.barrier()
    said.clear()
    other = blank(True)
    assert checkpoint.restore(other, files, "x", said.append) == files / "step-00000003"
    assert equal(whole(other), whole(mine))
    assert len(said) == 1 and "step-00000004: is not a usable checkpoint" in said[0] and "cut off" in said[0], said
    assert keep(5)
    distributed.barrier()
    assert names()[0] == "step-00000005" and not list(files.glob(".*"))

    values = whole(mine)
    if rank == 0:  # as one process would have saved
        save(values, folder / "wanted.safetensors")
    other, said = blank(True), []
    assert checkpoint.restore(other, folder / "single", "x", said.append), "one process' file"
    assert equal(whole(other), whole(state(True))) and any("is of 1 process, and 2 train now" in line for line in said), said
    distributed.destroy_process_group()
    print("done", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
