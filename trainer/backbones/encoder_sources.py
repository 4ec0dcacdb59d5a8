"""Where encoders come from: folders as diffusers saves a model, hub ids, ComfyUI's single files, folders of these; several by
comma, the first that has a part winning."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from twinflow.weights import WeightsError

from .. import TrainerError
from . import single_files, sources
from .packed import SAFE, is_weights, open_weights

EXPECTED = "expected a diffusers folder, a hub id, ComfyUI's single files, or a folder of these; several by comma"


def places(source: str) -> list[str]:
    """Of a list by comma or line; a path that has a comma itself is one place."""
    found: list[str] = []
    for line in source.split("\n"):
        found += [line] if Path(line).expanduser().exists() else [place.strip() for place in line.split(",")]
    return [place for place in found if place]


def path_of(place: str) -> Path:
    """Where it lies, if it lies here; a file of a hub repository is fetched."""
    if place.count("/") > 1 and is_weights(Path(place)) and sources.is_hub_id(place):
        return sources.fetch(place, ())
    return Path(place).expanduser()


def single(source: str, wanted: Mapping[str, str]) -> dict[str, Path]:
    """The single files of a source: part -> file.  wanted: part -> its kind (see single_files).  Raises TrainerError."""
    found: dict[str, Path] = {}
    for place in places(source):
        path = path_of(place)
        files = [path] if path.is_file() else [] if is_whole(path, wanted) else inside(path)
        kinds: dict[str, list[Path]] = {}
        for file in files:
            kinds.setdefault(known(file, file.stat().st_mtime_ns), []).append(file)
        for part, kind in wanted.items():
            own = kinds.get(kind, [])
            if len(own) > 1 and part not in found:
                names = ", ".join(file.name for file in own)
                raise TrainerError(
                    f"{path}: has {len(own)} files of {single_files.KINDS[kind].what} ({names}); expected one by name"
                )
            found |= {part: own[0]} if own and part not in found else {}
    return found


def inside(folder: Path) -> list[Path]:
    """The safetensors files of a folder; not those that are shards of one."""
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in SAFE) if folder.is_dir() else []


def is_whole(path: Path, wanted: Mapping[str, str]) -> bool:
    return any((path / part).is_dir() for part in wanted) or (path / "model_index.json").exists()


@lru_cache(maxsize=256)
def known(file: Path, changed: int) -> str:
    """The kind of a file; "" for what no encoder is.  changed: when it was, so that another is looked at again."""
    try:
        return single_files.kind_of(open_weights(file))
    except (TrainerError, WeightsError):  # not readable: named only where it was asked for, see check
        return ""


def check(name: str, asked: str, wanted: Mapping[str, str], parts: tuple[str, ...], channels: int) -> None:
    """Raises TrainerError for a place among `asked` (the whole of --encoders) that gives nothing to the model called name.

    channels: of its latents.
    """
    those = [single_files.KINDS[kind].what + f" of {channels} channels" * (part == "vae") for part, kind in wanted.items()]
    lacks = f"expected {', '.join(those)}" if those else f"{name} takes a diffusers folder or a hub id alone"
    for place in places(asked):
        try:
            with sources.headers_only(fetch=False):
                path = path_of(place)
        except sources.NotHere:
            continue
        if path.is_file():
            held = open_weights(path)
            kind, own = single_files.kind_of(held), single_files.channels(held)
            if kind not in wanted.values() or own not in (0, channels):
                raise TrainerError(f"--encoders {place}: holds {single_files.what_is(held)}; {lacks}")
        elif path.is_dir():
            if not any((path / part).is_dir() for part in parts) and not single(place, wanted):
                held = ", ".join(sorted({single_files.what_is(open_weights(file)) for file in inside(path)[:8]}))
                what = f"a folder with {held}" if held else f"a folder with none of {', '.join(parts)}"
                raise TrainerError(
                    f"--encoders {place}: is {what}; expected these in it, or {EXPECTED.removeprefix('expected ')}"
                )
        elif is_weights(path) or not sources.is_hub_id(place):
            raise TrainerError(f"--encoders {place}: there is no such file or folder; {EXPECTED}")


def root_of(source: str, parts: tuple[str, ...], published: str) -> Path:
    """The folder that holds these parts: of the first place that has the first of them, else the published model's."""
    for place in places(source):
        if is_weights(Path(place)) or Path(place).expanduser().is_file():
            continue
        root = sources.fetch(place, parts)
        if (root / parts[0]).is_dir():
            return root
    return sources.fetch(published, parts)
