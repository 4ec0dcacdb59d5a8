"""The weights files of a run: one that is finished, and one for every save before it, named by its step."""

import re
import shutil
from pathlib import Path


def final(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def at_step(folder: Path, name: str, step: int) -> Path:
    """Beside the training state."""
    return folder / "checkpoints" / f"{name}-step-{step:06d}.safetensors"


def base_at_step(folder: Path, name: str, step: int) -> Path:
    """Of a base that is trained here: in a folder of its own, for its prompts or words lie beside it."""
    return folder / "checkpoints" / f"{name}-step-{step:06d}" / "base.safetensors"


def bases_by_step(folder: Path, name: str) -> dict[int, Path]:
    """Those that are there, oldest first."""
    pattern = re.compile(re.escape(name) + r"-step-(\d{6,})")
    found = ((pattern.fullmatch(path.parent.name), path) for path in (folder / "checkpoints").glob("*/base.safetensors"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def by_step(folder: Path, name: str) -> dict[int, Path]:
    """Those that are there, oldest first."""
    pattern = re.compile(re.escape(name) + r"-step-(\d{6,})\.safetensors")
    found = ((pattern.fullmatch(path.name), path) for path in (folder / "checkpoints").glob("*.safetensors"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def prune(folder: Path, name: str, keep: int) -> None:
    """Delete all but the newest `keep`; 0 keeps all."""
    if keep:
        for path in list(by_step(folder, name).values())[:-keep]:
            path.unlink()
        for path in list(bases_by_step(folder, name).values())[:-keep]:
            shutil.rmtree(path.parent)
