"""Commands to paste: words quoted as the shell of this machine takes them."""

import os
import re
import shlex
from collections.abc import Iterable

HARMLESS = re.compile(r"[\w@+=:,./\\~-]+", re.ASCII)  # to Windows' cmd


def option(flag: str, value: str) -> list[str]:
    """An option and its value; in one word where the value looks like an option itself."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def path(value: object) -> str:
    """A file or folder that cannot be taken for an option."""
    text = str(value)
    return os.path.join(".", text) if text.startswith("-") else text


def join(words: Iterable[str]) -> str:
    return " ".join(quote(word) for word in words)


def quote(word: str) -> str:
    if os.name != "nt":
        return shlex.quote(word)
    if HARMLESS.fullmatch(word):
        return word
    inner = re.sub(r'(\\*)"', r'\1\1\\"', word)  # backslashes count only before a quote
    return '"' + re.sub(r"(\\+)$", r"\1\1", inner) + '"'


def lines(parts: Iterable[Iterable[str]]) -> str:
    """A long command: a part a line where the shell has a mark for that."""
    return (" " if os.name == "nt" else " \\\n    ").join(join(part) for part in parts)
