"""Text in pictures: any script, in lines of a given width.

DejaVu Sans comes with matplotlib; what it has no letters for is drawn with a font of this machine that has, and where none
has, a character is written as \\u732b, so that nothing is shown as an empty box.
"""

from functools import cache
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

OWN = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
WIDE = 0x2E80  # East Asian text, from here on, has no spaces to break at


@cache
def letters(font: str) -> frozenset[int]:
    """The characters that a font file has."""
    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def drawn_with(character: str) -> str:
    """The font file for a character; "" where this machine has none."""
    if ord(character) in letters(str(OWN)):
        return str(OWN)
    fonts = (f.fname for f in font_manager.fontManager.ttflist if "lastresort" not in f.fname.lower())
    return next((f for f in dict.fromkeys(fonts) if ord(character) in letters(f) and opened(f, 16)), "")


@cache
def opened(font: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(font, size)
    except (OSError, ValueError):  # coloured emoji have one size only
        return None


def drawable(text: str) -> str:
    """On one line, every character of it one that a font here has."""
    spaced = " ".join(text.split())
    return "".join(c if c.isprintable() and drawn_with(c) else c.encode("unicode_escape").decode("ascii") for c in spaced)


class Lettering:
    """Text of one size in pixels."""

    def __init__(self, size: int):
        self.size, self.height = size, round(size * 1.3)

    def parts(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """Stretches of text, each with its font."""
        found = []
        for font, characters in groupby(text, lambda c: drawn_with(c) or str(OWN)):
            found.append((opened(font, self.size) or opened(str(OWN), self.size), "".join(characters)))
        return found

    def width(self, text: str) -> float:
        return sum(font.getlength(part) for font, part in self.parts(text))

    def lines(self, text: str, width: float, most: int) -> list[str]:
        """At most so many lines of this width; what does not fit is cut, and ends in dots."""
        lines, line = [], ""
        for piece in pieces(drawable(text)):
            while self.width((line + piece).rstrip()) > width:
                if not line.strip():  # a word longer than a line
                    keep = max(1, self.fitting(piece, width))
                    lines.append(piece[:keep])
                    piece = piece[keep:]
                else:
                    lines.append(line.rstrip())
                    line = ""
                if len(lines) > most:
                    break
            line += piece if line or piece.strip() else ""
            if len(lines) > most:
                break
        lines += [line.rstrip()] if line.strip() else []
        if len(lines) > most:
            last = lines[most - 1]
            lines = [*lines[: most - 1], last[: self.fitting(last, width - self.width("…"))].rstrip() + "…"]
        return lines

    def fitting(self, text: str, width: float) -> int:
        """How many characters of a text fit."""
        return next((n for n in range(len(text), 0, -1) if self.width(text[:n]) <= width), 0)

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, y: float, text: str, fill: str = "black") -> None:
        """One line, whose upper left corner is given."""
        for font, part in self.parts(text):
            canvas.text((x, y + self.size), part, fill=fill, font=font, anchor="ls")
            x += font.getlength(part)


def pieces(text: str) -> list[str]:
    """Words with the blank behind them, and each character that needs none to be parted from the next."""
    found, word = [], ""
    for c in text:
        word += c
        if c == " " or ord(c) >= WIDE:
            found.append(word)
            word = ""
    return [*found, word] if word else found
