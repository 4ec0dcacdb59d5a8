"""Every setting of a training run, in one validated record; flat on the command line, in files and in config.json.

What is known of an option - default, help, name, heading - stands once, at its field.  Where a value comes from, the later
winning: the defaults here (of a real model), the mode's, the recipe of the backbone, the preset, the file, the command line.
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from twinflow.backbones import all_backbones, canonical, models
from twinflow.objective import Objective
from twinflow.plain_json import loads, printable
from twinflow.presets import OBJECTIVES
from twinflow.roles import ROLES, share_out

from . import TrainerError, hints
from .backbones import backbone

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RENAMED = {"difference": "dt"}  # an older name -> the present one; read with a notice, for one version
DEVICE = re.compile(r"auto|stream|cpu|(cuda|xpu|mps)(:\d{1,3})?")
BY_MODE: dict[str, dict[str, Any]] = {
    "lora": dict(lr=1e-4),
    # no LoRA's settings are read here; these are what the first version recorded, whose runs can thus be gone on with
    "full": dict(lr=1e-5, rank=8, targets="all", keep_weights=1),
    "base": {},
}
INIT = "init_file"  # in config.json beside the settings: what --init named
SOURCES = {("data", "data"), ("logging", "validation")}  # options that hold paths
WITHOUT_EFFECT = {"cache", "encode_batch", "upscale_limit", "encoders_device"}  # of the data, on the weights
YOUNGER = {  # than the first runs, whose hashes stay
    "captions", "dataset", "trigger", "shuffle_tags", "keep_tags", "encoders_dtype", "vae_dtype", "vae_tiling", "init",
    "epochs", "time_shift",
}  # fmt: skip
READ_BY_BASE = {  # beside the section "base", of which path is for the others
    "model", "mode", "out", "name", "seed", "threads", "save_dtype",
    "log_every", "sample_every", "validate_every", "save_every", "keep", "keep_weights", "tracker", "evaluate",
}  # fmt: skip


def option(
    default: Any, help: str, *, name: str = "", metavar: str = "", top: bool = False, lora: bool = False, **limits
) -> Any:
    """A field.  name: on the command line, where not the field's.  top: of the most used.  lora: of trainer.lora only."""
    # more is a slip, and overflows somewhere
    bounds: dict[str, Any] = {"le": 2**31 - 1 if type(default) is int else 1e9} if {"ge", "gt"} & limits.keys() else {}
    return Field(
        default, description=help, json_schema_extra=dict(name=name, metavar=metavar, top=top, lora=lora), **bounds | limits
    )


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Run(Section):
    out: Path = option(Path("runs"), "folder that holds the runs")
    name: str = option("", "name of the run, of its folder and its weights file (default: <model>-<mode>)")
    seed: int = option(0, "random seed; with the step's number it decides every draw", ge=0, le=2**63 - 1)
    threads: int = option(0, "CPU threads; 0 leaves PyTorch's choice", ge=0, le=1024)


