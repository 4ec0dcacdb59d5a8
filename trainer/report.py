"""Pictures and tables of a run."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from twinflow.weights import write_atomically

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend must be chosen first

MARGIN, GAP, HEAD = 6, 14, 26  # pixels


def grid(columns: Mapping[str, Tensor], path: Path, *, scale: int = 5) -> None:
    """Pictures side by side as PNG: columns of (rows, across, 1 or 3, H, W) in [0, 1] under their titles."""
    blocks = []
    for pictures in columns.values():
        rows, across, channels, h, w = pictures.shape
        framed = np.full((rows, across, h + 1, w + 1, channels), 1.0)
        framed[:, :, :h, :w] = pictures.permute(0, 1, 3, 4, 2).cpu().numpy()
        flat = framed.transpose(0, 2, 1, 3, 4).reshape(rows * (h + 1), across * (w + 1), channels)
        flat = np.repeat(flat, 3 // channels, axis=2)
        blocks.append(np.kron(flat, np.ones((scale, scale, 1))))
    width = sum(b.shape[1] for b in blocks) + GAP * (len(blocks) - 1) + 2 * MARGIN
    sheet = Image.new("RGB", (width, max(b.shape[0] for b in blocks) + HEAD + 2 * MARGIN), "white")
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(15), MARGIN
    for title, block in zip(columns, blocks):
        draw.text((x + block.shape[1] / 2, MARGIN), title, fill="black", font=font, anchor="mt")
        sheet.paste(Image.fromarray((block * 255).round().astype(np.uint8)), (x, HEAD + MARGIN))
        x += block.shape[1] + GAP
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def losses(rows: list[dict], path: Path) -> None:
    """The curves of metrics.csv: one panel a stage, one line a term, on a logarithmic scale."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, axes = plt.subplots(1, len(stages), figsize=(6 * len(stages), 4), squeeze=False, layout="constrained")
    for stage, ax in zip(stages, axes[0]):
        own = [row for row in rows if row["stage"] == stage]
        for term in ("loss", "one_step", "multi_step", "any_step", "few_step", "fake", "rectify"):
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
