"""Where a model's weights come from: a diffusers folder, one safetensors file, or the hub; only what is needed is fetched.

A hub source is `owner/name`, or `owner/name/` and a folder or a .safetensors or .gguf file inside that repository.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from huggingface_hub import auth_check, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from torch import Tensor, nn

from twinflow.backbones import is_second_embedder
from twinflow.plain_json import loads
from twinflow.time_embedding import SecondEmbedder
from twinflow.weights import shards

from .. import TrainerError
from ..tensors import deferred
from ..tensors.deferred import Deferred
from .packed import ENDINGS, WORK, WeightsFile, is_weights, open_weights

UNWANTED = ["*.bin", "*.pth", "*.ckpt", "*.fp16.*", "*.msgpack", "*.h5", "*.onnx*"]
SHARDS = "diffusion_pytorch_model.safetensors.index.json"
# as files name them; what is quantised in a file is unpacked to bfloat16
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "BOOL": torch.bool,
}  # fmt: skip
_mode: ContextVar[str] = ContextVar("mode", default="")  # "headers", "local headers", "late"
EXPECTED = "expected a diffusers folder, a .safetensors or .gguf file, or a hub id such as Qwen/Qwen-Image"


def class_of(name: str) -> Any:
    """Raises TrainerError where this diffusers has none."""
    if found := getattr(diffusers, name, None):
        return found
    raise TrainerError(f"diffusers {diffusers.__version__} has no {name}; expected a newer one (pip install -U diffusers)")


class NotHere(TrainerError):
    """It is at the hub, and has not been fetched."""


@contextmanager
def headers_only(*, fetch: bool) -> Iterator[None]:
    """Within it only the headers of files are read: tensors have no values.  fetch: else NotHere for what is at the hub."""
    token = _mode.set("headers" if fetch else "local headers")
    try:
        with torch.device("meta"):
            yield
    finally:
        _mode.reset(token)


@contextmanager
def late() -> Iterator[None]:
    """Within it models are loaded whose parameters wait for their values (see tensors.deferred)."""
    token = _mode.set("late")
    try:
        yield
    finally:
        _mode.reset(token)


def tensors_of(file: WeightsFile, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Those of a file; what is quantised there in dtype (None: bfloat16)."""
    if not _mode.get():
        return file.tensors(dtype=dtype)
    kinds = {name: DTYPES.get(kind, torch.uint8) for name, (kind, _) in file.entries.items()}
    kinds |= dict.fromkeys(file.packed, dtype or WORK)
    outlines = {name: torch.empty(file.shapes[name], dtype=kind, device="meta") for name, kind in kinds.items()}
    if _mode.get() != "late":
        return outlines
    return {name: Deferred(t, lambda name=name: file.tensors([name], dtype)[name]) for name, t in outlines.items()}


def is_hub_id(source: str) -> bool:
    return not Path(source).expanduser().exists() and bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[^/.~][^~]*)?", source))


def fetch(source: str, parts: tuple[str, ...], file: str | tuple[str, ...] = ENDINGS) -> Path:
    """The local file or folder of a source.  Raises TrainerError.

    Of a hub repository only these parts are fetched, subfolders or patterns with a *; or one file that ends in `file`.
    """
    if not is_hub_id(source):
        path = Path(source).expanduser()
        if not path.exists():
            raise TrainerError(f"model source {source!r}: there is no such file or folder; {EXPECTED}")
        return path
    owner, name, *inside = source.split("/")
    repository, inside = f"{owner}/{name}", "/".join(inside)
    local: dict[str, Any] = dict(local_files_only=True) if _mode.get() == "local headers" else {}
    try:
        if inside.endswith(file):
            return Path(hf_hub_download(repository, inside, **local))
        under = f"{inside}/" if inside else ""
        wanted = [f"{under}{part}" if "*" in part else f"{under}{part}/*" for part in parts] + [f"{under}model_index.json"]
        return Path(snapshot_download(repository, allow_patterns=wanted, ignore_patterns=UNWANTED, **local)) / inside
    except (OSError, HfHubHTTPError) as error:
        if local:
            raise NotHere(f"model source {source!r}: has not been fetched") from None
        raise TrainerError(f"model source {source!r}: {why_not(error)}; {EXPECTED}") from None


def ask(source: str) -> None:
    """Whether the hub has this repository, and lets us have it; nothing is fetched.  Raises TrainerError."""
    try:
        auth_check("/".join(source.split("/")[:2]))
    except (OSError, HfHubHTTPError) as error:
        raise TrainerError(f"model source {source!r}: {why_not(error)}; {EXPECTED}") from None


def why_not(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "is gated: accept its licence on huggingface.co and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "is no file or folder here, and the hub has no such repository"
    return f"is no file or folder here, and could not be fetched from the hub ({str(error).splitlines()[0]})"


def folder_of(root: Path, part: str, source: str) -> Path:
    """The folder of one part of a model: root/part, or root itself where it is that part already.  Raises TrainerError."""
    if (root / part).is_dir():
        return root / part
    if any((root / name).is_file() for name in ("config.json", SHARDS)) and not (root / "model_index.json").exists():
        return root
    raise TrainerError(f"model source {source!r}: has no {part}/ folder; expected one, as in a diffusers model")


def transformer_tensors(root: Path, source: str, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], Path | None]:
    """All tensors of the transformer by their names in the files, and the folder with its config.json if there is one.

    Those that are quantised in a file come in dtype (None: bfloat16).
    """
    files, folder = transformer_files(root, source)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= tensors_of(file, dtype)
    return tensors, folder