class Data(Section):
    source: str = option(
        "", "transformer to train: a diffusers folder, a .safetensors file or a hub id (default: the published model)",
        metavar="PATH",
    )  # fmt: skip
    encoders: str = option(
        "", "text encoder and VAE: a diffusers folder, a hub id, or ComfyUI's single files, several by comma (default: those "
        "of --source, or as published)", metavar="PATH",
    )  # fmt: skip
    data: str = option(
        "", "training data: a folder of images with .txt captions, a table (.jsonl, .csv, .parquet), or with --image-free a "
        ".txt file of prompts; several by comma, and path*3 counts three times", metavar="PATH", top=True,
    )  # fmt: skip
    dataset: str = option(
        "", "training data as a file, in place of --data: a TOML or YAML table for each folder, with its own path, repeats, "
        "resolution (several, too), caption, trigger, caption_dropout", metavar="FILE",
    )  # fmt: skip
    resolution: int = option(1024, "images are scaled and cut to about this many pixels squared", top=True, ge=32)
    aspect: float = option(2.0, "longest image shape to cut to, long side by short side; 1 allows squares only", ge=1)
    aspects: str = option("1:1", "image shapes (width:height) that --image-free trains, such as 1:1,3:2,2:3")
    caption: str = option("", "caption for images that have none (default: they are skipped)")
    captions: Literal["whole", "lines"] = option(
        "whole", "what a .txt file beside an image is: one caption, or one a line, of which one is drawn each time"
    )
    trigger: str = option("", "word or words put before each caption that does not contain them", metavar="WORD")
    shuffle_tags: int = option(
        1, "orders of each caption's comma-separated tags, one of which is drawn each time; 1: as written, and that many are "
        "encoded", metavar="N", ge=1, le=1000,
    )  # fmt: skip
    keep_tags: int = option(0, "tags at the front of a caption that --shuffle-tags leaves where they are", ge=0)
    upscale_limit: float = option(2.0, "images that have to be enlarged more than this are named in the report", gt=0)
    caption_dropout: float = option(0.0, "share of images trained under --guidance-prompt, not their caption", ge=0, le=1)
    guidance_prompt: str = option("", "negative prompt of the trained-in guidance (default: the model's empty prompt)")
    cache: Path | None = option(None, "folder of encoded images and captions, shared by runs (default: <out>/cache/<model>)")
    encode_batch: int = option(1, "images or captions encoded at a time, before training", ge=1)
    encoders_device: str = option(
        "auto", "where the text encoder computes: auto (the card; layers for which it has no room visit it), stream (all "
        "layers visit it), cpu, or a device such as cuda:1", metavar="DEVICE",
    )  # fmt: skip
    encoders_dtype: Literal["auto", "bf16", "fp32", "int8", "nf4"] = option(
        "auto",
        "number format of the text encoder (auto: that of --dtype); int8 by torchao, nf4 by bitsandbytes (on a GPU)",
    )
    vae_dtype: Literal["fp32", "bf16"] = option("fp32", "number format of the autoencoder while it encodes images")
    vae_tiling: bool = option(False, "encode images in overlapping squares of 512 pixels: less memory, and other latents")

    @model_validator(mode="after")
    def _one_place(self) -> "Data":
        if self.data and self.dataset:
            raise ValueError(
                f"--data {self.data} and --dataset {self.dataset}: expected one of them; a table of the file can hold the path"
            )
        if self.keep_tags and self.shuffle_tags == 1 and not self.dataset:
            raise ValueError(f"--keep-tags is {self.keep_tags}, and no tags are shuffled; expected --shuffle-tags 8, for one")
        return self


class Base(Section):
    path: Path | None = option(
        None,
        "weights file of a base model to start from, with its prompts or words beside it (default: ours, or train one)",
        name="base",
    )
    steps: int = option(0, "optimiser steps of the base model, trained by flow matching", name="base_steps", ge=0)
    batch: int = option(128, "images in a step of the base model's training", name="base_batch", ge=1)
    lr: float = option(2e-3, "peak learning rate of the base model's training", name="base_lr", gt=0)
    optimizer: Literal["adamw", "muon"] = option("adamw", "optimiser of the base model's training", name="base_optimizer")
    matrix_lr: float | None = option(
        None, "peak learning rate of muon's matrices in the base model (default: --base-lr)", name="base_matrix_lr", gt=0
    )
    ema: float = option(0.99, "decay of the weight average that becomes the base model", name="base_ema", ge=0, lt=1)


