"""Files in other layouts and dtypes:  python -m trainer.convert SOURCE --to comfyui --output FILE   (all options: --help)"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinflow.adapter import places_of
from twinflow.alphas import Alphas
from twinflow.atomic import new_folder
from twinflow.backbones import find, is_second_embedder, of_modules
from twinflow.gguf_header import read_gguf, with_architecture
from twinflow.layouts import bare, last_block
from twinflow.lora_names import is_part, sort
from twinflow.quantised import MARK
from twinflow.weights import WeightsError, load, read_header

from . import TrainerError
from .backbones import Backbone, backbone
from .backbones.packed import SAFE
from .tensors.deferred import Deferred
from .tools import loras
from .tools.command import DTYPES, Parser, cast, check_output, ran, target, written
from .tools.states import is_state, of_state
from .tools.stored import Stored, backbone_of, open_model, refuse_run, trained
from .weights import lora
from .weights.lora_file import read_adapter
from .weights.quantise import layers

FP8 = torch.float8_e4m3fn
TARGETS = ("comfyui", "diffusers", "kohya", "gguf")
FOLDER_FILE = "diffusion_pytorch_model.safetensors"


def main(argv: list[str] | None = None) -> int:
    return ran(convert, argv)


def parser() -> Parser:
    p = Parser(
        "convert",
        "Write a model, a LoRA or an adapter in another layout or number format, a tensor at a time. Every tensor of the "
        "source is accounted for: one that is not known is an error that names it.",
        (
            "TwinFlow-Qwen-Image/ --output models/twinflow_qwen_image.safetensors          # a diffusers folder to one file",
            "z_image_turbo_bf16.safetensors --to diffusers --output z-image/transformer    # and back, with config.json",
            "model-00001-of-00009.safetensors --dtype fp8 --output model_fp8.safetensors   # all shards; ComfyUI's scaled fp8",
            "their_lora.safetensors --model qwen-image --to diffusers --output own.safetensors",
            "runs/x/checkpoints/step-00000400.safetensors --output x-400.safetensors       # a training state to weights",
            "twinflow-Q4_K_M.gguf --to gguf --output fixed.gguf                            # a wrong architecture field",
        ),
    )
    p.add_argument(
        "source", help="a file (safetensors or GGUF; one shard stands for all), a diffusers folder, a hub id, a training state"
    )
    p.add_argument(
        "--to", choices=TARGETS, default="comfyui",
        help="comfyui: one file that its stock loader takes; diffusers: a transformer folder with config.json, or a LoRA for "
        "load_lora_weights; kohya: a LoRA with lora_unet_ names; gguf: the same GGUF with the architecture field that the keys "
        "call for (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--base", metavar="SOURCE", help="of a LoRA: the model it is for (default: the published one)")
    p.add_argument("--keep-unknown", action="store_true", help="copy tensors that are not known as they are")
    p.add_model()
    p.add_dtype("fp8")
    p.add_output("the file to write; with --to diffusers, of a model, the folder")
    return p


def convert(argv: list[str] | None) -> None:
    args = parser().parse_args(argv)
    path = Path(args.source).expanduser()
    if args.to == "gguf":
        return repair(path, args)
    if path.is_dir() and not is_state(path):
        refuse_run(path)
    if path.exists() and is_state(path):
        return state(path, args)
    if path.is_file() and path.suffix.lower() in SAFE and any(map(is_part, read_header(path).tensors)):
        return adapter(path, args)
    model(args)


def repair(path: Path, args: argparse.Namespace) -> None:
    """A GGUF file's architecture field."""
    found = read_gguf(path)
    check_output(args.output, [path], args.overwrite, ending=".gguf")
    record = backbone(args.model).core if args.model else find({bare(name) for name in found.tensors})
    if record is None or not record.gguf:
        raise TrainerError(f"{path}: its keys are of no model that ComfyUI-GGUF knows by a name of ours; expected --model NAME")
    if found.architecture == record.gguf:
        raise TrainerError(
            f"{path}: its architecture field is {record.gguf!r} already, as {record.title} has it; nothing to repair"
        )
    with_architecture(found, record.gguf, args.output)
    print(f"wrote {args.output}: general.architecture is {record.gguf!r} in place of {found.architecture or 'nothing'!r}")


def state(path: Path, args: argparse.Namespace) -> None:
    """A training state."""
    check(args, "comfyui", "a training state")
    inputs = [path] if path.is_file() else list(path.iterdir())
    check_output(args.output, inputs, args.overwrite)
    tensors, metadata, dtype = of_state(path)
    written(cast(tensors, DTYPES.get(args.dtype, dtype)), args.output, metadata)


def check(args: argparse.Namespace, only: str, what: str) -> None:
    """Raises TrainerError for options that mean nothing to this kind of file."""
    if args.to not in only.split():
        raise TrainerError(f"--to {args.to}: is not for {what}; expected --to {' or '.join(only.split())}")
    if args.dtype == "fp8" and (what != "a model" or args.to != "comfyui"):
        raise TrainerError(f"--dtype fp8: is for models --to comfyui, not {what} --to {args.to}; expected bf16, fp16 or fp32")


