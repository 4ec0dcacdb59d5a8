"""Saving where the disk may be full: a save that fails costs a line, never the run."""

import errno
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of a file of these tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def short(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def room(path: Path, size: int, say: Callable[[str], object]) -> None:
    """Make path's folder, and say where there is not space for two such files.  Raises OSError where there is not for one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < 2 * size:
        say(f"the disk is nearly full: {short(free)} are free for {path}, which takes {short(size)}")
    if free < size:
        raise OSError("the disk is full")


def attempt(path: Path, size: int, write: Callable[[], object], say: Callable[[str], object], *, looked: bool = False) -> bool:
    """write(), which puts about `size` bytes into path; False, and a line to `say`, where that fails.

    Looks for room() before; looked: write() does so itself.
    """
    try:
        if not looked:
            room(path, size, say)
        write()
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        full = getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT)
        fix = "free some space there, or let --keep and --keep-weights be smaller" if full else "let that folder be writable"
        say(f"{path} could not be saved ({why}): it takes {short(size)}; {fix}; what was saved before is still there")
        return False
    return True
