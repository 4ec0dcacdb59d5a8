"""What a run is worth: samples on disk, their metrics as the judge sees them, a table and a grid of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.atomic import write_text
from twinflow.weights import save

from . import drawing
from .judge import Judge
from .two_sample import told_apart

ACROSS = 5  # images of a digit side by side
COLUMNS = (("base", 1), ("distilled", 1), ("distilled", 2), ("distilled", 4), ("base", 32))


def evaluate(made: Mapping[tuple[str, int], Tensor], labels: Tensor, folder: Path) -> dict[str, Any]:
    """made: images (N, 1, 8, 8) in [0, 1] by (stage, NFE), of the digits in labels (N,).

    Writes samples_<stage>_<n>nfe.safetensors, grid.png and prints the table; returns {"quality": rows}.
    """
    judge, rows, base = Judge(), [], made.get(COLUMNS[-1])
    rows.append({"stage": "real test digits", "nfe": "", **judge.real_test(), "c2st": told_apart(judge.digits.test, base)})
    for (stage, nfe), images in made.items():
        save({"images": images, "labels": labels}, folder / f"samples_{stage}_{nfe}nfe.safetensors")
        rows.append({"stage": stage, "nfe": nfe, **judge.metrics(images, labels), "c2st": told_apart(images, base)})
    write_text(drawing.table(rows) + "\n", folder / "quality.md")
    print(drawing.table(rows))
    digits = labels.unique().tolist()
    across = min(ACROSS, int(labels.bincount()[digits].min()))
    chosen = torch.stack([(labels == d).nonzero()[:across, 0] for d in digits])
    columns: dict[str, Sequence[Tensor]] = {}
    columns |= {f"{stage}, {nfe} NFE": list(made[stage, nfe][chosen]) for stage, nfe in COLUMNS if (stage, nfe) in made}
    drawing.grid(columns, folder / "grid.png")
    print(f"drew {folder / 'grid.png'}")
    return {"quality": rows}
