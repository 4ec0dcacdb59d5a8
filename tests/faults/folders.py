"""What else may happen to a run's folder and to the clock: what was printed then, and what is not as it should be."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from disk import said, wait
from real_runs import Run, ended, goes_on, last, leftovers, same

from twinflow.atomic import write_atomically

NAMES = {  # of a run: whether it is taken
    "x" * 200: True, "ü" * 100: True, "猫" * 66: True, "a b  c": True, "-x": True, "--name": True, "a'b\"c$(d)": True,
    "x" * 201: False, "x" * 255: False, "a\nb": False, "a/b": False, "..": False, "": False, " a": False, "a\tb": False,
}  # fmt: skip


def folder_of(run: Run, out: Path) -> Path:
    return out / run.weights[-1].split("/")[0]


def removed(run: Run, wanted: Path, out: Path, files: Path, *, moved: bool = False) -> tuple[str, str]:
    """The run's folder, after the first checkpoint."""
    started, folder = run.start(out, files), folder_of(run, out)
    wait(out, f"{folder.name}/checkpoints/step-*", started)
    gone = folder.with_name("gone")
    os.replace(folder, gone)  # at once; what is removed file by file may come back in between
    if not moved:
        shutil.rmtree(gone, ignore_errors=True)
    code, text = ended(started, 900)
    fault = "" if code == 1 and "removed or moved away" in text else f"exit {code}"
    shutil.rmtree(gone, ignore_errors=True)
    fault = fault or said(code, text) or ("" if list(folder.glob("checkpoints/step-*")) else "nothing saved")
    return last(text), fault or goes_on(run, wanted, out, files)


def clock_backwards(run: Run, wanted: Path, out: Path, files: Path) -> tuple[str, str]:
    """By a year, in the middle of a run, which is then killed and gone on with at the right time."""
    code, text = run.run(out, files, dict(at=40, clock=365 * 86400))
    fault = f"exit {code}: {last(text)}" if code else "" if run.same(out, wanted) else "other weights"
    shutil.rmtree(out)
    out.mkdir()
    started = run.start(out, files, dict(at=40, clock=365 * 86400))
    wait(out, f"{folder_of(run, out).name}/checkpoints/step-*", started)
    for process in started:
        process.send_signal(9)
        process.communicate(timeout=60)
    return last(text), fault or goes_on(run, wanted, out, files)


def damaged_log(run: Run, wanted: Path, out: Path, files: Path) -> Iterator[tuple[str, str, str]]:
    """metrics.csv as a power cut may leave it: what, the line about it, and the fault."""
    folder = folder_of(run, out)
    log = folder / "metrics.csv"
    run.run(out, files)
    whole = log.read_bytes()
    damages = {
        "last line cut": whole[:-7],
        "last line in the middle of a number": whole[: whole.rfind(b",") - 1],
        "zeros at the end": whole + bytes(512),
        "no header": whole.partition(b"\n")[2],
        "not UTF-8": whole[:-20] + b"\xff\xfe\x80" + whole[-17:],
        "empty": b"",
        "a line of another program": whole + b"hello, world\n",
    }
    for what, data in damages.items():
        log.write_bytes(data)
        (folder / "metrics.json").unlink(missing_ok=True)
        code, text = run.run(out, files)
        line = next((line for line in text.splitlines() if "damaged" in line), "")
        fault = said(code, text) or (f"exit {code}: {last(text)}" if code else "" if run.same(out, wanted) else "other weights")
        yield what, line, fault or ("" if line or not data or what == "no header" else "nothing was said")


