"""A folder that a run can make and write into, and the name that it can have."""

import os
from pathlib import Path

LONGEST_NAME = 200  # bytes: disks take 255, of which steps and endings need some


def is_plain(name: str) -> bool:
    """Whether it can be the name of a folder and, with a step behind it, of a file."""
    forbidden = set('<>:"|?*') if os.name == "nt" else set()
    plain = Path(name).name == name == name.strip() and name.isprintable() and not name.startswith(".")
    return bool(name) and plain and not forbidden & set(name) and len(os.fsencode(name)) <= LONGEST_NAME


def not_writable(folder: Path) -> str:
    """Why a folder cannot be made, or written into; "" where it can."""
    parents = [folder, *folder.absolute().parents]
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, a zero byte in it, not to be looked into
        return f"cannot be made ({getattr(error, 'strerror', None) or error})"
    there = next((p for p in parents if os.path.lexists(p)), None)
    if there is None or not there.is_dir():
        return f"cannot be made ({there} is no folder)"
    if not os.access(there, os.W_OK | os.X_OK):
        return "cannot be written to" if there == folder else f"cannot be made ({there} cannot be written to)"
    return ""