def transformer_files(root: Path, source: str) -> tuple[list[WeightsFile], Path | None]:
    """The transformer's files, opened, and the folder with its config.json if there is one.  Raises TrainerError."""
    if root.is_file():
        if not is_weights(root):
            raise TrainerError(
                f"model source {source!r}: is a {root.suffix or 'nameless'} file; expected .safetensors or .gguf"
            )
        files, folder = shards(root), root.parent if is_described(root.parent) else None
    else:
        folder = folder_of(root, "transformer", source)
        files, folder = weight_files(folder), folder if (folder / "config.json").is_file() else None
    return [open_weights(file, streamed=_mode.get() == "late") for file in files], folder


def described(source: str) -> Path | None:
    """The folder with the transformer's config.json, of a source that has one; None for the published model."""
    if not source:
        return None
    try:
        root = fetch(source, ("transformer/*.json",))
    except NotHere:
        return None
    folders = (root.parent,) if root.is_file() else (root / "transformer", root)
    return next((folder for folder in folders if is_described(folder)), None)


def is_described(folder: Path) -> bool:
    """Whether the folder has a transformer's config.json: that of a run, whose weights lie beside it, is none."""
    return (folder / "config.json").is_file() and not {"mode", "model"} <= read_config(folder).keys()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a diffusers folder: those in its list of shards, else the only one.  Raises TrainerError."""
    index = folder / SHARDS
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(loads(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError) as error:
            raise TrainerError(f"{index}: is no list of shards ({error}); fetch the folder again") from None
    whole = folder / "diffusion_pytorch_model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise TrainerError(
            f"{folder}: holds {len(files)} .safetensors files and no {SHARDS}; expected one file, or shards with it"
        )
    return files


def build(
    cls: Any,
    config: Mapping,
    tensors: dict[str, Tensor],
    dtype: torch.dtype | None,
    source: str,
    second: SecondEmbedder | None = None,
) -> nn.Module:
    """The transformer with exactly these tensors (diffusers' names), in dtype (None: as they are, float8 as bfloat16).

    What its class keeps in float32 is so.
    second: of a TwinFlow model, whose second time embedder is among them.  Raises TrainerError for a tensor that is missing,
    of another shape or too many.
    """
    with init_empty_weights():  # buffers and tables are real: only the parameters wait for the file
        model = cls.from_config(dict(config))
        if second is not None:
            second.install(model)
    check_fits({name: ("", tuple(t.shape)) for name, t in tensors.items()}, model, source)
    if unknown := sorted(tensors.keys() - model.state_dict().keys()):
        distilled = any(map(is_second_embedder, unknown))
        what = f"unknown to {cls.__name__}; expected its weights alone"
        if distilled:
            what = (
                "a second time embedder, so it is a TwinFlow model already; expected a plain one (--init FILE starts from it)"
            )
        raise TrainerError(f"{source}: holds {unknown[0]!r} ({len(unknown)} such), {what}")

    own_dtype = lambda name: torch.float32 if is_exact(cls, name) else dtype

    def ready(name: str) -> Tensor:
        found: Any = tensors[name]
        found = found.make() if isinstance(found, Deferred) else found
        if not is_finite(found):
            raise TrainerError(f"{source}: {name!r} holds values that are not numbers: it is damaged, fetch it again")
        return cast(found, own_dtype(name))

    waiting = dict(model.named_parameters()) if _mode.get() == "late" else {}
    for name, p in waiting.items():
        outline = cast(torch.empty_like(p, dtype=tensors[name].dtype), own_dtype(name))
        deferred.wait(p, Deferred(outline, lambda name=name: ready(name)))
    own = {name: ready(name) for name in tensors if name not in waiting}
    model.load_state_dict(own, strict=not waiting, assign=True)
    return model.eval().requires_grad_(False)


def is_exact(cls: Any, name: str) -> bool:
    """Whether the class keeps a parameter of this name in float32."""
    return not {*name.split(".")}.isdisjoint(cls._keep_in_fp32_modules or ())


def with_exact(model: Any) -> Any:
    """The model, in which what its class keeps in float32 is so."""
    for name, p in model.named_parameters():
        if is_exact(type(model), name):
            p.data = p.data.float()
    return model


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model, in which what its files hold is in this dtype; tables that it computes itself stay as they are."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.data = cast(tensor.data, dtype)
    return model


def is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    tensor = tensor if tensor.dtype.itemsize > 1 else tensor.bfloat16()
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all())  # the sum is quick, and may overflow


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    if dtype is None:
        dtype = torch.bfloat16 if tensor.dtype.itemsize == 1 else tensor.dtype
    return tensor.to(dtype)


def read_config(folder: Path) -> dict:
    """config.json of a diffusers folder.  Raises TrainerError."""
    path = folder / "config.json"
    try:
        config = loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(f"{path}: cannot be read ({error}); expected the config.json of a diffusers transformer") from None
    if not isinstance(config, dict):
        raise TrainerError(f"{path}: holds {type(config).__name__}; expected the settings of a diffusers transformer")
    return config


def check_fits(tensors: Mapping[str, tuple[str, tuple[int, ...]]], model: nn.Module, path) -> None:
    """Raises TrainerError unless a file has exactly the model's tensors, in its shapes."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise TrainerError(
                f"{path}: has no {name!r}; expected a {type(model).__name__} of this size: it is of another model"
            )
        if tensors[name][1] != shape:
            raise TrainerError(f"{path}: {name!r} is {tensors[name][1]}; expected {shape}: it is of another size")
