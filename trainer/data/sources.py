"""Where training data lie, and what holds for each place: named one by one, by comma, or in a file (see datasets).

A path with a comma or star may be written as it is where it exists, and otherwise in double quotes, a quote in it twice.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from .. import TrainerError

MOST = 10**7  # rows of an epoch, repeats counted, for which there is memory
FILES = (".toml", ".yaml", ".yml")  # of data sets


class Source(NamedTuple):
    """A folder, table or text file of prompts.

    resolutions: that its images are cut to, each of its rows counting once for each.  caption: of rows that have none; empty:
    skip those.  lines: a text file beside an image is a caption a line; otherwise the whole file is one.  trigger: words that
    stand before each caption.  orders: of a caption's comma-separated tags, the first as it is written; keep: tags that stay
    at the front.  dropout: share of its rows that are trained under the null prompt.
    """

    path: Path = Path()
    repeats: int = 1
    resolutions: tuple[int, ...] = ()
    caption: str = ""
    lines: bool = False
    trigger: str = ""
    orders: int = 1
    keep: int = 0
    dropout: float = 0.0


def listed(data: str, defaults: Source) -> list[Source]:
    """Those of a list such as "photos*3,more.jsonl" (the first counts thrice).  Raises TrainerError."""
    found = []
    parts = re.findall(r'(?:^|,)(\s*"(?:[^"]|"")*"[^,]*|[^,]*)', data)
    while parts:
        joined = next((n for n in range(len(parts), 1, -1) if there(_path(",".join(parts[:n])))), 1)
        item = ",".join(parts[:joined]).strip()
        del parts[:joined]
        if item:
            path, repeats = _counted(item)
            found.append(defaults._replace(path=path, repeats=repeats))
    return found


def there(path: str) -> bool:
    """Also with repeats behind it."""
    return os.path.exists(path) or bool(re.fullmatch(r".*\*\d+", path)) and os.path.exists(path.rpartition("*")[0])


def _path(text: str) -> str:
    return os.path.expanduser(text.strip())


def _counted(item: str) -> tuple[Path, int]:
    """The path, and how often it counts."""
    if os.path.exists(_path(item)):
        return Path(_path(item)), 1
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"\s*(?:\*\s*(\d+))?', item)
    path = _path(quoted[1].replace('""', '"') if quoted else item)
    times = number(quoted[2]) if quoted and quoted[2] else 1
    name, star, count = path.rpartition("*")
    if not star or os.path.exists(path):
        return Path(path), times
    if not (count.isascii() and count.isdecimal()):
        raise TrainerError(f"data: {item!r} does not end in a number; expected a path, or path*repeats such as photos*3")
    return Path(name), number(count) * times


def number(digits: str) -> int:
    """Of any length, which int() has a limit for; none beyond what is refused."""
    return min(int(digits), MOST + 1) if len(digits) < 20 else MOST + 1
