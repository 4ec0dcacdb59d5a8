"""The terminal, which never stops a run: neither its encoding, nor that nobody reads it any more."""

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from twinflow.plain_json import printable

from . import Stopped, TrainerError

SILENT = {"-h", "--help", "--dry-run", "--plan"}  # options of what is written for others to read
OF_THE_CARD = re.compile(r"CUDA|CUDNN|cuDNN|CUBLAS|NCCL|HIP error|MPS backend")
AGAIN = "To go on, run the same command again."
FIXES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space") | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "let it be writable"
)


def utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale's encoding, by which arguments and names are read, is another one.

    Windows always hands over Unicode.
    """
    plain = sys.getfilesystemencoding().lower().replace("-", "") == "utf8"
    if not plain and os.name == "posix" and sys.executable and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


class Patient:
    """A text stream that shows what it cannot encode as \\u... , and forgets what can no longer be written."""

    def __init__(self, stream: Any):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError:  # the reader of a pipe has gone, or the disk behind it is full: what is buffered goes nowhere, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextmanager
def patient() -> Iterator[None]:
    """stdout and stderr as Patient ones."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Patient(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        sys.stdout, sys.stderr = before


def loading(what: str) -> None:
    """Says what is loaded next, which may take minutes; of processes that train together the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"loading {what} ...", flush=True)


def notice(line: str) -> None:
    print(printable(line), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Whose errors are one line, as all are."""

    def error(self, message: str) -> NoReturn:
        raise TrainerError(f"{message} (see --help)")


def started(name: str, command: Callable[[], int]) -> int:
    """The exit code of a command that is the whole process.  What it imports takes seconds: a line is there before."""
    utf8()
    code, pressed = 0, list[int]()

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    def act() -> None:
        nonlocal code
        if not SILENT & {text.partition("=")[0] for text in sys.argv[1:]}:
            print(f"{name}: loading PyTorch and diffusers ...", flush=True)
        try:
            code = command()
        except Exception as error:
            if pressed and not isinstance(error, (*_ours(), Stopped)):  # half an import may fail with anything
                raise KeyboardInterrupt from error
            raise

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as with nohup
        signal.signal(signal.SIGINT, press)
    own = guarded(act)
    if own or code:  # it ends now, and a second Ctrl-C has nothing left to stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return own or code


def guarded(act: Callable[[], None]) -> int:
    """The exit code of a command: 0 done, 1 diverged or out of something, 2 bad input, 130 interrupted; one line on why."""
    with patient():
        code, lines = _outcome(act)
        for line in lines:
            print(printable(line), file=sys.stderr)
        return code


def _outcome(act: Callable[[], None]) -> tuple[int, list[str]]:
    try:
        act()
    except _ours() as error:
        return getattr(error, "code", 2), [f"error: {fault}" for fault in error.args]
    except Stopped as stopped:
        return 130, [str(stopped), AGAIN]
    except KeyboardInterrupt:
        return 130, [f"stopped; what was encoded is kept. {AGAIN}"]
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        wanted = f"; {FIXES[error.errno]}. {AGAIN}" if error.errno in FIXES else ""
        return 1, [f"error: {named}{error.strerror or error}{wanted}"]
    except ImportError as error:
        return 1, [f"error: {_first_line(error)}; expected all that the trainer needs: pip install -U 'twinflow[trainer]'"]
    except MemoryError:
        return 1, ["error: out of host memory; --plan lists the memory by item, and options that fit"]
    except Exception as error:
        text, kind = _first_line(error), type(error).__name__
        if kind == "SafetensorError":  # of a disk, or a file that changes while it is read
            return 1, [f"error: a weights file cannot be read or written ({text}). {AGAIN}"]
        if kind == "OutOfMemoryError" or "allocate memory" in text or "out of memory" in text or "ALLOC_FAILED" in text:
            return 1, [f"error: out of memory ({text}); --plan lists the memory by item, and options that fit"]
        if isinstance(error, RuntimeError) and OF_THE_CARD.search(text):
            return 1, [f"error: the card or its driver failed ({text}); what was saved is kept. {AGAIN}"]
        raise
    return 0, []


def _ours() -> tuple[type[Exception], ...]:
    """Errors whose message is for the user; twinflow's, once it is imported, which takes seconds."""
    weights = sys.modules.get("twinflow.weights")
    return (TrainerError, weights.WeightsError) if weights else (TrainerError,)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