class Training(Section):
    steps: int = option(3000, "optimiser steps", top=True, ge=1)
    epochs: int | None = option(None, "passes over all rows of the data, repeats counted, in place of --steps", ge=1, le=10**6)
    batch: int = option(1, "images in a micro-batch, on each device", top=True, ge=1)
    accumulation: int = option(4, "micro-batches in a step; the roles are shared out over all their images", ge=1)
    lr: float = option(1e-4, "peak learning rate", top=True, gt=0)
    optimizer: Literal["adamw", "adamw8bit", "muon"] = option(
        "adamw", "optimiser; adamw8bit takes a quarter of adamw's memory, muon is for the matrices of the blocks, beside adamw"
    )
    matrix_lr: float | None = option(None, "peak learning rate of muon's matrices (default: --lr)", gt=0)
    embedder_lr: float | None = option(None, "peak learning rate of the second time embedder (default: --lr)", gt=0)
    schedule: Literal["cosine", "linear", "constant", "constant-with-warmup"] = option(
        "cosine", "course of the learning rate after the warm-up, which comes before each: constant, too, unless --warmup is 0"
    )
    warmup: int = option(100, "steps over which the learning rate rises to its peak", ge=0)
    time_shift: float | Literal["resolution"] = option(
        1.0, "moves the times that are drawn towards noise, t to X t / (1 + (X - 1) t), as samplers do; resolution: by the X "
        "of the model's own pipeline, for each image's size where that one does so", metavar="X|resolution",
    )  # fmt: skip
    weight_decay: float = option(0.0, "weight decay of AdamW", ge=0)
    betas: tuple[float, float] = option((0.9, 0.999), "both betas of AdamW")
    clip: float = option(1.0, "largest norm of the gradient, which is scaled down to it; 0 is off", ge=0)
    init: Path | None = option(
        None,
        "weights to start from: an adapter of a run, a LoRA of any layout, or a whole TwinFlow model, which then takes the "
        "place of the model",
        metavar="FILE",
    )
    ema: float = option(0.99, "decay of the weight average that is the teacher; 0: the student is its own teacher", ge=0, lt=1)
    weights_ema: float = option(0.0, "decay of the weight average that is saved; 0 saves the last weights", ge=0, lt=1)

    @field_validator("time_shift", mode="before")
    @classmethod
    def _shift(cls, value: Any) -> Any:
        try:
            if value == "resolution" or 0 < float(value) <= 1000:
                return value if value == "resolution" else float(value)
        except (TypeError, ValueError):
            pass
        raise ValueError(f"--time-shift is {value}; expected resolution, or a factor above 0, such as 3")

    @model_validator(mode="after")
    def _warms_up(self) -> "Training":
        if self.schedule == "constant-with-warmup" and not self.warmup:
            raise ValueError("--schedule constant-with-warmup: --warmup is 0; expected some steps, or --schedule constant")
        return self


class Memory(Section):
    dtype: Literal["fp32", "bf16"] = option(
        "bf16", "number format of the arithmetic and of a LoRA's frozen base; what is trained is kept in fp32"
    )
    quantize: Literal["none", "int8", "fp8", "fp8-cast", "nf4"] = option(
        "none", "a LoRA's frozen base in fewer bits: int8 and fp8 by torchao, fp8-cast by diffusers (without scales), nf4 by "
        "bitsandbytes (on a GPU)", lora=True,
    )  # fmt: skip
    checkpointing: bool = option(True, "gradient checkpointing: compute the blocks again in the backward pass to save memory")
    attention: str = option(
        "sdpa", "attention: sdpa (PyTorch's), or a library's by its name in diffusers, where it is installed and has a "
        "backward pass: flash, flash_varlen, _flash_3, xformers, flex, ...", metavar="NAME",
    )  # fmt: skip
    compile: bool = option(False, "compile the blocks of the transformer with torch.compile: minutes at first, faster steps")
    block_swap: int = option(
        0, "number of blocks whose frozen weights stay in host memory until needed (with --checkpointing)", lora=True, ge=0
    )


