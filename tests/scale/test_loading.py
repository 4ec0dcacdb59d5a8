"""A model that is sharded is never whole in a process: the host memory that loading takes, against the plan's."""

import dataclasses
import sys

import diffusers
import pytest
import torch

from trainer.config.flat import from_flat
from trainer.plan import memory

from ..backbones.forms import written
from .test_distributed import together
from .tiny import BACKBONES, QWEN

LARGE = QWEN | dict(attention_head_dim=64, num_attention_heads=8, num_layers=6, axes_dims_rope=(16, 24, 24))
SLACK = 56 * 2**20  # of the allocator, and of the kernel's count, which is behind on a busy machine


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_no_process_holds_more_than_its_part(tmp_path, processes=2):
    torch.manual_seed(0)
    for name, config in (("small", QWEN), ("large", LARGE)):
        model = diffusers.QwenImageTransformer2DModel(**config).bfloat16()
        model.save_pretrained(tmp_path / name / "transformer", max_shard_size="50MB")
    written({name: t for name, t in model.state_dict().items()}, "weight_scale", tmp_path / "fp8.safetensors")
    whole = 4 * sum(p.numel() for p in model.parameters())
    known = BACKBONES["qwen-image"][0]
    backbone = known.sized(model)
    backbone.size = dataclasses.replace(backbone.size, text=0.0)
    settings = from_flat(dict(mode="full", model="qwen-image"))
    planned = memory.plan(backbone, settings, processes).host_peak - memory.PROGRAMS
    said = together(tmp_path, "large", "fp8.safetensors", worker="load_worker.py", count=processes)
    for text in said:
        rows = [line.split() for line in text.splitlines() if line.startswith(("late ", "whole "))]
        assert len(rows) == 3
        for how, source, *numbers in rows:
            grown, held = map(int, numbers)
            mib = [round(n / 2**20) for n in (grown, held, planned, whole)]
            print(f"{processes} processes, {how} {source}: grown by {mib[0]} MiB; part {mib[1]}, plan {mib[2]}, whole {mib[3]}")
            assert held == pytest.approx(whole / processes, rel=0.02)
            assert grown < held + planned + SLACK if how == "late" else grown > whole