def leftover(run: Run, wanted: Path, out: Path, files: Path) -> tuple[str, str]:
    """Files that a kill left are gone after the next start; one that another process writes stays."""
    folder, cache = folder_of(run, out), out / "cache" / "sd3.5" / "latents" / "00"
    for place in (folder, folder / "checkpoints", folder / "samples" / "step-000003", cache):
        place.mkdir(parents=True, exist_ok=True)
        (place / f".{'x' * 40}.safetensors.abcdefgh.tmp").write_bytes(bytes(100))
    (folder / "checkpoints" / ".step-00000002.tmp").mkdir()
    (folder / "checkpoints" / ".step-00000002.tmp" / "__0_0.distcp").write_bytes(bytes(100))
    outcome: list[tuple[int, str]] = []

    def write(temporary: str) -> None:
        Path(temporary).write_bytes(b"x")
        outcome.append(run.run(out, files))

    write_atomically(cache / "other.safetensors", write)
    ((code, text),) = outcome
    (cache / "other.safetensors").unlink()
    left = [path for path in leftovers(out) if path.exists()]
    fault = f"exit {code}" if code else f"left {left[0]}" if left else ""
    return last(text), fault or ("" if run.same(out, wanted) else "other weights")


def two(run: Run, wanted: Path, out: Path, files: Path) -> tuple[str, str]:
    """Started twice at once: one is refused, the other is as if alone."""
    started = run.start(out, files)
    wait(out, f"{folder_of(run, out).name}/.lock", started)
    time.sleep(0.2)
    code, text = run.run(out, files)
    fault = "" if code == 2 and "is in use by" in text else f"exit {code}"
    first, more = ended(started, 900)
    fault = fault or said(code, text) or (f"the first: exit {first}: {last(more)}" if first else "")
    return last(text), fault or ("" if run.same(out, wanted) else "other weights")


def linked(run: Run, wanted: Path, out: Path, files: Path) -> tuple[str, str]:
    """Links in the places of files: what they lead to is not written to."""
    folder, precious = folder_of(run, out), out.parent / "precious"
    precious.write_text("precious")
    folder.mkdir()
    for name in ("metrics.csv", "summary.md", "loss.png", "base.safetensors", folder.name + ".safetensors"):
        (folder / name).symlink_to(precious)
    code, text = run.run(out, files)
    fault = f"exit {code}: {last(text)}" if code else ""
    fault = fault or ("" if precious.read_text() == "precious" else "written through a link")
    moved = {}  # of what is read, too: going on replaces the links
    for name in ("config.json", "metrics.json"):
        moved[name] = (folder / name).rename(out.parent / name), (out.parent / name).read_bytes()
        (folder / name).symlink_to(moved[name][0])
    code, text = longer(run).run(out, files)
    fault = fault or (f"gone on with: exit {code}: {last(text)}" if code else "")
    for name, (path, content) in moved.items():
        fault = fault or ("" if path.read_bytes() == content else f"{name} was written through a link")
        fault = fault or ("" if not (folder / name).is_symlink() else f"{name} is a link still")
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").symlink_to(precious)
    (folder / "metrics.json").unlink()  # or it is finished, and holds nothing
    code, text = longer(run).run(out, files)
    fault = fault or said(code, text) or ("" if code == 2 and "is a link" in text else f"a link as lock: exit {code}")
    return last(text), fault or ("" if precious.read_text() == "precious" else "the lock was written through a link")


def longer(run: Run) -> Run:
    """Two steps more of it."""
    return Run(run.name, lambda out: [*run.command(out), "--steps=8"], run.weights)


def named(run: Run, wanted: Path, root: Path, name: str, taken: bool) -> tuple[str, str]:
    """A run of this name, in a folder with another odd one: the fault, and the line about it."""
    out = root / "an odd\nfolder, ü 'x'"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    own = Run(run.name, lambda where: [*run.command(where), f"--name={name}"], (f"{name}/{name}.safetensors",))
    code, text = own.run(out, root)
    if not taken:
        return said(code, text) or ("" if code == 2 and "--name" in text else f"exit {code}"), last(text)
    found = out / name / f"{name}.safetensors"
    if code or not found.exists():
        return f"exit {code}", last(text)
    shutil.copy(wanted / run.weights[-1], out / "wanted.safetensors")
    return "" if same(found, out / "wanted.safetensors") else "other weights", last(text)
