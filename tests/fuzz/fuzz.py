"""Mutated inputs for every reader:  python tests/fuzz/fuzz.py --inputs 100000

Prints what was neither read nor refused as it should be: by an error of ours, short, on one line, soon, in little memory.
"""

import argparse
import random
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import mutations  # noqa: E402
from readers import OURS, READERS, Reader  # noqa: E402

from trainer import TELLS, TrainerError  # noqa: E402

LONGEST, SLOWEST = 300, 2.0  # characters of an error (the trainer's: TELLS), seconds of an input
MOST = 4, 2**22  # of memory: times the file's size, and bytes that any reader may take besides


def fault(reader: Reader, path: Path, size: int) -> str:
    """What is wrong with how the reader takes this file; "" where nothing is."""
    began, told = time.perf_counter(), ""
    tracemalloc.start()
    try:
        reader.read(path)
    except OURS as error:
        text = str(error)
        if type(error).__module__.partition(".")[0] not in ("trainer", "twinflow") and type(error) is not ValueError:
            told = f"foreign {type(error).__name__}: {text[:200]}"
        elif len(text) > (TELLS if isinstance(error, TrainerError) else LONGEST) or not all(c.isprintable() for c in text):
            told = f"error of {len(text)} characters, or more than a line: {text[:200]!r}"
    except Exception as error:
        told = f"foreign {type(error).__name__}: {str(error)[:200]}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if (seconds := time.perf_counter() - began) > SLOWEST:
        told += f" hang of {seconds:.1f} s"
    return told + (f" {peak / 2**20:.0f} MiB of memory" if peak > MOST[0] * size + MOST[1] else "")


def run(name: str, inputs: int, folder: Path, seed: int = 0) -> tuple[Counter[str], dict[str, bytes]]:
    """How often each fault was met among so many inputs, and the shortest input that shows it."""
    reader, rng = READERS[name], random.Random(f"{name} {seed}")
    path = folder / f"input{reader.suffix}"
    reader.sound(path)
    sound, found, smallest = path.read_bytes(), Counter(), {}
    reader.read(path)  # what it imports takes seconds, once
    assert fault(reader, path, len(sound)) == "", name
    for _ in range(inputs):
        data = (reader.mutate if rng.random() < 0.7 else mutations.bytewise)(sound, rng)
        path.write_bytes(data)
        if told := fault(reader, path, len(data)):
            kind = told[:60]
            found[kind] += 1
            smallest[kind] = min(smallest.get(kind, data), data, key=len)
    return found, smallest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10000, metavar="N", help="of all readers together [10000]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    parser.add_argument("--only", default="", metavar="NAME", help="one reader")
    parser.add_argument("--keep", type=Path, metavar="PATH", help="folder for the smallest input of each fault")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    names, bad = [given.only] if given.only else list(READERS), 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            found, smallest = run(name, given.inputs // len(names), Path(folder), given.seed)
        bad += sum(found.values())
        print(
            f"{name}: {given.inputs // len(names)} inputs in {time.perf_counter() - began:.0f} s, {sum(found.values())} faults"
        )
        for kind, times in found.most_common():
            print(f"  {times:6d}  {kind}   ({len(smallest[kind])} bytes: {smallest[kind][:70]!r})")
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                where = given.keep / f"{name} {kind}".replace(" ", "_").replace("/", "_")
                where.with_suffix(READERS[name].suffix).write_bytes(smallest[kind])
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
