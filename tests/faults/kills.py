"""SIGKILL at chosen and at random moments; each run is gone on with to its end."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from real_runs import Run, goes_on

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


def chosen(log: Path, name: str, drawn: random.Random) -> int:
    """The number of a write of this moment, of any where the run has none such."""
    paths = [paths[-1] for _, *paths in writes(log)]
    own = [number for number, path in enumerate(paths, 1) if moment(path) == name]
    return drawn.choice(own or range(1, len(paths)))


def killed(run: Run, out: Path, at: int, delay: float, process: int) -> bool:
    """Kill one process at a write, and then the others; whether that came before the end."""
    faults = [dict(at=at, do="kill", delay=delay) if k == process else {} for k in range(run.processes)]
    started = run.start(out, out.parent, *faults)
    end = time.monotonic() + 900
    while time.monotonic() < end and all(p.poll() is None for p in started):
        time.sleep(0.01)
    codes = [p.poll() for p in started]
    for p in started:  # the others too, as whatever started them does
        p.send_signal(9)
        p.communicate(timeout=30)
    return any(code != 0 for code in codes)


def trial(run: Run, wanted: Path, out: Path, kill: Kill) -> str:
    """Killed once, then gone on with; what is not as it should be."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if not killed(run, out, *kill):
        return "it was not killed"
    return goes_on(run, wanted, out, out.parent)


def log_of(wanted: Path, process: int) -> Path:
    """What a process of the run that nothing happened to has written."""
    return wanted.with_suffix(f".{process}.log")


def trials(run: Run, wanted: Path, count: int, chance: int, seed: int) -> Iterator[tuple[str, Kill]]:
    """`count` chosen moments, of every kind as many, then `chance` random ones: what, and the kill."""
    drawn = random.Random(seed)
    found = {moment(paths[-1]) for _, *paths in writes(log_of(wanted, 0))}
    names = [name for name in MOMENTS if name in found]
    for k in range(count + chance):
        process = drawn.randrange(run.processes)
        log = log_of(wanted, process)
        if k < count:
            name = names[k % len(names)]
            yield name, (chosen(log, name, drawn), drawn.choice([0, 0, drawn.uniform(0, 0.01)]), process)
        else:  # also between two writes, while it computes and reads
            yield "any time", (drawn.randrange(1, max(2, 9 * len(writes(log)) // 10)), drawn.uniform(0.01, 0.3), process)
