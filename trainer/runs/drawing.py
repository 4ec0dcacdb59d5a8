"""Sample grids, curves and tables of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from twinflow.weights import write_atomically

from ..training.log import TERMS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend must be chosen first

MARGIN, GAP, HEAD = 6, 14, 26  # pixels


def grid(columns: Mapping[str, Sequence[Tensor]], path: Path, *, least: int = 40, labels: Sequence[str] = ()) -> None:
    """Images as PNG: columns under their titles, each a sequence of rows (across, 1 or 3, H, W) in [0, 1].

    The rows of all columns are as many, and line up; sizes may differ.  least: images
    narrower than this many pixels are enlarged to it.  labels: what stands on the left of each row.
    """
    blocks = {title: [framed(row, max(1, least // row.shape[-1])) for row in rows] for title, rows in columns.items()}
    heights = [max(b.shape[0] for b in row) for row in zip(*blocks.values(), strict=True)]
    widths = [max(b.shape[1] for b in column) for column in blocks.values()]
    font = ImageFont.load_default(15)
    left = MARGIN + max((int(font.getlength(text)) + GAP for text in labels), default=0)
    size = left + sum(widths) + GAP * (len(widths) - 1) + MARGIN, sum(heights) + HEAD + 2 * MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, x = ImageDraw.Draw(sheet), left
    for text, height, y in zip(labels, heights, np.cumsum([HEAD + MARGIN, *heights])):
        draw.text((left - GAP, y + height / 2), text, fill="black", font=font, anchor="rm")
    for (title, column), width in zip(blocks.items(), widths):
        draw.text((x + width / 2, MARGIN), title, fill="black", font=font, anchor="mt")
        for block, y in zip(column, np.cumsum([HEAD + MARGIN, *heights])):
            sheet.paste(Image.fromarray(block), (x, int(y)))
        x += width + GAP
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def framed(row: Tensor, scale: int) -> np.ndarray:
    """Images (across, C, H, W) side by side as bytes (h, w, 3), a white line right of and below each."""
    across, channels, h, w = row.shape
    out = np.ones((h + 1, across, w + 1, channels), np.float32)
    out[:h, :, :w] = row.permute(2, 0, 3, 1).float().cpu().numpy()
    out = np.repeat(out.reshape(h + 1, across * (w + 1), channels), 3 // channels, axis=2)
    return (out.repeat(scale, 0).repeat(scale, 1) * 255).round().astype(np.uint8)


def losses(rows: list[dict], path: Path) -> None:
    """The curves of metrics.csv: one panel a stage, one line a term, on a logarithmic scale."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, axes = plt.subplots(1, len(stages), figsize=(6 * len(stages), 4), squeeze=False, layout="constrained")
    for stage, ax in zip(stages, axes[0]):
        own = [row for row in rows if row["stage"] == stage]
        for term in (*TERMS, "validation_loss"):
            points = [(int(row["step"]), float(row[term])) for row in own if row.get(term) not in (None, "")]
            if points:
                ax.plot(*zip(*points), label=term, lw=1.6 if term == "loss" else 0.8)
        ax.set(title=stage, xlabel="step", yscale="log")
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
