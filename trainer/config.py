"""Every setting of a training run: one flat, validated record, the same on the command line, in a file and in config.json.

Where a value comes from, the later winning: the defaults here, the recipe of the backbone for this mode, the objective
preset where one is named, the configuration file, the command line.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from twinflow.objective import Objective
from twinflow.presets import OBJECTIVES

from . import TrainerError
from .backbones import BACKBONES, backbone


def _pairs(value):
    """'one_step=1,fake=2' as a dict."""
    if not isinstance(value, str):
        return value
    return dict(item.split("=", 1) if "=" in item else (item, 1) for item in value.replace(" ", "").split(",") if item)


def _numbers(value):
    """'0,1' as a tuple."""
    return tuple(value.split(",")) if isinstance(value, str) else value


Weights = Annotated[dict[str, float], BeforeValidator(_pairs)]
Pair = Annotated[tuple[float, float], BeforeValidator(_numbers)]


def setting(default, group: str, help: str, **limits) -> Any:
    return Field(default, description=help, json_schema_extra={"group": group}, **limits)


class Config(BaseModel):
    """Field descriptions are the help texts; `group` is the heading in --help."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = setting("digits", "run", "backbone to train: " + ", ".join(BACKBONES))
    mode: Literal["lora", "full"] = setting("lora", "run", "set by the entry point")
    out: Path = setting(Path("runs"), "run", "folder that holds the runs")
    name: str = setting("", "run", "name of the run and of its weights file (default: <model>-<mode>)")
    seed: int = setting(0, "run", "decides every draw, together with the step", ge=0)
    threads: int = setting(0, "run", "CPU threads; 0 leaves torch's choice", ge=0)

    base_steps: int = setting(0, "base", "optimiser steps of the flow-matching base (digits only)", ge=0)
    base_batch: int = setting(128, "base", "rows a step", ge=1)
    base_lr: float = setting(2e-3, "base", "peak learning rate", gt=0)
    base_ema: float = setting(0.99, "base", "decay of the average that becomes the base", ge=0, lt=1)

    steps: int = setting(1000, "training", "optimiser steps", ge=1)
    batch: int = setting(4, "training", "rows of a micro-batch, each process", ge=1)
    accumulation: int = setting(1, "training", "micro-batches a step; the roles are shared out over all their rows", ge=1)
    lr: float = setting(1e-4, "training", "peak learning rate", gt=0)
    embedder_lr: float | None = setting(None, "training", "peak learning rate of the second embedder (default: lr)", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "training", "how the learning rate falls to 0")
    warmup: int = setting(0, "training", "steps over which the learning rate rises", ge=0)
    weight_decay: float = setting(0.0, "training", "AdamW's", ge=0)
    betas: Pair = setting((0.9, 0.999), "training", "AdamW's")
    clip: float = setting(1.0, "training", "gradient norm is clipped to this; 0 is off", ge=0)
    ema: float = setting(0.99, "training", "decay of the teacher's average; 0: the student is its own teacher", ge=0, lt=1)
    weights_ema: float = setting(0.0, "training", "decay of the average that is saved; 0 saves the last weights", ge=0, lt=1)

    time: Literal["two", "fold"] = setting("two", "adapter", "how times are heard: a second embedder, or one time t - r/2")
    rank: int = setting(8, "adapter", "rank of the LoRA", ge=1)
    alpha: float | None = setting(None, "adapter", "LoRA scale is alpha / rank (default: rank)", gt=0)
    rslora: bool = setting(False, "adapter", "scale by alpha / sqrt(rank)")
    dropout: float = setting(0.0, "adapter", "LoRA dropout", ge=0, lt=1)
    targets: str = setting("all", "adapter", "modules with a LoRA: a preset of the backbone (all, attention) or names, comma-separated")

    preset: str = setting("", "objective", "published constants by name: " + ", ".join(OBJECTIVES))
    roles: Weights = setting(dict(Objective().roles), "objective", "share of each role, such as one_step=1,fake=1")
    order: int = setting(2, "objective", "steps of the teacher's journey (RCGM order); 0 is flow matching")
    difference: float = setting(0.01, "objective", "time step of the consistency target")
    reach: float = setting(1.0, "objective", "how far below t the target time may lie, a share of t")
    guidance: float = setting(0.0, "objective", "how much of (conditional - unconditional) is added to the target")
    guidance_range: Pair = setting((0.0, 1.0), "objective", "only rows with low < t < high are guided")
    guide: Literal["teacher", "base"] = setting("teacher", "objective", "who guides: the (EMA) teacher or the frozen base")
    base_time: Literal["t", "folded"] = setting("t", "objective", "with --time fold, the time at which the base is asked")
    target: Literal["data", "teacher"] = setting("data", "objective", "velocity to learn: noise - data, or the guide's own")
    time_beta: Pair = setting((1.0, 1.0), "objective", "t is drawn from Beta(a, b)")
    time_scale: float = setting(1.0, "objective", "and multiplied with this")
    rectify: float = setting(0.5, "objective", "weight of the rectification against the twin")
    loss: Literal["barron", "l2"] = setting("barron", "objective", "distance")
    barron_alpha: float = setting(1.0, "objective", "Barron's shape")
    barron_scale: float = setting(1e-3, "objective", "Barron's scale")
    image_free: bool = setting(False, "objective", "train on the model's own samples, without looking at images")

    log_every: int = setting(10, "logging", "steps between lines of metrics.csv", ge=1)
    sample_every: int = setting(500, "logging", "steps between sample grids; 0 is none", ge=0)
    save_every: int = setting(500, "logging", "steps between checkpoints", ge=1)
    keep: int = setting(2, "logging", "checkpoints kept", ge=1)
    tracker: Literal["auto", "tensorboard", "wandb", "none"] = setting("auto", "logging", "auto: TensorBoard where installed")
    evaluate: int = setting(2000, "logging", "samples a stage for the table at the end (digits); 0 skips it", ge=0)

    @model_validator(mode="after")
    def _objective_is_possible(self):
        self.objective()
        return self

    def objective(self) -> Objective:
        return Objective(**{name: getattr(self, name) for name in Objective.__dataclass_fields__})

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def hash(self, *, base: bool = False) -> str:
        """Of what decides the weights: names, places and logging aside.  base: of what decides the base only."""
        groups = ("base",) if base else ("base", "training", "adapter", "objective")
        names = [n for n, f in Config.model_fields.items() if f.json_schema_extra["group"] in groups]
        values = self.model_dump(mode="json", include={"model", "seed", *([] if base else ["mode"]), *names})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def parser(mode: str) -> argparse.ArgumentParser:
    """Options for every setting; what is not given stays absent, so that it overrides nothing."""
    p = argparse.ArgumentParser(
        prog=f"python -m trainer.{mode}",
        description=f"Distil a flow model to 1-4 steps with TwinFlow: {'a LoRA' if mode == 'lora' else 'all weights'}.",
        epilog=f"Try it now, on any CPU: python -m trainer.{mode} --model digits",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    p.add_argument("--config", metavar="FILE", help="settings from a YAML or JSON file, under the names of these options")
    p.add_argument("--dry-run", action="store_true", help="print the resolved configuration and exit")
    groups: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        if name == "mode" or (mode == "full" and name in FULL_IGNORES):
            continue
        title = field.json_schema_extra["group"]
        group = groups.setdefault(title, p.add_argument_group(title) if title not in groups else None)
        flag, default = "--" + name.replace("_", "-"), _show(field.default)
        help = field.description.replace("%", "%%") + (f" [{default}]" if default else "")
        if field.annotation is bool:
            group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=help)
        elif get_origin(field.annotation) is Literal:
            group.add_argument(flag, dest=name, choices=get_args(field.annotation), help=help)
        else:
            group.add_argument(flag, dest=name, metavar=name.upper(), help=help)
    return p