class Adapter(Section):
    time: Literal["two", "fold"] = option(
        "two",
        "time conditioning: a second time embedder (t, r), or the one folded time t - r/2 (a classic LoRA)",
        lora=True,
    )
    rank: int = option(32, "rank of the LoRA", top=True, lora=True, ge=1)
    alpha: float | None = option(None, "alpha of the LoRA, which is scaled by alpha / rank (default: --rank)", lora=True, gt=0)
    rslora: bool = option(False, "scale the LoRA by alpha / sqrt(rank)", lora=True)
    dropout: float = option(0.0, "dropout before the LoRA", lora=True, ge=0, lt=1)
    targets: str = option(
        "attention", "layers with a LoRA: all, attention, attention+mlp, or ends of module names, comma-separated", lora=True
    )


class Guidance(Section):
    preset: str = option("", "published method by name, one of " + ", ".join(OBJECTIVES) + "; sets all that defines it")
    scale: float = option(2.0, "CFG scale that is trained into the model; 1 is off", name="guidance", ge=1)
    ratio: float | None = option(
        None, "the paper's number in place of --guidance: how much of (conditional - unconditional) is added to the target",
        name="guidance_ratio", ge=0,
    )  # fmt: skip
    guide: Literal["teacher", "base"] = option("teacher", "model whose guidance is used: the teacher or the frozen base")
    base_time: Literal["t", "folded"] = option(
        "t", "time at which --guide base is evaluated with --time fold: t, or the folded time", lora=True
    )

    def objective_ratio(self, target: str) -> float:
        """Objective.guidance_ratio for the scale w: w itself where the guide's velocity is the target; added to the data's,
        w - 1 of a frozen base, and 1 - 1/w of a teacher that follows the student (so that w is the fixed point)."""
        if self.ratio is not None:
            return self.ratio
        if target == "guide":
            return self.scale
        return self.scale - 1 if self.guide == "base" else 1 - 1 / self.scale

    def cfg_scale(self, ratio: float, target: str) -> float:
        """The inverse of objective_ratio."""
        if target == "guide":
            return ratio
        return 1 + ratio if self.guide == "base" else 1 / (1 - ratio)


OBJECTIVE = {  # the options that are fields of twinflow.objective.Objective -> help
    "roles": "share of each role, such as one_step=1,multi_step=1; the roles are " + ", ".join(ROLES),
    "order": "steps in which the teacher is integrated from t to r (the paper's order N); 0 is flow matching",
    "dt": "finite time step of the consistency target",
    "reach": "farthest that the target time r lies below t, as a share of t",
    "guidance_range": "guide only samples whose t lies between these two",
    "target": "velocity to learn: data (noise - data), or guide (the guide's own velocity)",
    "times": "distribution of t: beta or logit-normal",
    "time_beta": "a and b of --times beta; 1,1 is uniform",
    "time_normal": "mean and deviation of --times logit-normal",
    "time_scale": "factor on every t that is drawn",
    "stratified": "spread the times of a batch evenly over their distribution",
    "rectify": "weight of the rectification of one-step samples against the fake twin; 0 is off",
    "loss": "distance between velocity and target: barron or l2",
    "barron_alpha": "shape of --loss barron",
    "barron_scale": "scale of --loss barron",
    "image_free": "train on the model's own one-step samples of the prompts, without images",
}


class Output(Section):
    save_dtype: Literal["auto", "fp32", "bf16"] = option("auto", "number format of the weights file; auto is that of --dtype")


