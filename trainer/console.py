"""The terminal, which never stops a run: neither its encoding, nor that nobody reads it any more."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twinflow.weights import WeightsError

from . import Stopped, TrainerError

AGAIN = "To go on, run the same command again."


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


def guarded(act: Callable[[], None]) -> int:
    """The exit code of a command: 0 done, 1 diverged or out of something, 2 bad input, 130 interrupted; one line on why."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a package that nothing here needs
    with patient():
        code, line = _outcome(act)
        if line:
            print(line, file=sys.stderr)
        return code


def _outcome(act: Callable[[], None]) -> tuple[int, str]:
    try:
        act()
    except (TrainerError, WeightsError) as error:
        return getattr(error, "code", 2), f"error: {error}"
    except Stopped as stopped:
        return 130, f"{stopped}\n{AGAIN}"
    except KeyboardInterrupt:
        return 130, f"stopped; what was encoded is kept. {AGAIN}"
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        wanted = f"; free some space. {AGAIN}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return 1, f"error: {named}{error.strerror or error}{wanted}"
    except MemoryError:
        return 1, "error: out of host memory; --plan lists the memory by item, and options that fit"
    except RuntimeError as error:
        text = (str(error).splitlines() or [""])[0]
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in text:
            raise
        return 1, f"error: out of memory ({text})\n--plan lists the memory by item, and options that fit."
    return 0, ""