FULL_IGNORES = ("time", "rank", "alpha", "rslora", "dropout", "targets", "base_time")


def _show(value) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v:g}" for k, v in value.items())
    if isinstance(value, tuple):
        return ",".join(f"{v:g}" for v in value)
    return "" if value in (None, "") else str(value)


def read_file(path: str) -> dict:
    """Settings from a YAML (or JSON) file.  Raises TrainerError."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise TrainerError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainerError(f"--config {path}: is not YAML or JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise TrainerError(f"--config {path}: holds {type(values).__name__}; expected settings, one `name: value` a line")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def resolve(mode: str, given: dict) -> Config:
    """The configuration for what the user gave (file and command line merged).  Raises TrainerError."""
    unknown = sorted(set(given) - set(Config.model_fields))
    if unknown:
        raise TrainerError(f"setting {unknown[0]!r} is unknown; expected one of {', '.join(Config.model_fields)}")
    model = given.get("model", Config.model_fields["model"].default)
    values = {"mode": mode, "name": f"{model}-{mode}"} | backbone(model).recipe(mode)
    preset = given.get("preset")
    if preset:
        if preset not in OBJECTIVES:
            raise TrainerError(f"preset is {preset!r}; expected one of {', '.join(OBJECTIVES)}")
        values |= {name: getattr(OBJECTIVES[preset], name) for name in Objective.__dataclass_fields__}
    try:
        return Config(**values | given)
    except ValidationError as error:
        raise TrainerError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first fault as one line: setting, value, what was expected."""
    fault = error.errors()[0]
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ")
    name = ".".join(str(part) for part in fault["loc"])
    return f"{name} is {fault['input']!r}; {fault['msg'][0].lower()}{fault['msg'][1:]} (see --help)"
