"""SIGKILL at chosen and at random moments; each run is gone on with to its end."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from runs import Run

MOMENTS = {  # name -> what the path of the write holds
    "cache": ("/latents/", "/captions/", "digests.json", "/cache/digits"),
    "preview": ("/samples/",),
    "checkpoint": ("/checkpoints/",),
    "log": ("metrics.csv",),
    "final write": ("-lora.safetensors", "-full.safetensors", "/base.safetensors", "metrics.json", "summary.md", "grid.png"),
}

Kill = tuple[int, float, int]  # the number of a write, seconds after it, which process


def moment(path: str) -> str:
    return next((name for name, parts in MOMENTS.items() if any(part in path for part in parts)), "other")


def writes(log: Path) -> list[list[str]]:
    """What a run wrote, in its order: event and paths."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def chosen(log: Path, count: int, seed: int) -> list[tuple[str, int]]:
    """Moments and the numbers of writes, of every kind as many."""
    drawn, kinds = random.Random(seed), dict[str, list[int]]()
    for number, (_, *paths) in enumerate(writes(log), 1):
        kinds.setdefault(moment(paths[-1]), []).append(number)
    kinds.pop("other", None)
    names = list(kinds)
    return [(names[k % len(names)], drawn.choice(kinds[names[k % len(names)]])) for k in range(count)]


def leftovers(out: Path) -> list[Path]:
    """What no run may leave behind it."""
    return [path for path in out.rglob(".*") if path.name != ".lock"]


def killed(run: Run, out: Path, at: int, delay: float, process: int) -> bool:
    """Kill one process at a write, and then the others; whether that came before the end."""
    faults = [dict(at=at, do="kill", delay=delay) if k == process else {} for k in range(run.processes)]
    started = run.start(out, out.parent, *faults)
    end = time.monotonic() + 300
    while time.monotonic() < end and all(p.poll() is None for p in started):
        time.sleep(0.01)
    codes = [p.poll() for p in started]
    for p in started:  # the others too, as whatever started them does
        p.send_signal(9)
        p.communicate(timeout=30)
    return any(codes)


def trial(run: Run, wanted: Path, out: Path, kill: Kill) -> str:
    """Killed once, then gone on with; what is not as it should be."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if not killed(run, out, *kill):
        return "it was not killed"
    code, text = run.run(out, out.parent)
    if code:
        return f"exit {code}: {text.strip().splitlines()[-1] if text.strip() else ''}"
    if not run.same(out, wanted):
        return "other weights"
    return f"left {left[0].name}" if (left := leftovers(out)) else ""


def trials(run: Run, wanted: Path, count: int, chance: int, seed: int) -> Iterator[tuple[str, Kill]]:
    """`count` chosen moments, then `chance` random ones: what, and the kill."""
    drawn, log = random.Random(seed), wanted.with_suffix(".log")
    for name, at in chosen(log, count, seed):
        yield name, (at, drawn.choice([0, 0, drawn.uniform(0, 0.01)]), drawn.randrange(run.processes))
    for _ in range(chance):  # also between two writes, while it computes and reads
        yield "any time", (drawn.randrange(1, 9 * len(writes(log)) // 10), drawn.uniform(0.01, 0.3), 0)
