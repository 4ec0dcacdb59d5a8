"""One process at a time in a run's folder; the system gives the lock back however the process ends."""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from twinflow.plain_json import loads

from .. import Lost, TrainerError
from ..console import AGAIN

PLACE = 2**30  # of the byte that Windows locks: what is locked cannot be read there


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[Callable[[], bool]]:
    """Nobody else holds the folder meanwhile; yields what says whether the folder was removed or moved away since.

    wait: until the other has finished, else TrainerError, which names it; it is raised too for what fails since the folder
    is gone.  Of processes that train together the first holds it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda: False
        return
    with opened(folder / ".lock") as file:
        lost = lambda: is_lost(file, folder / ".lock")
        if not taken(file):
            if not wait:
                raise TrainerError(f"{folder} is in use by {holder(file)}; wait for it, stop it, or use another --name")
            print(f"waiting for {holder(file)}, which works in {folder}")
            while not taken(file):
                time.sleep(1)
        about = dict(process=os.getpid(), host=socket.gethostname(), since=time.strftime("%Y-%m-%d %H:%M"))
        with suppress(OSError):  # a full disk: it is held all the same
            file.truncate(0)
            file.write(json.dumps(about).encode())
        try:
            yield lost
        except OSError as error:
            if not lost():
                raise
            raise Lost(f"{folder} was removed or moved away while it was in use ({error.strerror or error}); {AGAIN}") from None


def opened(path: Path) -> IO[bytes]:
    """Raises TrainerError where it is a link, for what that leads to would be written."""
    try:
        follow = getattr(os, "O_NOFOLLOW", 0)
        return open(path, "ab+", buffering=0, opener=lambda name, flags: os.open(name, flags | follow, 0o644))
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise TrainerError(f"{path} is a link; expected a file of ours: delete it") from None


def is_lost(file: IO[bytes], path: Path) -> bool:
    """Whether the path leads to no file any more.  Raises Lost where it is another's, whose folder must not be written to."""
    try:
        there, own = os.stat(path), os.fstat(file.fileno())
    except OSError:
        return True
    if (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
        raise Lost(f"{path.parent} was removed or moved away, and another process works there now; this one has stopped")
    return False


def taken(file: IO[bytes]) -> bool:
    """Whether the lock is ours now; a disk that knows no locks has none to refuse."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(PLACE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def holder(file: IO[bytes]) -> str:
    try:
        file.seek(0)
        about = loads(file.read().decode())
        return f"process {about['process']} on {about['host']} (since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