class Logging(Section):
    log_every: int = option(10, "steps between two lines of metrics.csv", ge=1)
    sample_every: int = option(500, "steps between two grids of samples; 0 makes none", ge=0)
    prompts: str = option(
        "", "prompts of the sample grids (default: the first captions of the data): a .txt file, with --w --h --d --s behind "
        "a prompt, or a table of prompt, width, height, seed, steps, guidance, reference (.csv, .jsonl, .json, .toml, .yaml)",
        metavar="PATH",
    )  # fmt: skip
    sample_most: int = option(8, "prompts of --prompts that are drawn, the first ones; 0 draws all", ge=0)
    sample_base: int = option(30, "steps of the base's column in the sample grids, drawn once; 0 leaves it out", ge=0, le=1000)
    sample_minutes: float = option(5.0, "minutes after which the drawing of a sample grid ends; 0 has no end", ge=0)
    validation: str = option(
        "", "data for the validation loss, in the forms of --data or of --dataset (default: none)", metavar="PATH"
    )
    validate_every: int = option(500, "steps between two validations", ge=1)
    save_every: int = option(500, "steps between two checkpoints", ge=1)
    keep: int = option(2, "number of checkpoints kept, to go on from", ge=1)
    keep_weights: int = option(0, "number of weights files kept, one of which is written with every checkpoint; 0: all", ge=0)
    tracker: Literal["auto", "tensorboard", "wandb", "none"] = option(
        "auto", "where the log goes, beside metrics.csv; auto is TensorBoard where it is installed"
    )
    evaluate: int = option(2000, "samples for each line of the quality table at the end; 0 skips it", ge=0)


