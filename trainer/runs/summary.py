"""summary.md: one page on a finished run, with its images and with commands to paste."""

from pathlib import Path
from typing import Any

from twinflow.atomic import write_text
from twinflow.plain_json import printable

from .. import shell
from ..backbones import Backbone
from ..config.options import flag
from ..config.resolving import resolve
from ..config.settings import Settings
from ..data.captions import triggered
from ..training.log import TERMS
from . import drawing

HOW = {
    "two": "put it into `models/loras`; TwinFlow Model Loader, with the base as model and this file as adapter",
    "fold": (
        "put it into `models/loras`; TwinFlow LoRA Loader, or ComfyUI's own LoRA loader followed by TwinFlow Model Patch "
        "(times: folded)"
    ),
    "full": "put it into `models/diffusion_models`; TwinFlow Model Loader, or ComfyUI's own Load Diffusion Model",
}


def write(settings: Settings, backbone: Backbone, folder: Path, rows: list[dict], metrics: dict[str, Any]) -> None:
    """rows: of metrics.csv.  metrics: of metrics.json."""
    training, name = settings.training, settings.run.name
    steps = metrics["step"]
    last = {row["stage"]: row for row in rows}.get("distil", {})
    losses = [
        {"loss": term, "training": number(last, term), "validation": number(last, f"validation_{term}")} for term in TERMS
    ]
    logged = [row for row in losses if row["training"] or row["validation"]]
    times = ", ".join(f"{stage} {seconds / 60:.1f} min" for stage, seconds in metrics["seconds"].items())
    use = HOW["full" if settings.mode == "full" else settings.adapter.time]
    samplings = [f"{s.steps}: style {s.style}, stochasticity {s.stochasticity:g}" for s in backbone.sampling]
    images = [f"![{path.stem}]({path.relative_to(folder).as_posix()})" for path in grids(folder)]
    parts = [
        f"# {name}",
        f"{steps} steps of {training.batch * training.accumulation} rows in each process; {times}.",
        "```\n" + shell.lines(command(settings)) + "\n```",
        f"**Use it.** `{name}.safetensors`, in ComfyUI: {use}. Here:",
        "```\n" + shell.join(drawing_command(backbone, folder, settings.data.trigger.strip())) + "\n```",
        f"Recommended, by steps: {'; '.join(samplings)}.",
        "## Loss at the end",
        *([drawing.table(logged), "![loss](loss.png)"] if logged else ["metrics.csv was lost."]),
        *(["## Samples", *images] if images else []),
        "## All settings",
        "```\n" + "\n".join(f"{option}: {printable(shown(value))}" for option, value in settings.flat().items()) + "\n```",
    ]
    text = "\n\n".join(parts) + "\n"
    write_text(text, folder / "summary.md")


def command(settings: Settings) -> list[list[str]]:
    """The command that makes this run, option by option: what differs from its model's defaults."""
    defaults = resolve(settings.mode, {"model": settings.model}, notify=lambda line: None).flat()
    changed = {name: value for name, value in settings.flat().items() if value != defaults[name]}
    if changed.get("guidance_ratio", "") is None:  # a scale was given, which a recipe's or preset's ratio gives way to
        changed["guidance"] = settings.guidance.scale
    if settings.training.epochs is not None:  # which the steps follow from
        changed.pop("steps", None)
    given = [words(name, value) for name, value in changed.items() if value is not None]
    return [["python", "-m", f"trainer.{settings.mode}", "--model", settings.model], *given]


def drawing_command(backbone: Backbone, folder: Path, trigger: str) -> list[str]:
    """The words of a command that draws with this run."""
    start = ["python", "-m", "trainer.generate", shell.path(folder)]
    if backbone.edits:
        return [*start, "--prompts", shell.path(folder / "samples" / "prompts.jsonl")]
    return [*start, "--prompts", triggered("a prompt", trigger)] if backbone.text_parts else start


def grids(folder: Path) -> list[Path]:
    """grid.png, and the samples before training, of those that there are."""
    return [p for p in (folder / "grid.png", folder / "samples" / "step-000000.png") if p.exists()]


def number(row: dict, name: str) -> str:
    return f"{float(row[name]):.4g}" if row.get(name) not in (None, "") else ""


def option(name: str, value: Any) -> str:
    """As it is pasted into a command."""
    return shell.join(words(name, value))


def words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return shell.option(flag(name), shown(value))


def shown(value: Any) -> str:
    """As the command line takes it."""
    if isinstance(value, dict):
        return ",".join(f"{k}={shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ",".join(map(shown, value))
    return "" if value is None else str(value).removesuffix(".0")
