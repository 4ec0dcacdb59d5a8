"""The page of an evaluation: one HTML file that needs nothing else, neither files beside it nor a network."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from twinflow import __version__
from twinflow.atomic import write_text

from .. import TrainerError
from ..runs.drawing import plt

COLOURS = "#3b82f6", "#f97316", "#22a06b", "#a855f7", "#e11d48", "#0e9aa7", "#b08900", "#78716c"  # seen on white and on black
INK = "#010203"  # stands for the colour of the page's text
SMALL = 4 << 20  # pixels of a grid that is kept to the bit
TEMPLATE = Path(__file__).with_name("report.html")
HOW = "expected pip install 'twinflow[evaluate]'"


class Chart(NamedTuple):
    """title, note: in words.  field: of the rows of measures.json.  top: the axis ends there or above."""

    title: str
    note: str
    field: str
    top: float | None = None


CHARTS = (
    Chart(
        "Distance to its own many steps",
        "from the same noise, in features, as a share of the distance to another seed's picture of the same prompt: 0 is the "
        "same picture, at 1 the noise no longer decides it",
        "own_feature_share", top=1.0,
    ),
    Chart("Distance to the base", "the same, to what the base draws in many steps", "base_feature_share", top=1.0),
    Chart("Variety", "mean distance of two seeds' pictures of a prompt, in features; dashed: the base's", "diversity"),
    Chart("Time of a picture", "seconds of sampling, without text encoder and autoencoder", "seconds"),
)  # fmt: skip


def check() -> None:
    """Raises TrainerError where the page could not be written."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise TrainerError(f"{error}, which writes the page; {HOW}") from None


def write(path: Path, about: dict[str, Any], table: list[dict[str, Any]], grids: Sequence[tuple[str, Path]]) -> None:
    """about: the settings.  table: of measures.json.  grids: prompts and their pictures."""
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= dict(number=number, memory=memory)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(table))]
    html = page.from_string(TEMPLATE.read_text("utf-8")).render(
        about=about, table=table, colours=colours, charts=[(c, svg) for c in CHARTS if (svg := drawn(c, table, colours))],
        grids=[(prompt, inlined(file)) for prompt, file in grids], version=__version__,
    )  # fmt: skip
    write_text(html, path)


def number(value: float | None, places: int = 3) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def memory(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.1f} GiB"


def inlined(file: Path) -> str:
    """A PNG as the address of its picture; large ones as WebP, a little lossy, for pages are sent to others."""
    kind, data = "png", file.read_bytes()
    with Image.open(file) as image:
        packed = io.BytesIO()
        if max(image.size) < 16384:  # that is as large as WebP can be
            image.save(packed, "WEBP", lossless=image.width * image.height < SMALL, quality=90)
            kind, data = "webp", packed.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def drawn(chart: Chart, table: list[dict[str, Any]], colours: list[str]) -> str:
    """As SVG in the colours of the page; nothing where no network has such values."""
    lines = [[(row["steps"], row[chart.field]) for row in entry["rows"] if row[chart.field] is not None] for entry in table]
    if not any(lines):
        return ""
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.field, "font.size": 11}):
        figure, ax = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
        for points, entry, colour in zip(lines, table, colours):
            if points:
                ax.plot(*zip(*points), color=colour, marker="o", ms=5, lw=1.8)
            base = entry["base"] and entry["base"].get(chart.field)
            if base is not None and chart.field == "diversity":
                ax.axhline(base, color=colour, lw=1.2, ls="--")
        steps = sorted({step for points in lines for step, _ in points})
        ax.set_xscale("log", base=2)
        ax.set_xticks(steps, [str(step) for step in steps], minor=False)
        ax.set_xticks([], minor=True)
        ax.set_ylim(0, 1.03 * max(chart.top or 0, ax.get_ylim()[1]))
        ax.set_xlabel("network evaluations")
        ax.tick_params(colors=INK)
        ax.xaxis.label.set_color(INK)
        ax.grid(color=INK, alpha=0.15, lw=0.6)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = written.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
