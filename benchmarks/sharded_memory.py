"""The host memory that saving and resuming sharded training takes beyond what training holds, for models of growing size.

    python benchmarks/sharded_memory.py

Two processes (gloo, FSDP2, on the CPU) hold AdamW's state and an average of a stack of matrices.  Measured are the highest
resident memory of each process above what it was before, while the state is saved, the weights file is written and the state
is read again.  The slope is over the sizes: bytes of memory by bytes of the model's whole state, or of the weights file.
Exit code 1 where saving grows with the model, or the weights file takes more than a fifth of its size.  Linux only.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed, nn

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from row import Row, end  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402

from trainer.tensors import sharding  # noqa: E402
from trainer.tensors.deferred import Deferred, made, outlines  # noqa: E402
from trainer.training import checkpoint, disk  # noqa: E402
from twinflow.ema import EMA  # noqa: E402
from twinflow.weights import file_order, save_streamed  # noqa: E402

PROCESSES, WIDTH, BLOCKS = 2, 1024, (1, 4, 8)
LIMIT = 0.2
STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field)) * 1024


def growth(act) -> int:
    """Bytes by which this process was larger than now, at its largest, while act() ran."""
    distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = resident("VmRSS")
    act()
    return max(0, resident("VmHWM") - before)


def state(blocks: int) -> checkpoint.State:
    """After one step."""
    units = [nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(blocks)]
    network = nn.Sequential(*units)
    for unit in units:
        fully_shard(unit)
    fully_shard(network)
    tensors = dict(network.named_parameters())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for group in optimizer.param_groups:
        group["peak"] = 1e-3
    network(torch.ones(1, WIDTH)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return checkpoint.State(tensors, [optimizer], {"teacher": EMA(tensors.values(), 0.9)})


def worker(folder: Path) -> None:
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    main = distributed.get_rank() == 0

    def weights(of: checkpoint.State) -> None:
        tensors = {name: Deferred.of(tensor).to(torch.bfloat16) for name, tensor in of.tensors.items()}
        about = outlines(tensors)
        source = made(tensors[name] for name in file_order(about))
        if main:
            save_streamed(about, source, folder / "weights.safetensors")
        for _ in source:
            pass

    def measured(blocks: int) -> None:
        now = state(blocks)
        whole = disk.size_of(checkpoint.contents(now).values())
        grown = {
            "save": growth(lambda: checkpoint.write(now, folder / str(blocks), "x", 1, main=main)),
            "weights": growth(lambda: weights(now)),
            "resume": growth(lambda: checkpoint.restore(now, folder / str(blocks), "x")),
            "gathered": growth(lambda: sharding.gathered(checkpoint.contents(now), keep=main)),
        }
        told: list = [None] * PROCESSES
        distributed.all_gather_object(told, grown)
        if main:
            file = (folder / "weights.safetensors").stat().st_size
            print(whole, file, *(max(t[name] for t in told) for name in grown), flush=True)

    for blocks in (1, *BLOCKS):  # the first warms up
        measured(blocks)
    distributed.destroy_process_group()


def main() -> int:
    if len(sys.argv) > 1:
        worker(Path(sys.argv[1]))
        return 0
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        about = dict(WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
        free.close()
        started = [
            subprocess.Popen(
                [sys.executable, __file__, folder], env=os.environ | about | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, text=True,
            )
            for rank in range(PROCESSES)
        ]  # fmt: skip
        out = [process.communicate()[0] for process in started][0]
    rows = [[int(n) for n in line.split()] for line in out.splitlines()][1:]
    mib = lambda n: f"{n / 2**20:8.1f}"
    print("MiB: whole state, weights file; peak of a process beyond what it holds: save, weights file, resume; gathered whole")
    for row in rows:
        print(*map(mib, row))
    first, last = rows[0], rows[-1]
    slope = lambda column, by: (last[column] - first[column]) / (last[by] - first[by])
    slopes = dict(save=slope(2, 0), weights=slope(3, 1), resume=slope(4, 0), gathered=slope(5, 0))
    print(f"slope of what is gathered whole: {slopes['gathered']:.3f}")
    what = {"save": "saving, by state", "weights": "the weights file, by its size", "resume": "resuming, by state"}
    return end([Row(f"sharded memory: {text}", LIMIT, slopes[name]) for name, text in what.items()])


if __name__ == "__main__":
    sys.exit(main())