class Settings(Section):
    """The resolved settings of one run.  A section's description is its heading in --help."""

    model: str = option("digits", "model to train: " + ", ".join(models()), metavar="NAME", top=True)
    mode: Literal["lora", "full", "base"] = option("lora", "what is trained; set by the entry point")
    run: Run = Field(Run(), description="run")
    data: Data = Field(Data(), description="model and data")
    base: Base = Field(Base(), description="base model, where it is trained here")
    training: Training = Field(Training(), description="training")
    memory: Memory = Field(Memory(), description="memory")
    adapter: Adapter = Field(Adapter(), description="LoRA")
    guidance: Guidance = Field(Guidance(), description="guidance")
    objective: Objective = Field(Objective(), description="objective", validate_default=True)
    output: Output = Field(Output(), description="output")
    logging: Logging = Field(Logging(), description="logging")

    @field_validator("objective")
    @classmethod
    def _with_guidance(cls, objective: Objective, info: ValidationInfo) -> Objective:
        guidance = info.data.get("guidance")  # absent where it is at fault itself
        ratio = guidance.objective_ratio(objective.target) if guidance else 0.0
        return dataclasses.replace(objective, guidance_ratio=ratio)

    @model_validator(mode="after")
    def _roles_fit(self) -> "Settings":
        share_out(self.training.batch, self.objective.roles, parts=self.training.accumulation)
        return self

    @model_validator(mode="after")
    def _guidance_has_a_fixed_point(self) -> "Settings":
        if self.guidance.guide == "base":
            return self
        ratio = self.objective.guidance_ratio
        if self.objective.target == "data" and ratio >= 1:
            raise ValueError(
                f"--guidance-ratio is {ratio:g}, which has no fixed point when the teacher guides itself (scale "
                "1 / (1 - ratio)); expected a ratio below 1, --guidance SCALE, or --guide base"
            )
        if self.objective.target == "guide" and ratio != 1:
            raise ValueError(
                "--target guide makes the teacher's guided velocity its own target, which has no fixed point; "
                "expected --guide base, or --guidance 1"
            )
        return self

    @model_validator(mode="after")
    def _encoders_are_possible(self) -> "Settings":
        device, dtype = self.data.encoders_device, self.data.encoders_dtype
        if not DEVICE.fullmatch(device):
            raise ValueError(f"--encoders-device is {device!r}; expected auto, stream, cpu, or a device such as cuda or cuda:1")
        if device == "stream" and dtype in ("int8", "nf4"):
            raise ValueError(
                f"--encoders-device stream cannot move {dtype} weights; expected --encoders-dtype bf16, or another device"
            )
        if device == "cpu" and dtype == "nf4":
            raise ValueError("--encoders-dtype nf4 needs an NVIDIA GPU; expected int8, bf16 or fp32 with --encoders-device cpu")
        return self

    @model_validator(mode="after")
    def _shift_is_known(self) -> "Settings":
        if self.training.time_shift == "resolution" and getattr(backbone(self.model), "shift", None) is None:
            raise ValueError(f"--time-shift resolution: {self.model} has no pipeline that shifts; expected a factor, such as 3")
        return self

    @model_validator(mode="after")
    def _memory_is_possible(self) -> "Settings":
        memory = self.memory
        if self.mode == "full" and (memory.quantize != "none" or memory.block_swap):
            raise ValueError("--quantize and --block-swap are for frozen weights; expected none and 0, or trainer.lora")
        if memory.block_swap and not memory.checkpointing:
            raise ValueError("--block-swap needs --checkpointing, or the backward pass would keep all blocks on the device")
        if memory.block_swap and memory.compile:
            raise ValueError("--block-swap moves weights that --compile expects to stay; expected one of them")
        if memory.block_swap and memory.quantize == "nf4":
            raise ValueError("--block-swap cannot move nf4 weights; expected --quantize int8, fp8 or fp8-cast, or no swap")
        return self

    @property
    def folder(self) -> Path:
        return self.run.out / self.run.name

    @property
    def cfg_scale(self) -> float:
        """The CFG scale that the objective trains in."""
        return self.guidance.cfg_scale(self.objective.guidance_ratio, self.objective.target)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return DTYPES[self.memory.dtype]

    @property
    def base_dtype(self) -> torch.dtype:
        """Of the base's file, where it is trained here."""
        return torch.bfloat16 if self.mode == "base" and self.output.save_dtype == "bf16" else torch.float32

    def flat(self) -> dict[str, Any]:
        """Option name -> JSON value: what config.json holds."""
        values = self.model_dump(mode="json")
        return {name: values[o.section][o.field] if o.section else values[o.field] for name, o in OPTIONS.items()}

    def hash(self, *, base: bool = False) -> str:
        """Of what decides the weights: names, places and logging aside.  base: of what decides the base model only."""
        base = base or self.mode == "base"
        sections = ("base",) if base else ("data", "base", "training", "adapter", "guidance", "objective")
        names = {"model", "seed"} | (set() if base else {"mode", "dtype", "quantize"})
        names |= {name for name, o in OPTIONS.items() if o.section in sections} - WITHOUT_EFFECT
        older = {new: old for old, new in RENAMED.items()}  # so that a renamed option changes no hash
        values = self.flat()
        names -= {name for name in YOUNGER if values[name] == OPTIONS[name].default}  # and a new one only where it is used
        values = {older.get(name, name): value for name, value in values.items() if name in names}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting as the user meets it.  section: "" for Settings' own fields.  kind: the field's type."""

    section: str
    field: str
    kind: Any
    default: Any
    help: str
    metavar: str = ""
    top: bool = False
    lora: bool = False

    @property
    def is_path(self) -> bool:
        return self.metavar in ("PATH", "FILE") or Path in {self.kind, *get_args(self.kind)}

    def parse(self, value: Any) -> Any:
        """Tables and pairs may be text: "one_step=1,fake=2" and "0,1"; data may be a list of paths, and prompts of texts."""
        if (self.section, self.field) in SOURCES and isinstance(value, list) and all(isinstance(v, str) for v in value):
            return ",".join('"' + path.replace('"', '""') + '"' if set(path) & set(',"') else path for path in value)
        if (self.section, self.field) == ("logging", "prompts") and isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        if value is False and "none" in get_args(self.kind):  # YAML's off and no
            return "none"
        origin = get_origin(self.kind)
        if not (isinstance(value, str) and isinstance(origin, type) and issubclass(origin, (Mapping, tuple))):
            return value
        items = [item for item in value.replace(" ", "").split(",") if item]
        if origin is tuple:
            return tuple(items)
        return {name: value if equals else 1 for name, equals, value in (item.partition("=") for item in items)}


def _options(record: type[Section], section: str = "") -> dict[str, Option]:
    found = {}
    for name, field in record.model_fields.items():
        if field.annotation is Objective:
            kinds = get_type_hints(Objective)
            found |= {n: Option(name, n, kinds[n], getattr(Objective(), n), help) for n, help in OBJECTIVE.items()}
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= _options(field.annotation, name)
        else:
            assert isinstance(field.json_schema_extra, dict) and field.description  # as option() makes it
            extra: dict[str, Any] = {**field.json_schema_extra}
            own = extra.pop("name") or name
            found[own] = Option(section, name, field.annotation, field.default, field.description, **extra)
    return found


OPTIONS: dict[str, Option] = _options(Settings)  # by name; with - for _ on the command line

# What a preset sets beside the objective, each to the default here; and what bears on the method, but is the recipe's.
METHOD, BESIDE = ("guide", "base_time", "ema"), ("time", "weights_ema", "caption_dropout", "guidance_prompt")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def notice(line: str) -> None:
    print(printable(line), file=sys.stderr)


def current(given: Mapping[str, Any], notify: Callable[[str], None] = notice) -> dict[str, Any]:
    """Settings with renamed ones under their present names."""
    for old in RENAMED.keys() & given.keys():
        notify(f"{flag(old)} is called {flag(RENAMED[old])} now; the old name will go with the next version")
    return {RENAMED.get(name, name): value for name, value in given.items()}


def meaningless(mode: str, model: str) -> dict[str, str]:
    """The options that nothing reads, each with what does not read it; model: "" for whichever."""
    unread = set(backbone(model).unread) if model else set()
    if mode == "base":
        read = READ_BY_BASE | {name for name, o in OPTIONS.items() if o.section == "base"} - {"base"}
        return {name: "trainer.base, which trains a base" for name in OPTIONS if name not in read}
    return {name: f"trainer.{mode}, which trains all weights" for name, o in OPTIONS.items() if mode == "full" and o.lora} | {
        name: model for name, o in OPTIONS.items() if {name, o.section} & unread
    }


def resolve(mode: str, given: Mapping[str, Any], notify: Callable[[str], None] = notice) -> Settings:
    """The settings for what the user gave (file and command line merged), by option name.  Raises TrainerError.

    notify: is given a line on every setting that is not what the words that were given lead to expect.
    """
    given = current(given, notify)
    model = known_model(given.get("model", OPTIONS["model"].default))
    known, given = backbone(model), dict(given) | ({"model": model} if "model" in given else {})
    if wrong := {name: why for name, why in meaningless(mode, model).items() if name in given}:
        name, why = next(iter(wrong.items()))
        raise TrainerError(f"{flag(name)} means nothing to {why}; leave it out (see --help --model {model})")
    if given.get("epochs") is not None and "steps" in given:
        raise TrainerError(f"--steps {given['steps']} and --epochs {given['epochs']}: expected one of them")
    recipe = BY_MODE[mode] | known.recipe(mode)
    values = {"mode": mode, "name": f"{model}-{mode}"} | recipe
    if preset := given.get("preset"):
        values |= published(preset)
        for name in BESIDE:
            if name not in given and (own := recipe.get(name, OPTIONS[name].default)) != OPTIONS[name].default:
                notify(
                    f"--preset {preset}: {flag(name)} stays {own} (recipe of {model}); the method's is "
                    f"{OPTIONS[name].default}; set {flag(name)} to change it"
                )
    if "guidance" in given:
        values.pop("guidance_ratio", None)
    return from_flat(values | given)


def known_model(name: str) -> str:
    """The model's name, also for an alias or a repository of it.  Raises TrainerError."""
    name = canonical(name) if isinstance(name, str) else name
    hub = {own: repository for known in all_backbones().values() for own, repository in known.models.items()}
    if not isinstance(name, str) or name not in hub:
        raise TrainerError(hints.model(str(name), hub))
    return name


