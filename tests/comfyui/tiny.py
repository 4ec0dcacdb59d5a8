"""Tiny models made from the goldens' weights, and the prompts and noise that go with them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

NAMES = {"qwen": "Qwen-Image", "zimage": "Z-Image", "sd3": "SD3.5", "flux2": "FLUX.2 klein", "krea2": "Krea 2"}
NAMES |= {"qwen21": "Qwen-Image-2.1"}
NEEDED = {"zimage": (0, 3, 74), "flux2": (0, 14), "krea2": (0, 26), "qwen21": (0, 37)}  # ComfyUI's version
SECOND = ("time_text_embed_2.", "t_embedder_2.", "time_guidance_embed_2.", "time_in_2.", "time_embed_2.", "tmlp_2.")


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

    def latents(self, rows: int) -> tuple[int, ...]:
        """The shape of ComfyUI's latents of the golden's size."""
        channels, *size = self.tensors["x"].shape[1:]
        return rows, channels, *([1] if self.name in ("qwen", "krea2") else []), *size

    def conditioning(self, rows: slice = slice(0, 1)):
        """The goldens' prompts of these rows, as core's encoders give them."""
        return [[self.tensors["c0"][rows], {"pooled_output": self.tensors["c1"][rows] if self.name == "sd3" else None}]]


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
    return [name for name in NAMES if comfy_version >= NEEDED.get(name, ())]


def need_backbone(name: str, version: tuple[int, ...]) -> None:
    if name not in backbones(version):
        here, needed = (".".join(map(str, numbers)) for numbers in (version, NEEDED[name]))
        pytest.skip(f"ComfyUI {here} has no {NAMES[name]}, or none that the pack builds on: {needed} has")


class FixedNoise:
    """A NOISE of given numbers."""

    def __init__(self, noise: torch.Tensor, seed: int = 0):
        self.noise, self.seed = noise, seed

    def generate_noise(self, latent):
        return self.noise.reshape(latent["samples"].shape)


def digits(seed: int = 0, *, width: int = 64, head: int = 32, layers: int = 2, text: int = 64) -> dict[str, torch.Tensor]:
    """Random weights of a 3-channel Qwen-Image such as the trainer's digits model: plain, without a second embedder."""
    g = torch.Generator().manual_seed(seed)
    out = {}

    def linear(name, rows, columns):
        out[f"{name}.weight"] = torch.randn(rows, columns, generator=g) / columns**0.5
        out[f"{name}.bias"] = torch.randn(rows, generator=g) * 0.02

    linear("img_in", width, 12)
    linear("txt_in", width, text)
    out["txt_norm.weight"] = torch.ones(text)
    linear("time_text_embed.timestep_embedder.linear_1", width, 256)
    linear("time_text_embed.timestep_embedder.linear_2", width, width)
    for i in range(layers):
        block = f"transformer_blocks.{i}."
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            linear(f"{block}attn.{name}", width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            out[f"{block}attn.{name}.weight"] = torch.ones(head)
        for side in ("img", "txt"):
            linear(f"{block}{side}_mod.1", 6 * width, width)
            linear(f"{block}{side}_mlp.net.0.proj", 4 * width, width)
            linear(f"{block}{side}_mlp.net.2", width, 4 * width)
    linear("norm_out.linear", 2 * width, width)
    linear("proj_out", 12, width)
    return out


def second_embedder(weights: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """A random second time embedder of the shapes of the first (Qwen-Image names)."""
    g = torch.Generator().manual_seed(seed)
    first = {k: v for k, v in weights.items() if k.startswith("time_text_embed.")}
    return {
        k.replace("embed.", "embed_2.", 1): torch.randn(v.shape, generator=g) / v.shape[-1] ** 0.5 for k, v in first.items()
    }


def lora(weights: dict[str, torch.Tensor], modules: tuple[str, ...], rank: int = 2, seed: int = 2) -> dict[str, tuple]:
    """module -> (lora_A, lora_B) for every 2-D weight whose name ends in one of the modules."""
    g = torch.Generator().manual_seed(seed)
    found = {
        k[: -len(".weight")]: v.shape
        for k, v in weights.items()
        if k.endswith(tuple(f"{m}.weight" for m in modules)) and v.ndim == 2
    }
    return {
        k: (torch.randn(rank, s[1], generator=g) * 0.3, torch.randn(s[0], rank, generator=g) * 0.3) for k, s in found.items()
    }


def save(tensors: dict[str, torch.Tensor], path: Path, metadata=None) -> str:
    """The name of the file, once it is written."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path.name


def native(golden: Golden, comfy) -> dict[str, torch.Tensor]:
    """The golden's weights in float32, under ComfyUI's names."""
    layout = comfy.part("twinflow.backbones").find(golden.weights).layout
    return layout.to_native({k: v.float() for k, v in golden.weights.items()})


def sampled(run, model, golden: Golden, preset: str = "4 steps") -> torch.Tensor:
    """The latent that a tiny model gives for the golden's first prompt."""
    size = golden.latents(1)
    inputs = dict(positive=golden.conditioning(), latent_image={"samples": torch.zeros(size)}, preset=preset)
    return run("TwinFlowSampleLatent", model=model, **inputs, seed=3, cfg=1.0, denoise=1.0)[0]["samples"]


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    """The difference over the spread of the reference b."""
    return float((a.float() - b.float()).square().mean().sqrt() / b.float().std())
