"""The weights files of a run: one that is finished, and one for every save before it, named by its step."""

import re
from pathlib import Path


def final(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def at_step(folder: Path, name: str, step: int) -> Path:
    """Beside the training state."""
    return folder / "checkpoints" / f"{name}-step-{step:06d}.safetensors"


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
