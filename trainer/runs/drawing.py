"""Sample grids, curves and tables of a run."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, zip_longest
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from twinflow.atomic import write_atomically

from ..training.log import TERMS
from .lettering import Lettering, drawable

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend must be chosen first

MARGIN, GAP = 10, 14  # pixels
TEXT = 14, 28  # sizes of text: small pictures, and large ones, which are looked at from further away
LETTERS = 25  # of its own size, is how wide the text beside the pictures may be
GREY = "#666666"


def grid(
    columns: Mapping[str, Sequence[Tensor | None]],
    path: Path,
    *,
    least: int = 40,
    labels: Sequence[str] = (),
    notes: Sequence[str] = (),
    title: str = "",
) -> None:
    """Images as PNG: columns under their titles, each a sequence of rows (across, 1 or 3, H, W) in [0, 1].

    The rows of all columns are as many, and line up; sizes may differ, and None leaves a place empty.  least: images
    narrower than this many pixels are enlarged to it.  labels, notes: what stands on the left of each row, as far as there is
    room, the notes smaller.  title: above all.
    """
    blocks = {
        head: [None if row is None else framed(row, max(1, least // row.shape[-1])) for row in rows]
        for head, rows in columns.items()
    }
    shapes = [[(0, 0) if b is None else b.shape[:2] for b in row] for row in zip(*blocks.values(), strict=True)]
    tallest, widest = (max((shape[i] for row in shapes for shape in row), default=0) for i in (0, 1))
    large = Lettering(min(TEXT[1], max(TEXT[0], min(tallest, widest) // 20)))
    small = Lettering(round(large.size * 0.8))
    beside = [
        text_beside(large, small, label, note, max((h for h, _ in row), default=0))
        for (label, note), row in zip(zip_longest(labels, notes, fillvalue=""), shapes)
    ]
    heights = [
        max([*(h for h, _ in row), sum(font.height for font, _ in lines)])
        for row, lines in zip_longest(shapes, beside, fillvalue=())
    ]
    widths = [
        max(int(large.width(drawable(head))) + 1, *(row[i][1] for row in shapes)) if shapes else int(large.width(head)) + 1
        for i, head in enumerate(blocks)
    ]
    left = MARGIN + max((int(font.width(line)) + 2 * GAP for lines in beside for font, line in lines), default=0)
    top = MARGIN + (large.height + GAP // 2 if title else 0)
    across = max(left + sum(widths) + GAP * (len(widths) - 1), MARGIN + int(large.width(drawable(title))))
    body = top + large.height + GAP // 2
    tops = list(accumulate((height + GAP // 2 for height in heights), initial=body))
    sheet = Image.new("RGB", (across + MARGIN, tops[-1] + MARGIN), "white")
    draw, x = ImageDraw.Draw(sheet), left
    large.draw(draw, MARGIN, MARGIN, drawable(title))
    for lines, height, y in zip(beside, heights, tops):
        y += max(0, height - sum(font.height for font, _ in lines)) / 2
        for font, line in lines:
            font.draw(draw, MARGIN, y, line, "black" if font is large else GREY)
            y += font.height
    for (head, column), width in zip(blocks.items(), widths):
        large.draw(draw, x + (width - large.width(drawable(head))) / 2, top, drawable(head))
        for block, height, y in zip(column, heights, tops):
            if block is not None:
                sheet.paste(Image.fromarray(block), (x + (width - block.shape[1]) // 2, y + (height - block.shape[0]) // 2))
        x += width + GAP
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def text_beside(large: Lettering, small: Lettering, label: str, note: str, height: int) -> list[tuple[Lettering, str]]:
    """Lines for the left of a row of this height, each with its size."""
    room, most = large.size * LETTERS, max(3, height // large.height - 2)
    return [(large, line) for line in large.lines(label, room, most)] + [(small, line) for line in small.lines(note, room, 2)]


def framed(row: Tensor, scale: int) -> np.ndarray:
    """Images (across, C, H, W) side by side as bytes (h, w, 3), a white line right of and below each."""
    across, channels, h, w = row.shape
    out = np.ones((h + 1, across, w + 1, channels), np.float32)
    out[:h, :, :w] = row.permute(2, 0, 3, 1).float().cpu().numpy()
    out = np.repeat(out.reshape(h + 1, across * (w + 1), channels), 3 // channels, axis=2)
    return (out.repeat(scale, 0).repeat(scale, 1) * 255).round().astype(np.uint8)


def losses(rows: list[dict], path: Path) -> None:
    """The curves of metrics.csv: one panel a stage, one line a term, on a logarithmic scale.  None where it was lost."""
    if not (stages := list(dict.fromkeys(row["stage"] for row in rows))):
        return
    figure, axes = plt.subplots(1, len(stages), figsize=(6 * len(stages), 4), squeeze=False, layout="constrained")
    for stage, ax in zip(stages, axes[0]):
        own = [row for row in rows if row["stage"] == stage]
        for term in (*TERMS, "validation_loss"):
            points = [(int(row["step"]), float(row[term])) for row in own if row.get(term) not in (None, "")]
            if points:
                ax.plot(*zip(*points), label=term, lw=1.6 if term == "loss" else 0.8)
        ax.set(title=stage, xlabel="step", yscale="log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("loss")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


def table(rows: list[dict]) -> str:
    """Rows of one shape as Markdown; numbers to three places."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads)]
    lines += [[f"{row[h]:.3f}" if isinstance(row[h], float) else str(row[h]) for h in heads] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