def published(preset: str) -> dict[str, Any]:
    """All that defines a published method.  Raises TrainerError."""
    if not isinstance(preset, str) or preset not in OBJECTIVES:
        raise TrainerError(f"preset is {preset!r}; expected one of {', '.join(OBJECTIVES)}")
    return {name: OPTIONS[name].default for name in METHOD} | dict(vars(OBJECTIVES[preset]))


def from_flat(values: Mapping[str, Any]) -> Settings:
    """The record of settings by option name, the others at their defaults.  Raises TrainerError."""
    if unknown := sorted(values.keys() - OPTIONS.keys()):
        raise TrainerError(hints.option(unknown[0], values[unknown[0]], OPTIONS, flag=False))
    nested: dict[str, Any] = {}
    for name, value in values.items():
        o = OPTIONS[name]
        (nested.setdefault(o.section, {}) if o.section else nested)[o.field] = o.parse(value)
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise TrainerError(explain(error)) from None


def read_settings(folder: Path, notify: Callable[[str], None] = lambda line: None) -> Settings:
    """The settings saved beside a run, of this, an older or a newer version.  Raises TrainerError.

    notify: is given a line on what this version does not know, which is left out.
    """
    path = folder / "config.json"
    try:
        values = loads(path.read_text("utf-8"))
        values.pop(INIT, None)
        played = {role for role, weight in values.get("roles", {}).items() if weight}
        if "difference" in values and (values["reach"] < 1 or not {"one_step", "fake"} <= played):
            values["rectify"] = 0.0  # of the first version, which did not refuse what cannot be rectified
        values = current(values, notify=lambda line: None)
        foreign = [name for name in values if name not in OPTIONS or not is_known(name, values[name])]
        if foreign:
            told = ", ".join(f"{name}: {values[name]!r}" for name in foreign)
            notify(f"{path}: holds {told}, which this version does not know; left out")
        return from_flat({name: value for name, value in values.items() if name not in foreign})
    except FileNotFoundError:
        raise TrainerError(f"{path}: is not there; expected the folder of a run") from None
    except TrainerError as error:
        raise TrainerError(f"{path}: cannot be used ({error})") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainerError(f"{path}: cannot be read ({error})") from None


