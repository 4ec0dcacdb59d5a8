"""Every setting of a training run: one flat, validated record, the same on the command line, in a file and in config.json.

Where a value comes from, the later winning: the defaults here, the recipe of the backbone for this mode, the objective
preset where one is named, the configuration file, the command line.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
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


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
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

    source: str = setting("", "model and data", "transformer: a diffusers folder, .safetensors, or hub id [the published one]")
    encoders: str = setting("", "model and data", "text encoder and VAE: a diffusers folder or hub id [where the source is]")
    data: str = setting(
        "",
        "model and data",
        "a folder of pictures with .txt captions, .jsonl, .parquet, or .txt of prompts (--image-free); several by comma, "
        "path*3 counts thrice",
    )
    resolution: int = setting(1024, "model and data", "pictures are cut to about this squared, in pixels", ge=32)
    aspect: float = setting(2.0, "model and data", "widest and tallest bucket, long side to short; 1 is squares only", ge=1)
    aspects: str = setting("1:1", "model and data", "shapes that --image-free trains, such as 1:1,3:2,2:3")
    caption: str = setting("", "model and data", "caption of pictures that have none (default: they are skipped)")
    caption_dropout: float = setting(0.0, "model and data", "share of rows trained under the guidance prompt", ge=0, le=1)
    guidance_prompt: str = setting("", "model and data", "what guidance pushes away from; empty is the unconditional prompt")
    cache: Path | None = setting(None, "cache", "folder of encoded pictures and captions (default: <out>/cache/<model>)")
    encode_batch: int = setting(4, "cache", "pictures or captions that an encoder gets at a time", ge=1)

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
        "all", "adapter", "modules with a LoRA: all, attention, attention+mlp, or ends of names, comma-separated"
    )

    preset: str = setting("", "objective", "published constants by name: " + ", ".join(OBJECTIVES))
    roles: Weights = setting(dict(Objective().roles), "objective", "share of each role, such as one_step=1,fake=1")
    order: int = setting(2, "objective", "steps of the teacher's journey (RCGM order); 0 is flow matching")
    difference: float = setting(0.01, "objective", "time step of the consistency target")
    reach: float = setting(1.0, "objective", "how far below t the target time may lie, a share of t")
    guidance: float = setting(1.0, "objective", "CFG scale that the model learns to have built in; 1 is off", ge=1)
    guidance_ratio: float | None = setting(
        None, "objective", "the method's own number in place of the scale: what of (conditional - unconditional) is added", ge=0
    )
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

    save_dtype: Literal["auto", "fp32", "bf16"] = setting("auto", "output", "of the weights file; auto: as --dtype")

    log_every: int = setting(10, "logging", "steps between lines of metrics.csv", ge=1)
    sample_every: int = setting(500, "logging", "steps between sample grids; 0 is none", ge=0)
    prompts: str = setting(
        "", "logging", "prompts of the sample grids: a .txt, or .jsonl for an edit model [the first captions of the data]"
    )
    validation: str = setting("", "logging", "rows for the loss on what is not trained on, in the forms of --data [none]")
    validate_every: int = setting(500, "logging", "steps between validations", ge=1)
    save_every: int = setting(500, "logging", "steps between checkpoints", ge=1)
    keep: int = setting(2, "logging", "checkpoints kept", ge=1)
    tracker: Literal["auto", "tensorboard", "wandb", "none"] = setting("auto", "logging", "auto: TensorBoard where installed")
    evaluate: int = setting(2000, "logging", "samples a stage for the table at the end; 0 skips it", ge=0)

    @model_validator(mode="after")
    def _objective_is_possible(self):
        share_out(self.batch, self.objective().roles, parts=self.accumulation)
        return self

    @model_validator(mode="after")
    def _guidance_is_possible(self):
        if self.guide == "base":
            return self
        if self.target == "data" and (self.guidance_ratio or 0) >= 1:
            raise ValueError(
                f"--guidance-ratio is {self.guidance_ratio:g}, which has no fixed point when the teacher guides itself (scale "
                "1 / (1 - ratio)); expected a ratio below 1, --guidance SCALE, or --guide base"
            )
        if self.target == "guide" and self.objective().guidance != 1:
            raise ValueError(
                "--target guide makes the teacher's guided velocity its own target, which has no fixed point; "
                "expected --guide base, or --guidance 1"
            )
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
        values = {name: getattr(self, name) for name in Objective.__dataclass_fields__}
        return Objective(**values | {"guidance": self.ratio()})

    def ratio(self) -> float:
        """The objective's guidance for the scale w: w itself where the guide's velocity is the target; added to the data's,
        w - 1 of a frozen base, and 1 - 1/w of a teacher that follows the student (so that w is the fixed point)."""
        if self.guidance_ratio is not None:
            return self.guidance_ratio
        if self.target == "guide":
            return self.guidance
        return self.guidance - 1 if self.guide == "base" else 1 - 1 / self.guidance

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return DTYPES[self.dtype]

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def hash(self, *, base: bool = False) -> str:
        """Of what decides the weights: names, places and logging aside.  base: of what decides the base only."""
        groups = ("base",) if base else ("model and data", "base", "training", "adapter", "objective")
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
    known = backbone(model)
    for name in given:
        if {name, Config.model_fields[name].json_schema_extra["group"]} & set(known.unread):
            raise TrainerError(
                f"--{name.replace('_', '-')} means nothing to {model}; leave it out (see --help --model {model})"
            )
    values = {"mode": mode, "name": f"{model}-{mode}"} | known.recipe(mode)
    preset = given.get("preset")
    if preset:
        if preset not in OBJECTIVES:
            raise TrainerError(f"preset is {preset!r}; expected one of {', '.join(OBJECTIVES)}")
        published = dict(vars(OBJECTIVES[preset]))
        values |= {"guidance_ratio": published.pop("guidance")} | published
    if "guidance" in given:
        values.pop("guidance_ratio", None)
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
