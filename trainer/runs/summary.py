"""summary.md: one page on a finished run, with its pictures."""

import json
from pathlib import Path

from twinflow.weights import write_atomically

from . import drawing as report
from ..config import Config
from ..training.log import TERMS

HOW = {
    "two": "TwinFlow Model Loader: the base as model, this file as adapter (it lies in `models/loras`)",
    "fold": "TwinFlow LoRA Loader, or ComfyUI's own LoRA loader followed by TwinFlow Model Patch (times: folded)",
    "full": "TwinFlow Model Loader, or ComfyUI's own Load Diffusion Model (it lies in `models/diffusion_models`)",
}


def write(config: Config, model, folder: Path, rows: list[dict], metrics: dict) -> None:
    """rows: of metrics.csv.  metrics: of metrics.json."""
    values = config.model_dump(mode="json")
    command = [f"python -m trainer.{config.mode} --model {config.model}"]
    defaults = Config.model_construct().model_dump(mode="json") | model.recipe(config.mode)
    defaults |= {"mode": config.mode, "name": f"{config.model}-{config.mode}", "model": config.model}
    defaults = json.loads(json.dumps(defaults))
    command += [option(name, value) for name, value in values.items() if value != defaults[name]]
    last = {row["stage"]: row for row in rows}["distil"]
    losses = [
        {"loss": term, "training": number(last, term), "validation": number(last, f"validation_{term}")} for term in TERMS
    ]
    times = ", ".join(f"{stage} {seconds / 60:.1f} min" for stage, seconds in metrics["seconds"].items())
    use = HOW["full" if config.mode == "full" else config.time]
    samplings = [f"{s.steps}: style {s.style}, stochasticity {s.stochasticity:g}" for s in model.sampling]
    pictures = [f"![{path.stem}]({path.relative_to(folder).as_posix()})" for path in grids(folder)]
    parts = [
        f"# {config.name}",
        f"{config.steps} steps of {config.batch * config.accumulation} rows in each process; {times}.",
        "```\n" + " \\\n    ".join(command) + "\n```",
        f"**Use it.** `{config.name}.safetensors`, in ComfyUI: {use}. Here: `python -m trainer.generate {folder}`.",
        f"Recommended, by steps: {'; '.join(samplings)}.",
        "## Loss at the end",
        report.table([row for row in losses if row["training"] or row["validation"]]),
        "![loss](loss.png)",
        *(["## Samples", *pictures] if pictures else []),
        "## All settings",
        "```\n" + "\n".join(f"{name}: {shown(value)}" for name, value in values.items()) + "\n```",
    ]
    text = "\n\n".join(parts) + "\n"
    write_atomically(folder / "summary.md", lambda temporary: Path(temporary).write_text(text, "utf-8"))


def grids(folder: Path) -> list[Path]:
    """grid.png, and the samples before training, of those that there are."""
    return [p for p in (folder / "grid.png", folder / "samples" / "step-000000.png") if p.exists()]


def number(row: dict, name: str) -> str:
    return f"{float(row[name]):.4g}" if row.get(name) not in (None, "") else ""


def option(name: str, value) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {shown(value)}"


def shown(value) -> str:
    """As the command line takes it."""
    if isinstance(value, dict):
        return ",".join(f"{k}={v:g}" for k, v in value.items())
    if isinstance(value, list):
        return ",".join(f"{v:g}" for v in value)
    text = "" if value is None else str(value)
    return f'"{text}"' if " " in text else text
