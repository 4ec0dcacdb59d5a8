"""A command in which a fault is brought about:  child.py FAULT MODULE ARGUMENT...

FAULT is JSON.  under: the folder whose writes are counted: each opening of a file to be written, each new folder, rename,
link and removal.  holds: what their paths hold.  log: a file that gets a line for each.  at: the number of a write, from 1
on, or of all from there on where `on` is set.  do: what happens there: "kill", or an error's name such as "ENOSPC".
delay: seconds after it.  clock: seconds by which the clock is set backwards at that write.
"""

import errno
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# places of their paths
WRITES = {
    "os.rename": (0, 1),
    "os.link": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
}
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Fault:
    def __init__(
        self, at: int = 0, do: str = "", *, under: str, holds: str = "", log: str = "", delay: float = 0.0, on: bool = False,
        clock: float = 0.0,
    ):  # fmt: skip
        self.at, self.do, self.under, self.holds = at, do, os.path.realpath(under), holds
        self.delay, self.on, self.clock = delay, on, clock
        self.count, self.busy = 0, threading.local()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if log else None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Audits what Python does; an error that is raised here stops it."""
        if getattr(self.busy, "now", False):
            return
        if event == "open":
            paths = [args[0]] if isinstance(args[2], int) and args[2] & TO_WRITE else []
        else:
            paths = [args[k] for k in WRITES.get(event, ())]
        paths = [os.fsdecode(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))]
        if any(os.path.abspath(path).startswith(self.under) and self.holds in path for path in paths):
            self.busy.now = True
            try:
                self.written(event, paths)
            finally:
                self.busy.now = False

    def written(self, event: str, paths: list[str]) -> None:
        self.count += 1
        if self.log is not None:
            os.write(self.log, (json.dumps([event, *paths]) + "\n").encode())
        if self.count == self.at or (self.on and self.at and self.count > self.at):
            if self.clock:
                backwards(self.clock)
            if self.delay:
                threading.Timer(self.delay, self.act, [paths]).start()
            elif self.do:
                self.act(paths)

    def act(self, paths: list[str]) -> None:
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.do)
        raise OSError(code, os.strerror(code), paths[0])


def backwards(seconds: float) -> None:
    """Set the clock that this process sees."""
    real = time.time, time.time_ns
    time.time = lambda: real[0]() - seconds
    time.time_ns = lambda: real[1]() - int(seconds * 1e9)


def main() -> None:
    fault, module, *arguments = sys.argv[1:]
    sys.addaudithook(Fault(**json.loads(fault)))
    sys.argv = [module, *arguments]
    if module.endswith(".py"):
        sys.path.insert(0, str(Path(module).parent))
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
