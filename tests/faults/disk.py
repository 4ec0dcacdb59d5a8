"""Disks that fill up, or cannot be written to any more, while a run works on them: tmpfs, which root can mount."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from real_runs import Run, ended, goes_on


@contextmanager
def mounted(where: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A tmpfs of so many bytes; yields what mounts it again with other options."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", where], check=True)
    try:
        yield partial(again, where)
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def again(where: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", where], check=True, capture_output=True)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def filled(run: Run, wanted: Path, where: Path, free: int, when: str, files: Path) -> tuple[int, str, str]:
    """A disk that has `free` bytes left from the moment on when a path like `when` is there ("": from the start).

    Exit code, what was printed, and what is not as it should be once there is space again.
    """
    with mounted(where, 2**30 if when else max(free, 4096)) as remount:
        out = where / "out"
        out.mkdir()
        started = run.start(out, files)
        if when:
            wait(out, when, started)
            insist(lambda: remount(f"size={shutil.disk_usage(where).used + free}"))
        code, text = ended(started, 900)
        fault = said(code, text)
        remount(f"size={2**30}")
        return code, text, fault or goes_on(run, wanted, out, files)


def read_only(run: Run, wanted: Path, where: Path, when: str, files: Path) -> tuple[int, str, str]:
    """The same of a disk that cannot be written to from that moment on."""
    with mounted(where, 2**30) as remount:
        out = where / "out"
        out.mkdir()
        started = run.start(out, files)
        wait(out, when, started)
        insist(lambda: remount("ro"))  # which is refused while a file is open
        code, text = ended(started, 900)
        fault = said(code, text)
        remount("rw")
        return code, text, fault or goes_on(run, wanted, out, files)


def insist(act: Callable[[], None]) -> None:
    """Until it is not refused any more."""
    end = time.monotonic() + 60
    while True:
        try:
            return act()
        except subprocess.CalledProcessError:
            if time.monotonic() > end:
                raise
            time.sleep(0.002)


def wait(out: Path, pattern: str, started) -> None:
    end = time.monotonic() + 240
    while not list(out.glob(pattern)) and time.monotonic() < end and all(p.poll() is None for p in started):
        time.sleep(0.002)


def said(code: int, text: str) -> str:
    """What is wrong with how a run took it: no word of it, somebody else's exception, or more than a line at the end."""
    if "Traceback" in text:
        return "traceback"
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    if code and len(lines) != 1:
        return f"{len(lines)} lines of error"
    return ""