def is_known(name: str, value: Any) -> bool:
    """Whether an option that is one of several words has a value that is one of them."""
    choices = get_args(OPTIONS[name].kind) if get_origin(OPTIONS[name].kind) is Literal else ()
    return not choices or value in choices


def explain(error: ValidationError) -> str:
    """The first fault as one line: setting, value, what was expected."""
    fault = error.errors()[0]
    if fault["type"] == "value_error":
        return fault["msg"].removeprefix("Value error, ")
    parts = [str(part) for part in fault["loc"]]
    names: dict[tuple[str, ...], str] = {}
    names |= {(o.section, o.field) if o.section else (o.field,): name for name, o in OPTIONS.items()}
    own = next((n for n in (2, 1) if tuple(parts[:n]) in names), 0)
    known = names.get(tuple(parts[:own]), "")
    if fault["type"] in ("missing", "too_long"):  # only pairs can have too few or too many
        usual = ",".join(f"{number:g}" for number in OPTIONS[known].default)
        return f"{known} is {','.join(map(str, fault['input']))}; expected two numbers, such as {usual}"
    name = ".".join([known, *parts[own:]]).strip(".")
    if fault["type"] == "string_type":
        return f"{name} is {fault['input']!r}; expected a text: in a file in quotes, or left out"
    if name == "resolution" and fault["type"] == "int_parsing":
        return (
            f"resolution is {fault['input']!r}; expected one number, such as 1024: images keep their shapes, and have about as "
            "many pixels as a square of that side (several resolutions are for a --dataset file)"
        )
    return f"{name} is {fault['input']!r}; {fault['msg'][0].lower()}{fault['msg'][1:]} (see --help)"
