"""Two processes on the CPU (gloo), DDP and FSDP2: one process's losses and gradients, exact resuming, a whole run."""

import signal
import socket
from pathlib import Path

import pytest
import torch

from twinflow.weights import load

from ..processes import Started

KINDS = ("ddp", "fsdp2")


def together(folder, *task, worker="worker.py", count=2) -> list[str]:
    """Run the worker in so many processes; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = dict(WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    processes = []
    for rank in map(str, range(count)):
        environment = common | dict(RANK=rank, LOCAL_RANK=rank)
        processes.append(Started(Path(__file__).with_name(worker), folder, *task, files=folder, environment=environment))
    try:
        outputs = ["".join(process.communicate(timeout=600)) for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
    assert [process.returncode for process in processes] == [0] * count, "\n".join(text[-3000:] for text in outputs)
    return outputs


@pytest.fixture(scope="module", params=KINDS)
def output(request, tmp_path_factory):
    return together(tmp_path_factory.mktemp(request.param), "train", request.param)[0]


def test_two_processes_equal_one_with_twice_the_batch(output):
    assert output.count("gradients up to") == 2


def test_resuming_is_exact(output):
    assert output.count("resumed bit-equal") == 2


@pytest.mark.parametrize(("kind", "mode"), [("ddp", "lora"), ("fsdp2", "full")])
def test_a_whole_run_writes_whole_weights(tmp_path, kind, mode):
    out = together(tmp_path, "run", kind, mode)[0]
    assert "wrote" in out
    if kind == "fsdp2":  # block by block, though the base before it was not
        assert "base: 1 parts" in out and int(out.partition("distil: ")[2].partition(" parts")[0]) > 2
    run = tmp_path / f"digits-{mode}"
    weights, base = load(run / f"digits-{mode}.safetensors"), load(run / "base.safetensors")
    if mode == "full":
        assert {name: t.shape for name, t in base.items()}.items() <= {name: t.shape for name, t in weights.items()}.items()
        moved = [name for name in base if not torch.equal(base[name], weights[name])]
        assert "transformer_blocks.0.attn.to_q.weight" in moved and len(moved) < len(base), "idle layers stay"
    else:
        assert any(name.endswith("lora_B.weight") and t.abs().max() > 0 for name, t in weights.items())
    assert all(t.isfinite().all() for t in weights.values())
    assert len(list((run / "samples").glob("step-*.png"))) == 3 and len((run / "metrics.csv").read_text().splitlines()) == 7
