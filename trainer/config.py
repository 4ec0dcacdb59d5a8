"""Every setting of a training run: one flat, validated record, the same on the command line, in a file and in config.json.

Where a value comes from, the later winning: the defaults here, the recipe of the backbone for this mode, the objective
preset where one is named, the configuration file, the command line.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from twinflow.objective import Objective
from twinflow.presets import OBJECTIVES
from twinflow.roles import share_out

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

    base: Path | None = setting(
        None, "base", "weights file of a base to start from, prompts.safetensors beside it (default: train one)"
    )
    base_steps: int = setting(0, "base", "optimiser steps of the flow-matching base (digits only)", ge=0)
    base_batch: int = setting(128, "base", "rows a step", ge=1)
    base_lr: float = setting(2e-3, "base", "peak learning rate", gt=0)
    base_optimizer: Literal["adamw", "muon"] = setting("adamw", "base", "as --optimizer")
    base_matrix_lr: float | None = setting(None, "base", "as --matrix-lr (default: base_lr)", gt=0)
    base_ema: float = setting(0.99, "base", "decay of the average that becomes the base", ge=0, lt=1)

    steps: int = setting(1000, "training", "optimiser steps", ge=1)
    batch: int = setting(4, "training", "rows of a micro-batch, each process", ge=1)
    accumulation: int = setting(1, "training", "micro-batches a step; the roles are shared out over all their rows", ge=1)
    lr: float = setting(1e-4, "training", "peak learning rate", gt=0)
    optimizer: Literal["adamw", "adamw8bit", "muon"] = setting(
        "adamw", "training", "adamw8bit: a quarter of its memory; muon: for the blocks' matrices, with adamw for all else"
    )
    matrix_lr: float | None = setting(None, "training", "peak learning rate of muon's matrices (default: lr)", gt=0)
    embedder_lr: float | None = setting(None, "training", "peak learning rate of the second embedder (default: lr)", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "training", "how the learning rate falls to 0")
    warmup: int = setting(0, "training", "steps over which the learning rate rises", ge=0)
    weight_decay: float = setting(0.0, "training", "AdamW's", ge=0)
    betas: Pair = setting((0.9, 0.999), "training", "AdamW's")
    clip: float = setting(1.0, "training", "gradient norm is clipped to this; 0 is off", ge=0)
    ema: float = setting(0.99, "training", "decay of the teacher's average; 0: the student is its own teacher", ge=0, lt=1)
    weights_ema: float = setting(0.0, "training", "decay of the average that is saved; 0 saves the last weights", ge=0, lt=1)

    dtype: Literal["fp32", "bf16"] = setting(
        "bf16", "memory", "of the arithmetic, and of a LoRA's frozen base; what is trained is stored in fp32"
    )
    quantize: Literal["none", "int8", "fp8", "fp8-cast", "nf4"] = setting(
        "none", "memory", "a LoRA's frozen base in fewer bits: torchao's, diffusers' casting (no scales), bitsandbytes' (GPU)"
    )
    checkpointing: bool = setting(True, "memory", "compute the blocks again in the backward pass instead of keeping them")
    block_swap: int = setting(0, "memory", "blocks whose frozen weights rest in host memory (LoRA, with checkpointing)", ge=0)

    time: Literal["two", "fold"] = setting("two", "adapter", "how times are heard: a second embedder, or one time t - r/2")
    rank: int = setting(8, "adapter", "rank of the LoRA", ge=1)
    alpha: float | None = setting(None, "adapter", "LoRA scale is alpha / rank (default: rank)", gt=0)
    rslora: bool = setting(False, "adapter", "scale by alpha / sqrt(rank)")
    dropout: float = setting(0.0, "adapter", "LoRA dropout", ge=0, lt=1)
    targets: str = setting(
        "all", "adapter", "modules with a LoRA: a preset of the backbone (all, attention) or names, comma-separated"
    )

    preset: str = setting("", "objective", "published constants by name: " + ", ".join(OBJECTIVES))
    roles: Weights = setting(dict(Objective().roles), "objective", "share of each role, such as one_step=1,fake=1")
    order: int = setting(2, "objective", "steps of the teacher's journey (RCGM order); 0 is flow matching")
    difference: float = setting(0.01, "objective", "time step of the consistency target")
    reach: float = setting(1.0, "objective", "how far below t the target time may lie, a share of t")
    guidance: float = setting(0.0, "objective", "how much of (conditional - unconditional) is added to the target")
    guidance_range: Pair = setting((0.0, 1.0), "objective", "only rows with low < t < high are guided")
    guide: Literal["teacher", "base"] = setting("teacher", "objective", "who guides: the (EMA) teacher or the frozen base")
    base_time: Literal["t", "folded"] = setting("t", "objective", "with --time fold, the time at which the base is asked")
    target: Literal["data", "guide"] = setting("data", "objective", "velocity to learn: noise - data, or the guide's own")
    times: Literal["beta", "logit-normal"] = setting("beta", "objective", "distribution of t")
    time_beta: Pair = setting((1.0, 1.0), "objective", "of beta: a, b (1,1 is uniform)")
    time_normal: Pair = setting((0.0, 1.0), "objective", "of logit-normal: mean, deviation")
    stratified: bool = setting(False, "objective", "spread the times of a batch evenly")
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
        share_out(self.batch, self.objective().roles, parts=self.accumulation)
        return self

    @model_validator(mode="after")
    def _memory_is_possible(self):
        if self.mode == "full" and (self.quantize != "none" or self.block_swap):
            raise ValueError("--quantize and --block-swap are for frozen weights; expected none and 0, or trainer.lora")
        if self.block_swap and not self.checkpointing:
            raise ValueError("--block-swap needs --checkpointing, or the backward pass would keep all blocks on the device")
        if self.block_swap and self.quantize == "nf4":
            raise ValueError("--block-swap cannot move nf4 weights; expected --quantize int8, fp8 or fp8-cast, or no swap")
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
        own = [] if base else ["mode", "dtype", "quantize"]
        values = self.model_dump(mode="json", include={"model", "seed", *own, *names})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def resolve(mode: str, given: dict) -> Config:
    """The configuration for what the user gave (file and command line merged).  Raises TrainerError."""
    unknown = sorted(set(given) - set(Config.model_fields))
    if unknown:
        near = difflib.get_close_matches(unknown[0], Config.model_fields, 3, 0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "expected a name that --help lists, with _ for -"
        raise TrainerError(f"setting {unknown[0]!r} is unknown; {hint}")
    model = given.get("model", Config.model_fields["model"].default)
    values = {"mode": mode, "name": f"{model}-{mode}"} | backbone(model).recipe(mode)
    preset = given.get("preset")
    if preset:
        if preset not in OBJECTIVES:
            raise TrainerError(f"preset is {preset!r}; expected one of {', '.join(OBJECTIVES)}")
        values |= vars(OBJECTIVES[preset])
    try:
        return Config(**values | given)
    except ValidationError as error:
        raise TrainerError(explain(error)) from None


def read_config(folder: Path) -> Config:
    """The configuration saved beside a run.  Raises TrainerError."""
    path = folder / "config.json"
    try:
        return Config(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise TrainerError(f"{path}: is not there; expected the folder of a run") from None
    except ValidationError as error:
        raise TrainerError(f"{path}: cannot be used ({explain(error)})") from None
    except (OSError, ValueError, TypeError) as error:
        raise TrainerError(f"{path}: cannot be read ({error})") from None


def explain(error: ValidationError) -> str:
    """The first fault as one line: setting, value, what was expected."""
    fault = error.errors()[0]
    if not fault["loc"]:
        return fault["msg"].removeprefix("Value error, ")
    name = ".".join(str(part) for part in fault["loc"])
    return f"{name} is {fault['input']!r}; {fault['msg'][0].lower()}{fault['msg'][1:]} (see --help)"
