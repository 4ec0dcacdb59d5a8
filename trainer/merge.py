"""LoRAs and adapters into a base:  python -m trainer.merge BASE --lora FILE=0.8 --output FILE   (all options: --help)"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinflow.weights import Provenance, WeightsError, read_header

from . import TrainerError
from .tensors.deferred import Deferred
from .tools.command import DTYPES, Parser, cast, check_output, ran, target, written
from .tools.stored import Stored, open_model, provenance_of
from .weights.lora_file import Adapter, Pair, read_adapter


def main(argv: list[str] | None = None) -> int:
    return ran(merge, argv)


def parser() -> Parser:
    p = Parser(
        "merge",
        "Add LoRAs of any layout to a model's weights, each times its weight, in float32 and a tensor at a time, and write one "
        "file under ComfyUI's names. An adapter's second time embedder goes in whole, and its metadata with it: the file is "
        "then a TwinFlow model.",
        (
            "qwen_image_bf16.safetensors --lora runs/x/x.safetensors --output qwen_twinflow.safetensors",
            "Qwen/Qwen-Image --lora style.safetensors=0.8 speed.safetensors=1 --dtype bf16 --output mixed.safetensors",
        ),
    )
    p.add_argument("base", help="the model: a file (safetensors or GGUF), a diffusers folder, or a hub id")
    p.add_argument(
        "--lora",
        nargs="+",
        required=True,
        metavar="FILE[=WEIGHT]",
        help="a LoRA or an adapter, and how much of it (default: 1)",
    )
    p.add_model()
    p.add_dtype()
    p.add_output()
    return p


def merge(argv: list[str] | None) -> None:
    args = parser().parse_args(argv)
    asked, dtype = [weighted(text) for text in args.lora], DTYPES.get(args.dtype)
    base = open_model(args.base, name=args.model, dtype=dtype)
    base.refuse_unknown()
    check_output(args.output, [*base.files, *(path for path, _ in asked)], args.overwrite)
    loras = [(read(path, base), weight) for path, weight in asked]
    for (path, weight), (adapter, _) in zip(asked, loras):
        second = [f"the second time embedder, {len(adapter.second)} tensors"] if adapter.second else []
        print("; ".join([f"{path.name}: {len(adapter.modules)} layers times {weight:g}", *second, *adapter.notes]))
    tensors = base.tensors | second_of(asked, loras)
    for module in dict.fromkeys(module for adapter, _ in loras for module in adapter.modules):
        parts = [(adapter.modules[module], weight) for adapter, weight in loras if module in adapter.modules]
        tensors[f"{module}.weight"] = summed(tensors[f"{module}.weight"], parts, dtype)
    metadata = about(
        base, [(path, metadata_of(path)) for path, _ in asked], any(a.second for a, _ in loras) or bool(base.second)
    )
    written(cast(base.backbone.to_file(tensors), dtype), args.output, metadata)


def weighted(text: str) -> tuple[Path, float]:
    """Of FILE=WEIGHT.  Raises TrainerError."""
    name, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(name), float(weight)
    except ValueError:
        raise TrainerError(f"--lora {text}: {weight!r} is no number; expected FILE=WEIGHT, such as {name}=0.8") from None


def metadata_of(path: Path) -> Provenance | None:
    return provenance_of(path, read_header(path).metadata)


def read(path: Path, base: Stored) -> Adapter:
    """A LoRA or adapter that fits the base.  Raises WeightsError."""
    known, provenance = base.backbone, metadata_of(path)
    if provenance is not None and provenance.base_model not in ("", known.core.name):
        raise WeightsError(f"--lora {path}: is of {provenance.base_model}; expected one of {known.core.name}, as the base is")
    adapter = read_adapter(path, known, base.network, "--lora ")
    if provenance is not None and provenance.time == "two" and not adapter.second and not base.second:
        raise WeightsError(
            f"--lora {path}: was trained with a second time embedder, which neither it nor the base has; expected its adapter "
            "whole, or a TwinFlow model as the base"
        )
    time = known.core.time
    first = {name: t.shape for name, t in base.tensors.items() if name.startswith(time.embedder + ".")}
    wanted = {time.name + name.removeprefix(time.embedder): shape for name, shape in first.items()}
    if adapter.second and {name: t.shape for name, t in adapter.second.items()} != wanted:
        raise WeightsError(f"--lora {path}: its second time embedder does not fit {known.name}: it is of another model, or cut")
    return adapter


def summed(tensor: Any, parts: list[tuple[Pair, float]], dtype: torch.dtype | None) -> Deferred:
    """A weight with every LoRA of its layer, added up in float32, in the dtype that it is written in."""
    kind = target(tensor.dtype, dtype)

    def make() -> Tensor:
        total = tensor.make().float()
        for pair, weight in parts:
            total = torch.addmm(total, pair.up * weight, pair.down)
        return total.to(kind)

    return Deferred(torch.empty(tensor.shape, dtype=kind, device="meta"), make)


def second_of(asked: list[tuple[Path, float]], loras: list[tuple[Adapter, float]]) -> dict[str, Tensor]:
    """The one second time embedder among the adapters.  Raises TrainerError where there are several."""
    have = [(path, adapter.second) for (path, _), (adapter, _) in zip(asked, loras) if adapter.second]
    if len(have) > 1:
        raise TrainerError(f"--lora: {have[0][0].name} and {have[1][0].name} both have a second time embedder; expected one")
    return have[0][1] if have else {}


def about(base: Stored, files: list[tuple[Path, Provenance | None]], two: bool) -> dict[str, str]:
    """The metadata: those of the last file that has any, of what is whole now."""
    known = base.backbone
    ours = [p for _, p in files if p is not None] or [p for p in (base.provenance,) if p is not None]
    if not ours and not two:
        return {name: text for name, text in base.metadata.items() if name.startswith(("modelspec.", "twinflow."))}
    found = ours[-1] if ours else Provenance("two", known.core.name, signed_time=known.core.signed_time)
    time = "two" if two else found.time
    own = found.sampler or known.sampling
    return replace(
        found, time=time, base_model=known.core.name, rank=None, sampler=own, license=found.license or known.license
    ).to_metadata()


if __name__ == "__main__":
    sys.exit(main())
