"""Runs of the real trainer, as small as they come, in which faults are brought about; each ends in the same weights."""

import json
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(TESTS), str(TESTS.parent)]

from processes import Started  # noqa: E402

from twinflow.weights import load  # noqa: E402

COMMON = ["--threads", "1", "--save-every", "2", "--log-every", "1", "--warmup", "0", "--tracker", "none", "--keep", "2"]
DIGITS = ["--model", "digits", "--base-steps", "4", "--base-batch", "8", "--steps", "6", "--batch", "8", "--sample-every", "3",
          "--sample-base", "2", "--evaluate", "0", *COMMON]  # fmt: skip
IMAGES = ["--model", "sd3.5", "--rank", "2", "--resolution", "64", "--steps", "6", "--sample-every", "3", "--sample-base", "2",
          "--encode-batch", "1", "--dtype", "fp32", *COMMON]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A kind of run.  command(out): what is run, and its arguments.  processes: that train together.  weights: its end."""

    name: str
    command: Callable[[Path], list[Any]]
    weights: tuple[str, ...]
    processes: int = 1

    def start(self, out: Path, files: Path, *faults: dict[str, Any], uid: int = 0) -> list[Started]:
        """faults: of each process (see child)."""
        module, *arguments = map(str, self.command(out))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        together = dict(WORLD_SIZE=str(self.processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        together |= dict(ACCELERATE_USE_CPU="true")
        started = []
        for rank in range(self.processes):
            environment = together | dict(RANK=str(rank), LOCAL_RANK=str(rank)) if self.processes > 1 else {}
            fault = faults[rank] if rank < len(faults) else {}
            given = [json.dumps(dict(under=str(out)) | fault), module, *arguments]
            started.append(Started(Path(__file__).with_name("child.py"), *given, files=files, environment=environment))
        return started

    def run(self, out: Path, files: Path, *faults: dict[str, Any], seconds: float = 900) -> tuple[int, str]:
        """Exit code and what was printed: of the first process that failed, else of the first; the others are ended with it."""
        return ended(self.start(out, files, *faults), seconds)

    def same(self, out: Path, wanted: Path) -> bool:
        """Whether it ended in weights that are bit-equal."""
        return all(same(out / name, wanted / name) for name in self.weights)


def same(a: Path, b: Path) -> bool:
    ours, theirs = load(a), load(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def ended(started: list[Started], seconds: float) -> tuple[int, str]:
    codes, texts = [], []
    for process in started:
        others = any(codes)
        try:
            texts.append("".join(process.communicate(timeout=5 if others else seconds)))
        except Exception:  # it waits for one that is gone, as torchrun would see
            process.send_signal(signal.SIGKILL)
            texts.append("".join(process.communicate(timeout=30)))
        codes.append(process.returncode or 0)
    worst = next((k for k, code in enumerate(codes) if code), 0)
    return codes[worst], texts[worst]


def leftovers(out: Path) -> list[Path]:
    """What no run may leave behind it."""
    return [path for path in out.rglob(".*") if path.name not in (".lock", ".metadata")]  # of torch's checkpoints


def last(text: str) -> str:
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")


def goes_on(run: Run, wanted: Path, out: Path, files: Path) -> str:
    """What is wrong after the same command again."""
    code, text = run.run(out, files)
    if code:
        return f"afterwards exit {code}: {last(text)}"
    if not run.same(out, wanted):
        return "other weights"
    return f"left {left[0].name}" if (left := leftovers(out)) else ""


def digits(mode: str) -> Run:
    name = f"digits-{mode}"
    weights = f"{name}/base.safetensors", f"{name}/{name}.safetensors"
    rank = ["--rank", "2"] if mode == "lora" else []
    return Run(name, lambda out: [f"trainer.{mode}", *DIGITS, *rank, "--out", out], weights)


def sharded() -> Run:
    worker = TESTS / "scale" / "worker.py"
    return Run("digits-sharded", lambda out: [worker, out, "run", "fsdp2", "full"], ("digits-full/digits-full.safetensors",), 2)


def images(folder: Path) -> Run:
    """A LoRA of a tiny model of a real class, whose pictures and captions are encoded; both are made in the folder."""
    from backbones.conftest import FAMILIES, GOLDENS, made, published

    backbone, file = FAMILIES["sd3.5"]
    model, photos = folder / "model", folder / "photos"
    if not model.exists():
        published(made(backbone, json.loads((GOLDENS / f"{file}.json").read_text())["config"]), model)
        photos.mkdir()
        drawn = np.random.default_rng(0)
        for i in range(4):
            Image.fromarray(drawn.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photos / f"{i}.png")
            (photos / f"{i}.txt").write_text(f"a cat {i}")
    given = [*IMAGES, "--source", model, "--data", photos]
    return Run("images", lambda out: ["trainer.lora", *given, "--out", out], ("sd3.5-lora/sd3.5-lora.safetensors",))
