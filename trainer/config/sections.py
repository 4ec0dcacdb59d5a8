"""What a setting is: a field with its default, help and limits, and the sections that the fields stand in."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from twinflow.presets import OBJECTIVES
from twinflow.roles import ROLES


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
