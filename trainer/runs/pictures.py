"""Single pictures as PNG files that say how they were drawn.

Two texts in each: `parameters`, as picture viewers and other programs read it, and `twinflow`, all settings as JSON.  Both are
UTF-8 (iTXt), whatever the prompt.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from twinflow import __version__
from twinflow.atomic import write_atomically
from twinflow.plain_json import loads
from twinflow.presets import Sampling


def about(prompt: str, seed: int, sampling: Sampling, size: tuple[int, int], **more: Any) -> dict[str, Any]:
    """What decides a picture; size (height, width)."""
    return {
        "prompt": prompt, "seed": seed, "width": size[1], "height": size[0], "steps": sampling.steps,
        "sampler": sampling.to_json(), **more, "version": __version__,
    }  # fmt: skip


def parameters(facts: dict[str, Any]) -> str:
    """One text, as AUTOMATIC1111's web UI writes it."""
    size = f"{facts['width']}x{facts['height']}"
    shown = {"Steps": facts["steps"], "Sampler": f"TwinFlow {facts['sampler']['style']}", "Seed": facts["seed"], "Size": size}
    shown |= {"CFG scale": facts["guidance"]} if "guidance" in facts else {}
    shown |= {"Model hash": facts["hash"][:10], "Model": Path(facts["weights"]).stem} if "hash" in facts else {}
    return f"{facts['prompt']}\n" + ", ".join(f"{name}: {value}" for name, value in shown.items())


def write(image: Tensor, path: Path, facts: dict[str, Any]) -> None:
    """image: (1 or 3, H, W) in [0, 1]."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", parameters(facts))
    info.add_itxt("twinflow", json.dumps(facts, ensure_ascii=False))
    pixels = (image.float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    made = Image.fromarray(np.repeat(pixels, 3 // pixels.shape[2], axis=2))
    write_atomically(path, lambda temporary: made.save(temporary, format="PNG", pnginfo=info))


def read(path: Path) -> tuple[Tensor, dict[str, Any]] | None:
    """A picture (3, H, W) in [0, 1] and how it was drawn; None where the file is none of ours, or damaged."""
    try:
        with Image.open(path) as image:
            facts = loads(getattr(image, "text", {})["twinflow"])
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255, facts
    except (OSError, ValueError, KeyError, SyntaxError):
        return None


def slug(text: str) -> str:
    """A prompt in the letters that every file system takes."""
    return "-".join(re.findall("[a-z0-9]+", text.lower()))[:40].strip("-")
