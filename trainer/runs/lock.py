"""One process at a time in a run's folder; the system gives the lock back however the process ends."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from twinflow.plain_json import loads

from .. import TrainerError

PLACE = 2**30  # of the byte that Windows locks: what is locked cannot be read there


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Nobody else holds the folder meanwhile.  wait: until the other has finished, else TrainerError, which names it.

    Of processes that train together the first holds it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with open(folder / ".lock", "a+") as file:
        if not taken(file):
            if not wait:
                raise TrainerError(f"{folder} is in use by {holder(file)}; wait for it, stop it, or use another --name")
            print(f"waiting for {holder(file)}, which works in {folder}")
            while not taken(file):
                time.sleep(1)
        file.truncate(0)
        file.write(json.dumps(dict(process=os.getpid(), host=socket.gethostname(), since=time.strftime("%Y-%m-%d %H:%M"))))
        file.flush()
        yield


def taken(file: IO[str]) -> bool:
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


def holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        about = loads(file.read())
        return f"process {about['process']} on {about['host']} (since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
