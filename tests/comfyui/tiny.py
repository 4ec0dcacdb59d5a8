"""Tiny models made from the goldens' weights, and the prompts and noise that go with them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

NAMES = {"qwen": "Qwen-Image", "zimage": "Z-Image", "sd3": "SD3.5"}
SECOND = ("time_text_embed_2.", "t_embedder_2.")


@dataclass
class Golden:
    name: str
    cases: dict
    tensors: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    path: Path

    @property
    def plain(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.weights.items() if not k.startswith(SECOND)}

    @property
    def second(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.weights.items() if k.startswith(SECOND)}

    def write(
        self, folder: Path, tensors: dict[str, torch.Tensor], *, prefix: str = "", name: str = "model", metadata=None
    ) -> str:
        """The name of a new file with these tensors."""
        file = f"{self.name}_{name}.safetensors"
        save_file({prefix + k: v.contiguous() for k, v in tensors.items()}, folder / file, metadata)
        return file

    def conditioning(self, rows: slice = slice(0, 1)):
        """The goldens' prompts of these rows."""
        extra = {"pooled_output": self.tensors["c1"][rows]} if self.name == "sd3" else {}
        return [[self.tensors["c0"][rows], extra]]


def read(folder: Path, name: str) -> Golden:
    path = folder / f"{name}_weights.safetensors"
    return Golden(
        name,
        json.loads((folder / f"{name}.json").read_text()),
        load_file(folder / f"{name}.safetensors"),
        load_file(path),
        path,
    )


def backbones(comfy_version: tuple[int, ...]) -> list[str]:
    return [name for name in NAMES if name != "zimage" or comfy_version >= (0, 3, 74)]


def need_backbone(name: str, version: tuple[int, ...]) -> None:
    if name not in backbones(version):
        pytest.skip(f"ComfyUI {'.'.join(map(str, version))} has no Z-Image (0.3.74 brought it)")


class FixedNoise:
    """A NOISE of given numbers."""

    def __init__(self, noise: torch.Tensor, seed: int = 0):
        self.noise, self.seed = noise, seed

    def generate_noise(self, latent):
        return self.noise.reshape(latent["samples"].shape)
