"""Files that are whole or not there: written beside their place, flushed to disk, and put into it in one step.

All that is written goes through here, and nothing through a symbolic link: a link in the place of a file is replaced.
"""

import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENDING = ".tmp"
LONGEST = 50  # characters of a name, each of at most four bytes, that a temporary one repeats: disks take 255 bytes


def write_atomically(path: str | os.PathLike, write: Callable[[str], object]) -> None:
    """Call write(temporary file), flush that to disk and put it in place of path: the old file or the new, never half.

    Raises OSError, which names path.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:LONGEST]}.", suffix=ENDING)
        with open(handle, "rb") as held:
            with suppress(OSError):  # of a disk that knows no locks
                is_ours(handle)
            write(temporary)
            os.chmod(temporary, 0o644)
            with open(temporary, "r+b") as file:  # Windows flushes only what may be written
                os.fsync(file.fileno())
            if os.name != "posix":  # Windows renames nothing that is open
                held.close()
            os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and (temporary is None or error.filename in (None, temporary)):
            error.filename, error.filename2 = str(path), None  # what was to be written
        raise
    flush_folder(path.parent)


def write_text(text: str, path: str | os.PathLike) -> None:
    """In UTF-8, atomically."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, "utf-8"))


def write_json(value, path: str | os.PathLike) -> None:
    """value as indented JSON, atomically."""
    write_text(json.dumps(value, indent=2) + "\n", path)


def append(text: str, path: str | os.PathLike) -> None:
    """Put text behind what the file holds, all of it or nothing.  Raises OSError, also where path is a link."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "ab", buffering=0) as file:
        before = os.fstat(handle).st_size
        try:
            data = memoryview(text.encode())
            while data:
                data = data[file.write(data) or 0 :]
        except OSError:
            os.ftruncate(handle, before)
            raise


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to disk, or a power cut could still undo a rename."""
    if os.name == "posix":  # Windows cannot open a folder
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which is at path only when it is whole.  Raises OSError."""
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:LONGEST]}.", suffix=ENDING))
    handle = os.open(temporary, os.O_RDONLY) if os.name == "posix" else None
    try:
        with suppress(OSError):
            is_ours(handle) if handle is not None else None
        yield temporary
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if handle is not None:
            os.close(handle)
    flush_folder(path.parent)


def remove_leftovers(folder: Path, name: str = "*") -> int:
    """Delete what killed processes left half written in the folder (`name`: a glob, also through folders); how many.

    What a living process writes stays: it holds a lock on it.
    """
    count = 0
    for path in folder.glob(f"{name}{ENDING}"):
        if path.name.startswith(".") and not path.is_symlink():
            try:
                handle = os.open(path, os.O_RDONLY)
                try:
                    ours = is_ours(handle)
                finally:
                    os.close(handle)
                if ours:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    count += 1
            except OSError:  # another process was faster, or writes it, where that is enough to keep it
                pass
    return count


def remove_leftovers_of(path: Path) -> int:
    """The same of this file or folder alone, in a folder that is not ours."""
    return remove_leftovers(path.parent, f".{glob.escape(path.name[:LONGEST])}.*")


def is_ours(handle: int) -> bool:
    """Lock an open file until it is closed; whether no other process holds it.  Windows deletes no open file anyway."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
