"""Mutated inputs for every reader:  python tests/fuzz/fuzz.py --inputs 100000

With --comfyui PATH for those of the nodes, in a real ComfyUI.
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
from reader import Reader  # noqa: E402

OURS = "TrainerError", "WeightsError", "UnknownType", "Broken", "ValueError"  # the names of errors that a reader may end in
LONGEST, SLOWEST = 300, 2.0  # characters of an error, seconds of an input
MOST = 4, 2**22  # of memory: times the file's size, and bytes that any reader may take besides


def fault(reader: Reader, path: Path, size: int) -> str:
    """What is wrong with how the reader takes this file; "" where nothing is."""
    began, told = time.process_time(), ""  # of this process alone, however busy the computer is
    tracemalloc.start()
    try:
        reader.read(path)
    except Exception as error:
        text, name = str(error), type(error).__name__
        if name not in OURS:
            told = f"foreign {name}: {text[:200]}"
        elif len(text) > LONGEST or not all(c.isprintable() for c in text):
            told = f"error of {len(text)} characters, or more than a line: {text[:200]!r}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if (seconds := time.process_time() - began) > SLOWEST:
        told += f" hang of {seconds:.1f} s"
    return told + (f" {peak / 2**20:.0f} MiB of memory" if peak > MOST[0] * size + MOST[1] else "")


def run(name: str, reader: Reader, inputs: int, folder: Path, seed: int = 0) -> tuple[Counter[str], dict[str, bytes]]:
    """How often each fault was met among so many inputs, and the shortest input that shows it."""
    rng = random.Random(f"{name} {seed}")
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


def given_to(reader: Reader, files: list[Path], folder: Path) -> list[str]:
    """What is wrong with how the reader takes files that were not made for it."""
    path, told = folder / f"input{reader.suffix}", []
    reader.sound(path)
    reader.read(path)
    for file in files:
        path.write_bytes(file.read_bytes())
        if found := fault(reader, path, file.stat().st_size):
            told.append(f"{file.name}: {found}")
    return told


def of_trainer() -> dict[str, Reader]:
    from readers import READERS

    return READERS


def of_nodes(comfyui: Path) -> dict[str, Reader]:
    from node_readers import readers, started

    return readers(started(comfyui, Path(tempfile.mkdtemp())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10000, metavar="N", help="of all readers together [10000]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
    parser.add_argument("--only", default="", metavar="NAME", help="one reader")
    parser.add_argument("--keep", type=Path, metavar="PATH", help="folder for the smallest input of each fault")
    parser.add_argument("--files", type=Path, metavar="PATH", help="folder of files to give to every reader, and no others")
    parser.add_argument("--comfyui", type=Path, metavar="PATH", help="readers of the nodes, in this ComfyUI and by its Python")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    readers = of_nodes(given.comfyui) if given.comfyui else of_trainer()
    names, bad = [given.only] if given.only else list(readers), 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            if given.files:
                told = given_to(readers[name], sorted(f for f in given.files.iterdir() if f.is_file()), Path(folder))
                bad += len(told)
                print(f"{name}: {len(told)} faults", *told, sep="\n  ")
                continue
            found, smallest = run(name, readers[name], given.inputs // len(names), Path(folder), given.seed)
        bad += sum(found.values())
        print(
            f"{name}: {given.inputs // len(names)} inputs in {time.perf_counter() - began:.0f} s, {sum(found.values())} faults"
        )
        for kind, times in found.most_common():
            print(f"  {times:6d}  {kind}   ({len(smallest[kind])} bytes: {smallest[kind][:70]!r})")
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                where = given.keep / f"{name} {kind}".replace(" ", "_").replace("/", "_")
                where.with_suffix(readers[name].suffix).write_bytes(smallest[kind])
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
