"""The pictures of an evaluation: each drawn once, whatever stops it.

The latents of a picture lie on disk from when they are drawn until it is decoded, so that memory does not grow with their
number, and the transformer and the autoencoder are never loaded together.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from twinflow.objective import Condition
from twinflow.plain_json import loads
from twinflow.presets import Sampling
from twinflow.weights import WeightsError, load, read_header, save

from .. import console
from ..backbones import backbone
from ..config.settings import Settings
from ..data import free
from ..data.prompts import Prompt
from ..runs import pictures, run_of
from ..runs.generation import shape
from ..training.meters import highest_resident
from ..weights.inference import Guided, generate, noise, ready

PORTION = 256  # latents that are decoded at once


@dataclass
class Drawn:
    """A network that is drawn with.  slug: of its folder.  scales: of guidance, by prompt.  cost: by picture, once known."""

    name: str
    slug: str
    settings: Settings
    folder: Path
    load: Any
    samplings: tuple[Sampling, ...]
    about: dict[str, Any]
    scales: list[float]
    cost: dict[Path, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """row: the number of its prompt.  key: the hash of all that decides it."""

    path: Path
    row: int
    prompt: Prompt
    seed: int
    sampling: Sampling
    key: str


@dataclass
class Gallery:
    """folder: of the pictures.  usual: (height, width), and whether it was asked for.  each: seeds of a prompt, from seed."""

    folder: Path
    prompts: list[Prompt]
    usual: tuple[tuple[int, int], bool]
    each: int
    seed: int

    def pictures(self, own: Drawn) -> list[Picture]:
        return [
            self.picture(own, s, row, k) for s in own.samplings for row in range(len(self.prompts)) for k in range(self.each)
        ]

    def picture(self, own: Drawn, sampling: Sampling, row: int, number: int) -> Picture:
        prompt = self.prompts[row]
        seed = (self.seed if prompt.seed is None else prompt.seed) + number
        decides = [
            prompt.text, prompt.size, self.usual, [str(file.path) for file in prompt.references], seed, sampling.to_json(),
            own.scales[row], own.about, str(own.settings.torch_dtype), own.settings.memory.quantize,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
        name = "-".join(filter(None, [f"{row + 1:04d}", pictures.slug(prompt.text), f"{number + 1:02d}"])) + ".png"
        return Picture(self.folder / own.slug / f"{sampling.steps}-nfe" / name, row, prompt, seed, sampling, key)

    def draw(self, networks: Sequence[Drawn], device: torch.device) -> None:
        """What is missing of all pictures.  Raises TrainerError."""
        known: dict[str, list[Condition]] = {}
        for own in networks:
            waiting = [p for p in self.pictures(own) if not self.is_drawn(own, p) and not latents_of(p)]
            if waiting:
                self.sample(own, waiting, self.conditions(own, known, device), device)
        for own in networks:
            self.decode(own, [p for p in self.pictures(own) if p.path not in own.cost], device)

    def is_drawn(self, own: Drawn, picture: Picture) -> bool:
        found = pictures.read(picture.path) if picture.path.exists() else None
        if found is None or found[1].get("key") != picture.key:
            return False
        own.cost[picture.path] = found[1]["cost"]
        return True

    def conditions(self, own: Drawn, known: dict[str, list[Condition]], device: torch.device) -> list[Condition]:
        """Of the prompts, then of the empty one beside each; encoded once for networks with the same encoders."""
        data = own.settings.data
        name = f"{own.folder if 'data' in backbone(own.settings.model).unread else ''} {data}"
        if name not in known:
            kind, rows = run_of(backbone(own.settings.model)), len(self.prompts)
            empty = {prompt.references: prompt._replace(text=data.guidance_prompt) for prompt in self.prompts}
            made = kind.conditions(own.settings, own.folder, [*self.prompts, *empty.values()], device)
            beside = dict(zip(empty, made[rows:]))
            known[name] = made[:rows] + [beside[prompt.references] for prompt in self.prompts]
        return known[name]

    def sample(self, own: Drawn, waiting: list[Picture], conditions: list[Condition], device: torch.device) -> None:
        backbone_, memory = backbone(own.settings.model), own.settings.memory
        console.loading(own.name)
        network = ready(own.load(), memory.quantize, memory.block_swap, device, backbone_.name)
        for picture in tqdm(waiting, desc=f"drawing {own.name}", unit="image"):
            cond, empty = conditions[picture.row], conditions[len(self.prompts) + picture.row]
            scale = own.scales[picture.row]
            velocity = network if scale == 1 else Guided(network, empty, scale)
            start = noise(1, shape(network.model, backbone_, picture.prompt, cond, self.usual), picture.seed).to(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            began = time.perf_counter()
            made = generate(velocity, start, cond, picture.sampling, seed=picture.seed).cpu()
            cost = dict(seconds=time.perf_counter() - began, host=highest_resident())
            if device.type == "cuda":
                cost["device"] = torch.cuda.max_memory_allocated(device)
            place = waiting_place(picture)
            place.parent.mkdir(parents=True, exist_ok=True)
            save({"latents": made}, place, {"key": picture.key, "cost": json.dumps(cost)})
        del network
        free()

    def decode(self, own: Drawn, waiting: list[Picture], device: torch.device) -> None:
        """Latents on disk to PNG files."""
        kind, facts = run_of(backbone(own.settings.model)), own.about
        for first in range(0, len(waiting), PORTION):
            part = waiting[first : first + PORTION]
            latents = [load(waiting_place(p))["latents"] for p in part]
            for picture, image in zip(part, kind.images(own.settings, latents, device)):
                cost = loads(read_header(waiting_place(picture)).metadata["cost"])
                scale = own.scales[picture.row]
                more = facts | (dict(guidance=scale) if scale != 1 else {}) | dict(key=picture.key, cost=cost)
                size = image.shape[-2], image.shape[-1]
                pictures.write(
                    image[0], picture.path, pictures.about(picture.prompt.text, picture.seed, picture.sampling, size, **more)
                )
                own.cost[picture.path] = cost
                waiting_place(picture).unlink()

    def images(self, own: Drawn, sampling: Sampling, row: int) -> Iterator[Tensor]:
        """(3, H, W) in [0, 1] of a prompt's seeds, as they are on disk."""
        for number in range(self.each):
            found = pictures.read(self.picture(own, sampling, row, number).path)
            assert found  # draw made it
            yield found[0]


def waiting_place(picture: Picture) -> Path:
    return picture.path.with_suffix(".latents.safetensors")


def latents_of(picture: Picture) -> bool:
    """Whether they are drawn and wait for being decoded."""
    place = waiting_place(picture)
    try:
        return place.exists() and read_header(place).metadata.get("key") == picture.key
    except WeightsError:
        return False