def adapter(path: Path, args: argparse.Namespace) -> None:
    """A LoRA, or an adapter of ours."""
    check(args, "comfyui diffusers kohya", "a LoRA")
    known, header = family_of(path, args.model), read_header(path)
    check_output(args.output, [path], args.overwrite)
    network = open_model(args.base, name=known.name).network if args.base else skeleton(known)
    lost = strays(path, known, network)
    if lost and not args.keep_unknown:
        raise WeightsError(
            f"{path}: holds {lost[0]!r} ({len(lost)} such), unknown to {known.name}; expected --keep-unknown to copy it"
        )
    found = read_adapter(path, known, network, "", leave=lost)
    if found.second and args.to != "comfyui":
        raise TrainerError(
            f"{path}: has a second time embedder, for which {args.to}'s LoRA files have no place; expected --to comfyui"
        )
    tensors: dict[str, Any] = loras.LAYOUTS[args.to](known, found.modules)
    tensors |= {lora.PREFIX + name: t for name, t in known.to_file(found.second).items()}
    stored = next(kind for name, (kind, _) in header.tensors.items() if name not in lost)
    dtype = DTYPES.get(args.dtype) or {"BF16": torch.bfloat16, "F16": torch.float16}.get(stored, torch.float32)
    kept = {name: t for name, t in load(path, lost).items() if name not in tensors}
    settings = Alphas.NAMES
    metadata = {name: text for name, text in header.metadata.items() if name.removeprefix("transformer.") not in settings}
    print(
        "; ".join(
            [
                f"{path.name}: {len(found.modules)} layers",
                *found.notes,
                *([f"{len(lost)} unknown tensors copied"] if lost else []),
            ]
        )
    )
    written(cast(tensors, dtype) | kept, args.output, metadata)


def family_of(path: Path, name: str | None) -> Backbone:
    """Whose LoRA it is.  Raises TrainerError where that cannot be told."""
    header = read_header(path)
    if name or header.metadata.get("twinflow.base_model"):
        return backbone_of(path, header.tensors, header.metadata, name)
    records = of_modules(header.tensors)
    if len(records) != 1:
        titles = " or ".join(record.title for record in records) or "no model that is known"
        raise TrainerError(f"{path}: by its keys it may be of {titles}; expected --model NAME")
    return trained(records[0])


def skeleton(known: Any) -> nn.Module:
    with torch.device("meta"):
        return known.skeleton()


def strays(path: Path, known: Backbone, network: nn.Module) -> list[str]:
    """The names of tensors that belong to no layer of the model."""
    places, names = places_of(known.core, network), read_header(path).tensors
    shell = torch.empty(0, device="meta")
    own = lambda name: sort({name: shell}, places).modules if is_part(name) else is_second_embedder(name)
    return [name for name in names if not own(name)]


def model(args: argparse.Namespace) -> None:
    check(args, "comfyui diffusers", "a model")
    dtype = None if args.dtype == "fp8" else DTYPES.get(args.dtype)
    stored = open_model(args.source, name=args.model, dtype=torch.float32 if args.dtype == "fp8" else dtype)
    if not args.keep_unknown:
        stored.refuse_unknown("expected --keep-unknown to copy such, or a file of its weights alone")
    if args.to == "diffusers":
        return folder(stored, dtype, args)
    check_output(args.output, stored.files, args.overwrite)
    tensors = stored.backbone.to_file(stored.tensors)
    tensors = packed(stored, tensors) if args.dtype == "fp8" else cast(tensors, dtype)
    written(tensors | {name: t for name, t in stored.unknown.items() if name not in tensors}, args.output, own_metadata(stored))


def own_metadata(stored: Stored) -> dict[str, str]:
    return {name: text for name, text in stored.metadata.items() if name.startswith(("twinflow.", "modelspec."))}


def folder(stored: Stored, dtype: torch.dtype | None, args: argparse.Namespace) -> None:
    """A diffusers transformer, in place only when it is whole."""
    if args.overwrite:
        raise TrainerError("--overwrite: is for files; expected a new folder as --output")
    check_output(args.output, stored.files, False, ending="")
    own = {name: t for name, t in stored.tensors.items() if name not in getattr(stored.backbone, "markers", ())}
    with new_folder(args.output) as temporary:
        described: Any = stored.network
        described.save_config(temporary)
        written(cast(own, dtype) | stored.unknown, temporary / FOLDER_FILE, own_metadata(stored))
    print(f"wrote {args.output}: config.json and {FOLDER_FILE}")


def packed(stored: Stored, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """ComfyUI's scaled fp8: the linear layers of the blocks, with a scale each; all else as it is stored, or bf16."""
    layout, last = stored.backbone.core.layout, last_block(stored.tensors)
    places = {name: layout.place(name, last) for name in layers(stored.network)}
    chosen = {place.module if place else name for name, place in places.items()}
    out: dict[str, Any] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module not in chosen or name == module:
            out[name] = tensor.to(target(tensor.dtype, torch.bfloat16))
            continue
        scale = Deferred(torch.empty((), device="meta"), lambda t=tensor: scale_of(t.make()))
        outline = torch.empty(tensor.shape, dtype=FP8, device="meta")
        out[name] = Deferred(outline, lambda t=tensor: rounded(t.make()))
        mark = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
        out |= {f"{module}.weight_scale": scale, f"{module}.{MARK}": mark}
    return out


def scale_of(weight: Tensor) -> Tensor:
    return (weight.float().abs().amax() / torch.finfo(FP8).max).clamp(min=1e-12)


def rounded(weight: Tensor) -> Tensor:
    return (weight.float() / scale_of(weight)).to(FP8)


if __name__ == "__main__":
    sys.exit(main())
