"""What a JSON text may be here, whoever wrote it, and what an error may say of it: one place for every reader."""

import json
import math
from typing import Any

DEEPEST = 60  # lists and objects within each other
DIGITS = 40  # of a whole number: tokenizers have 31 of them for "no end"
LONGEST = 300  # characters of an error


def loads(text: str | bytes) -> Any:
    """The value of a JSON text.  Raises ValueError, also for what Python alone would let pass: NaN and infinite numbers, whole
    numbers of more than 40 digits, halves of characters, lists within lists without end."""
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"is nested more than {DEEPEST} deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 ({error.reason} at byte {error.start})") from None
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"is nested more than {DEEPEST} deep")
        inner = []
        for own in level:
            if isinstance(own, dict):
                inner += [*own, *own.values()]
            elif isinstance(own, list):
                inner += own
            elif isinstance(own, str) and not own.isascii() and any("\ud800" <= c <= "\udfff" for c in own):
                raise ValueError(f"holds half a character, in {own[:20]!r}")
        level, depth = inner, depth + 1
    return value


def one_line(text: str, most: int = LONGEST) -> str:
    """Without line breaks and what a terminal obeys; cut in its middle where it has more than `most` characters."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most * 2 // 3 - 3]} ... {text[-(most // 3 - 2) :]}"


def printable(text: str) -> str:
    """On one line, and without what a terminal obeys: a line break of a name or a prompt as \\n, and the like."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _no_number(text: str) -> float:
    raise ValueError(f"holds {text}, which is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"holds the number {text[:DIGITS]}, which is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"holds a whole number of {len(text)} digits")
    return int(text)
