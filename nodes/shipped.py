"""Weights that come with the pack, in its own loaders only: no folder of theirs is made known to core.

Whatever lies in twinflow/models/<family> is listed, by being there, under a name that no file of a user's can have:
"TwinFlow emoji: base".
"""

from functools import lru_cache
from pathlib import Path

from ..twinflow.weights import WeightsError
from .model_files import is_own_base, open_file

FOLDER = Path(__file__).parents[1] / "twinflow" / "models"
MODEL, BASE, ADAPTER, OTHER = "model", "base", "adapter", "other"


def models() -> list[str]:
    """The names of whole models, those that need few steps first."""
    return [name for kind in (MODEL, BASE) for name in named(kind)]


def adapters() -> list[str]:
    return named(ADAPTER)


def path_of(name: str) -> str | None:
    """The file behind a name; None for one that is not of this kind, which is a file's in a folder of models."""
    return next((str(path) for path in files() if name_of(path) == name), None)


def named(kind: str) -> list[str]:
    return [name_of(path) for path in files() if kind_of(path, path.stat().st_mtime_ns) == kind]


def files() -> list[Path]:
    return sorted(FOLDER.glob("*/*.safetensors"))


def name_of(path: Path) -> str:
    return f"TwinFlow {path.parent.name}: {path.stem}"


@lru_cache
def kind_of(path: Path, changed: int) -> str:
    """changed: when the file was; it is looked at again after that."""
    try:
        file = open_file(str(path))
    except WeightsError:  # listed, so that whoever chooses it is told what is wrong with it
        return MODEL
    if file.backbone is not None:
        return BASE if is_own_base(file) else MODEL
    return ADAPTER if file.lora or file.second else OTHER
