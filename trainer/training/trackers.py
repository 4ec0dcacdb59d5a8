"""TensorBoard and Weights & Biases, through accelerate's trackers."""

import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from twinflow.atomic import write_text

from .. import TrainerError
from ..config.settings import Settings

PROJECT = "twinflow"  # on W&B, where a run goes by its own name


def chosen(settings: Settings) -> str:
    """The tracker's name, or none.  Raises TrainerError where it is not installed."""
    name: str = settings.logging.tracker
    if name == "auto":
        return "tensorboard" if find_spec("tensorboard") else "none"
    if name != "none" and not find_spec(name):
        raise TrainerError(f"--tracker {name}: is not installed; pip install {name}, or --tracker none")
    return name


def start(accelerator: Accelerator, settings: Settings, folder: Path) -> None:
    """With all settings.  Raises TrainerError where a tracker that was asked for cannot start."""
    name = chosen(settings)
    if name == "none":
        return
    values = {key: scalar(value) for key, value in settings.flat().items()}
    try:
        if name == "wandb":
            own = identity(folder) if accelerator.is_main_process else ""
            options = dict(name=settings.run.name, dir=str(folder / "logs"), id=own, resume="allow")
            accelerator.init_trackers(PROJECT, values, {"wandb": options})
        else:
            accelerator.init_trackers(settings.run.name, values)
    except Exception as error:  # no account, no network, a broken package: whatever it raises
        accelerator.trackers.clear()
        why = f"{name} cannot start ({brief(error)})"
        if settings.logging.tracker == "auto":
            accelerator.print(f"{why}; the log is in metrics.csv alone")
            return
        way = "WANDB_MODE=offline in the environment" if name == "wandb" else "another tracker"
        raise TrainerError(f"--tracker {name}: {why}; expected {way}, or --tracker none") from None


def identity(folder: Path) -> str:
    """What the run is called on W&B, always the same, so that one that goes on goes on there, too."""
    path = folder / "logs" / "wandb.txt"
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(made := uuid.uuid4().hex[:8], path)
        return made


def scalar(value: Any) -> Any:
    """What a tracker takes for a setting: a number, or text."""
    if isinstance(value, dict):
        return ",".join(f"{key}={own}" for key, own in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else value


def brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
