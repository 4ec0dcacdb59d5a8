"""A LoRA from a model minus its base:  python -m trainer.extract FULL --base BASE --rank 32 --output FILE   (see --help)"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from twinflow.weights import Provenance, load, save

from . import TrainerError
from .tensors.deferred import Deferred
from .tools.command import DTYPES, Parser, cast, check_output, ran, written
from .tools.low_rank import factors
from .tools.stored import Stored, open_model
from .weights import lora

STRANGE = 0.5  # energy of the difference over the base's: of another base it is near 2
LOOK = 8  # layers after which that is looked at


def main(argv: list[str] | None = None) -> int:
    return ran(extract, argv)


def parser() -> Parser:
    p = Parser(
        "extract",
        "Take the difference of a model and its base apart, layer by layer, by singular values. Of a TwinFlow model come a "
        "LoRA and its second time embedder, in one adapter; of a model with folded times a folded LoRA; of any other model (a "
        "turbo minus its base) a plain LoRA, which any loader takes and --init of trainer.lora starts from. One layer is in "
        "memory at a time. The table says how much of each change a LoRA of this rank keeps.",
        (
            "twinflow_qwen_image.safetensors --base Qwen/Qwen-Image --rank 64 --output qwen_adapter.safetensors",
            "z_image_turbo_bf16.safetensors --base Tongyi-MAI/Z-Image --energy .99 --output turbo.safetensors",
        ),
    )
    p.add_argument("full", help="the model: a file (safetensors or GGUF), a diffusers folder, or a hub id")
    p.add_argument("--base", required=True, help="what it was trained from, likewise")
    size = p.add_mutually_exclusive_group(required=True)
    size.add_argument("--rank", type=int, metavar="N", help="of every layer")
    size.add_argument("--energy", type=float, metavar="X", help="the share of each layer's change to keep, such as .99")
    p.add_argument(
        "--targets", default="all", metavar="NAMES", help="layers, as trainer.lora's --targets names them (default: all linear)"
    )
    p.add_argument("--device", metavar="NAME", help="what computes (default: cuda where there is one)")
    p.add_argument("--table", type=int, default=20, metavar="N", help="rows of the table; 0: all (default: %(default)s)")
    p.add_model()
    p.add_dtype(default="bf16")
    p.add_output()
    return p


@dataclass
class Kept:
    """A layer's change: its energy, the share that its LoRA of this rank keeps, and its size beside the base's weight."""

    layer: str
    shape: tuple[int, ...]
    rank: int
    share: float
    energy: float
    relative: float


def extract(argv: list[str] | None) -> None:
    args = parser().parse_args(argv)
    check_size(args.rank, args.energy)
    full = open_model(args.full, name=args.model, dtype=torch.float32)
    base = open_model(args.base, name=full.backbone.name, dtype=torch.float32)
    check_pair(full, base)
    check_output(args.output, [*full.files, *base.files], args.overwrite)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    targets = base.backbone.lora_targets(base.network, args.targets)
    with TemporaryDirectory(dir=args.output.parent, prefix=f".{args.output.name}.") as folder:
        pairs, table, left = changes(full, base, targets, args, device, Path(folder))
        if not table:
            raise TrainerError(f"{args.full}: no layer differs from {args.base}; expected a model that was trained from it")
        metadata = about(full, max(row.rank for row in table))
        tensors = lora.to_file(full.backbone, pairs | cast(full.second, DTYPES[args.dtype]), 1.0)
        written(tensors, args.output, metadata)
    print(told(table, left, args.table))


def check_size(rank: int | None, energy: float | None) -> None:
    if rank is not None and rank < 1:
        raise TrainerError(f"--rank is {rank}; expected 1 or more")
    if energy is not None and not 0 < energy < 1:
        raise TrainerError(f"--energy is {energy:g}; expected a share above 0 and below 1, such as .99")


def check_pair(full: Stored, base: Stored) -> None:
    """Raises TrainerError unless they are a model and a plain one of the same sizes."""
    full.refuse_unknown()
    base.refuse_unknown()
    if base.second:
        raise TrainerError(
            f"--base {base.source}: has a second time embedder, so it is a TwinFlow model; expected the plain one"
        )
    provenance, known = full.provenance, full.backbone
    if provenance is not None and provenance.base_model not in ("", known.core.name):
        raise TrainerError(f"{full.source}: is of {provenance.base_model}; expected --model to name that")
    if provenance is not None and provenance.time == "two" and not full.second:
        raise TrainerError(f"{full.source}: says twinflow.time two, but its second time embedder is missing; fetch it again")
    for name, tensor in base.tensors.items():
        if name not in full.tensors or full.tensors[name].shape != tensor.shape:
            found = tuple(full.tensors[name].shape) if name in full.tensors else "not there"
            raise TrainerError(
                f"--base {base.source}: {name!r} is {tuple(tensor.shape)}, and {found} in {full.source}; expected its base"
            )


def changes(
    full: Stored, base: Stored, targets: list[str], args: Any, device: str, folder: Path
) -> tuple[dict[str, Any], list[Kept], dict[str, float]]:
    """The LoRA's tensors, deferred (they lie in the folder until they are written), the table, and the energy of what else
    has changed, by name."""
    pairs: dict[str, Any] = {}
    table: list[Kept] = []
    left: dict[str, float] = {}
    weights, linear = 0.0, {f"{module}.weight" for module in targets}
    for name in tqdm(sorted(base.tensors, key=lambda name: name not in linear), desc="layers", unit="tensor", disable=None):
        if not base.tensors[name].dtype.is_floating_point:
            continue
        own = base.tensors[name].make().to(device).float()
        change = full.tensors[name].make().to(device).float() - own
        energy, size = energy_of(change), energy_of(own)
        if not energy < float("inf"):
            raise TrainerError(f"{name!r} holds values that are not numbers, in {full.source} or {base.source}: fetch it again")
        if energy == 0:
            continue
        if name not in linear:
            left[name] = energy
            continue
        found, module = factors(change, args.rank, args.energy or 1.0), name.removesuffix(".weight")
        path = folder / f"{len(table)}.safetensors"
        halves = {"A": found.down.to(DTYPES[args.dtype]), "B": found.up.to(DTYPES[args.dtype])}
        save(halves, path)
        for half, tensor in halves.items():
            outline = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            pairs[f"{module}.lora_{half}.default.weight"] = Deferred(outline, lambda p=path, h=half: load(p, [h])[h])
        table.append(Kept(module, tuple(own.shape), len(found.down), found.kept, energy, (energy / max(size, 1e-30)) ** 0.5))
        weights += size
        if len(table) == LOOK:
            check_near(full, base, sum(row.energy for row in table) / weights)
    if table:
        check_near(full, base, sum(row.energy for row in table) / weights)
    return pairs, table, left


def check_near(full: Stored, base: Stored, ratio: float) -> None:
    if ratio > STRANGE:
        raise TrainerError(
            f"--base {base.source}: the difference to {full.source} is {ratio**0.5:.1f} times as large as its weights, as of "
            "models that have nothing in common; expected the base that it was trained from"
        )


def energy_of(tensor: Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))


def about(full: Stored, rank: int) -> dict[str, str]:
    known, found = full.backbone, full.provenance
    if full.second and found is None:  # a released model, whose files say nothing
        found = Provenance("two", known.core.name, sampler=known.sampling, signed_time=known.core.signed_time)
    if found is None:
        title = f"{Path(full.source).stem} minus {known.core.title}"
        own = {"modelspec.architecture": f"{known.core.name}/lora", "modelspec.title": title}
        return {"modelspec.sai_model_spec": "1.0.0"} | own
    return replace(found, base_model=known.core.name, rank=rank).to_metadata()


def told(table: list[Kept], left: dict[str, float], most: int) -> str:
    """A table, the worst first, and the whole."""
    rows = sorted(table, key=lambda row: row.share)
    lines = ["energy kept   rank   change   weight         layer"]
    for row in rows[: most or None]:
        shape = "x".join(map(str, row.shape))
        lines.append(f"{row.share:11.4f} {row.rank:6d} {row.relative:8.2%}   {shape:<14} {row.layer}")
    if 0 < most < len(rows):
        lines.append(f"... and {len(rows) - most} more, which keep {rows[most].share:.4f} or more (--table 0 lists all)")
    inside, outside = sum(row.energy for row in table), sum(left.values())
    kept = sum(row.share * row.energy for row in table)
    lines.append(f"of these {len(rows)} layers: {kept / inside:.4f} of the energy of the change is kept")
    if left:
        first = max(left, key=lambda name: left[name])
        lines.append(
            f"of the whole change: {kept / (inside + outside):.4f}, for {len(left)} tensors that no LoRA is of changed, too "
            f"({outside / (inside + outside):.2%} of the energy; most in {first})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
