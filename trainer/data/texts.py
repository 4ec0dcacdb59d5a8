"""Text files as people write them: UTF-8 whatever the locale, with or without a mark at the start, lines ended by "\\n" alone.

Other separators (U+2028, form feed, U+0085) are text: captions contain them, and JSON may.
"""

from pathlib import Path

BLANKS = " \t\r\n"


def read(path: Path) -> str:
    """Raises OSError and UnicodeDecodeError, also for a zero byte, which text without one never has, and UTF-16 always."""
    data = path.read_bytes()
    if (zero := data.find(b"\0")) >= 0:
        raise UnicodeDecodeError("utf-8", data, zero, zero + 1, "zero byte, as in UTF-16")
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def lines(text: str) -> list[str]:
    """Those that say something, without the blanks around them."""
    return [line.strip(BLANKS) for line in text.split("\n") if line.strip()]
