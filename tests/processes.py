"""Processes of their own, to be killed and signalled, that are forked from one with all imports done: a tenth of a second
each, not ten.  A test of how a process starts needs a fresh interpreter instead."""

import multiprocessing
import os
import time
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from subprocess import TimeoutExpired

ROOT = Path(__file__).parents[1]
# not trainer.lora itself, which is run as a module
LOADED = "trainer.cli", "trainer.generate", "trainer.runs.run", "torch.utils.tensorboard", "torch.testing"
CHILD = """
import os, runpy, sys
for number, path in ((1, out), (2, err)):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, number)
    os.close(file)
os.environ.update(environment)
os.chdir(root)
sys.argv = [module, *arguments]
import torch
torch.set_num_threads(1)
if module.endswith(".py"):
    sys.path.insert(0, os.path.dirname(module))
    runpy.run_path(module, run_name="__main__")
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Started:
    """A module (or a .py file) with its arguments, run as a process.  It has what subprocess.Popen has of the same names."""

    def __init__(self, module: str | Path, *arguments, files: Path, environment: Mapping[str, str] | None = None):
        """files: a folder for what it prints."""
        server()
        self.printed = [files / f"{name}-{time.monotonic_ns()}.txt" for name in ("out", "err")]
        out, err = map(str, self.printed)
        given = dict(module=str(module), arguments=[*map(str, arguments)], out=out, err=err, root=str(ROOT))
        given["environment"] = dict(environment or {})
        self.process = multiprocessing.get_context("forkserver").Process(target=exec, args=(CHILD, given))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired(self.printed[0].name, timeout)
        out, err = (path.read_text("utf-8") if path.exists() else "" for path in self.printed)
        return out, err


def server() -> None:
    """Start the process that is forked, once; it finds the modules by PYTHONPATH."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LOADED])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
