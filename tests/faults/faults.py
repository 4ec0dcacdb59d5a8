"""Everything that may happen to a run, done to real ones:  python tests/faults/faults.py --kills 50

Prints a line a trial with what was printed last, then a table; exits 1 where a run ended in other weights, in somebody else's
exception, in more than a line, or left something behind.  Disks that fill up are mounted, which takes root.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent)]

import disk  # noqa: E402
import folders  # noqa: E402
import kills  # noqa: E402
import real_runs as runs  # noqa: E402


class Trial(NamedTuple):
    """what: of which kind; detail: this one; line: what was printed last; fault: what is not as it should be."""

    what: str
    detail: str
    line: str
    fault: str


class Bench:
    """The runs that faults are brought about in, each finished once without any."""

    def __init__(self, root: Path):
        self.root = root
        self.runs = {run.name: run for run in (runs.images(root), runs.digits("lora"), runs.digits("full"), runs.sharded())}

    def wanted(self, run: runs.Run) -> Path:
        """The folder of the run that nothing happened to."""
        folder = self.root / f"{run.name}-whole"
        if not folder.exists():
            folder.mkdir()
            code, text = run.run(folder, self.root, *[dict(log=str(kills.log_of(folder, k))) for k in range(run.processes)])
            assert code == 0, text
        return folder

    def out(self, name: str) -> Path:
        path = self.root / name
        path.mkdir()
        return path


def killed(bench: Bench, count: int, seed: int, kinds: list[str]) -> Iterator[Trial]:
    """So many kills: of runs with caches and previews, of sharded ones, and of both on digits."""
    whole = sum(SHARES[name] for name in kinds)
    for name in kinds:
        run, of = bench.runs[name], round(count * SHARES[name] / whole)
        wanted = bench.wanted(run)
        for what, kill in kills.trials(run, wanted, of - of // 3, of // 3, seed):
            fault = kills.trial(run, wanted, bench.root / f"{name}-killed", kill)
            yield Trial(f"SIGKILL, {what}", f"{name}, write {kill[0]} + {kill[1] * 1000:.0f} ms", "", fault)


def full(bench: Bench) -> Iterator[Trial]:
    run = bench.runs["images"]
    wanted = bench.wanted(run)
    size, where = disk.used(wanted), bench.root / "disk"
    for share in (0.02, 0.3, 0.6, 0.9):
        code, text, fault = disk.filled(run, wanted, where, int(size * share), "", bench.root)
        yield Trial("disk full", f"tmpfs of {share:.0%} of what the run takes: exit {code}", runs.last(text), fault)
    moments = {
        "cache/*/latents/*/*": 0, "cache/*/captions/*/*": 4096, "*/metrics.csv": 4096, "*/checkpoints/step-*": 16384,
        "*/samples/step-000003.png": 4096, "*/checkpoints/step-00000006*": 0, "*/loss.png": 0,
    }  # fmt: skip
    for when, free in moments.items():
        code, text, fault = disk.filled(run, wanted, where, free, when, bench.root)
        yield Trial("disk full", f"{free} bytes left once {when} is there: exit {code}", runs.last(text), fault)
    sharded = bench.runs["digits-sharded"]
    code, text, fault = disk.filled(sharded, bench.wanted(sharded), where, 8192, "*/checkpoints/.step-*", bench.root)
    yield Trial("disk full", f"8192 bytes left during a sharded save: exit {code}", runs.last(text), fault)
    for when in ("cache/*/captions/*/*", "*/checkpoints/step-*", "*/summary.md"):
        code, text, fault = disk.read_only(run, wanted, where, when, bench.root)
        yield Trial("permission lost", f"read-only once {when} is there: exit {code}", runs.last(text), fault)


def happened(bench: Bench) -> Iterator[Trial]:
    digits, images = bench.runs["digits-lora"], bench.runs["images"]
    trials: dict[str, tuple[runs.Run, Callable[..., tuple[str, str]]]] = {
        "folder removed": (digits, folders.removed),
        "folder moved": (images, lambda *given: folders.removed(*given, moved=True)),
        "clock backwards": (images, folders.clock_backwards),
        "temporary files left": (images, folders.leftover),
        "two runs at once": (digits, folders.two),
        "links": (digits, folders.linked),
    }
    for what, (run, act) in trials.items():
        line, fault = act(run, bench.wanted(run), bench.out(what.replace(" ", "-")), bench.root)
        yield Trial(what, run.name, line, fault)
    for what, line, fault in folders.damaged_log(digits, bench.wanted(digits), bench.out("log"), bench.root):
        yield Trial("metrics.csv damaged", what, line, fault)
    for name, taken in folders.NAMES.items():
        fault, line = folders.named(digits, bench.wanted(digits), bench.root, name, taken)
        shown = ascii(name if len(name) < 30 else f"{name[:3]}... ({len(os.fsencode(name))} bytes)")
        yield Trial("odd names", shown, line, fault)


PARTS: dict[str, Callable[..., Iterator[Trial]]] = {"kills": killed, "disk": full, "folder": happened}
SHARES = {"images": 0.4, "digits-sharded": 0.24, "digits-lora": 0.18, "digits-full": 0.18}  # of the kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="[50]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    parser.add_argument("--runs", nargs="+", choices=SHARES, default=[*SHARES], help="kinds that are killed [all]")
    parser.add_argument("--only", choices=PARTS, help="one part")
    given = parser.parse_args()
    table: dict[str, list[Trial]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        bench = Bench(Path(root))
        for part in [given.only] if given.only else PARTS:
            made = killed(bench, given.kills, given.seed, given.runs) if part == "kills" else PARTS[part](bench)
            for trial in made:
                table.setdefault(trial.what, []).append(trial)
                print(f"{trial.what}: {trial.detail}: {trial.fault or 'as it should be'}   {trial.line[:200]}", flush=True)
    print("\n| what | trials | not as it should be |\n|---|---|---|")
    for what, trials in table.items():
        bad = [trial.fault for trial in trials if trial.fault]
        print(f"| {what} | {len(trials)} | {len(bad)}{': ' + '; '.join(dict.fromkeys(bad)) if bad else ''} |")
    sys.exit(any(trial.fault for trials in table.values() for trial in trials))


if __name__ == "__main__":
    main()
