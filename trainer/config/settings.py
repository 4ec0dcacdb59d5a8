"""The settings of one run in one record, what is checked of them across sections, and the table of their options."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator

from twinflow.backbones import models
from twinflow.objective import Objective
from twinflow.roles import share_out

from ..backbones import backbone
from .options import RENAMED, Option, options_of
from .sections import Adapter, Base, Data, Guidance, Logging, Memory, Output, Run, Section, Training, option

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICE = re.compile(r"auto|stream|cpu|(cuda|xpu|mps)(:\d{1,3})?")
WITHOUT_EFFECT = {"cache", "encode_batch", "upscale_limit", "encoders_device"}  # of the data, on the weights
YOUNGER = {  # than the first runs, whose hashes stay
    "captions", "dataset", "trigger", "shuffle_tags", "keep_tags", "encoders_dtype", "vae_dtype", "vae_tiling", "init",
    "epochs", "time_shift",
}  # fmt: skip


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


OPTIONS: dict[str, Option] = options_of(Settings)  # by name; with - for _ on the command line
