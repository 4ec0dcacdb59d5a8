"""What the commands for files have in common: options, where they write, and how."""

import argparse
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from twinflow.atomic import remove_leftovers_of
from twinflow.backbones import canonical
from twinflow.weights import file_order, save_streamed

from .. import TrainerError, console
from ..backbones import sources, trainable
from ..tensors.deferred import made, outlines
from ..training import disk

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Parser(console.Parser):
    def __init__(self, name: str, description: str, examples: Iterable[str]):
        super().__init__(
            prog=f"python -m trainer.{name}",
            description=textwrap.fill(description, 100),
            epilog="\n".join(["examples:", *(f"  python -m trainer.{name} {example}" for example in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_model(self) -> None:
        self.add_argument(
            "--model", type=canonical, choices=trainable(), metavar="NAME",
            help=f"which model it is, where the file's keys and metadata do not tell ({', '.join(trainable())})",
        )  # fmt: skip

    def add_output(self, what: str = "the .safetensors file to write") -> None:
        self.add_argument("--output", type=Path, required=True, metavar="PATH", help=what)
        self.add_argument("--overwrite", action="store_true", help="replace what is there (never an input)")

    def add_dtype(self, *more: str, default: str | None = None) -> None:
        usual = default or "as stored; what is quantised or fp8 becomes bf16"
        self.add_argument(
            "--dtype", choices=[*DTYPES, *more], default=default, help=f"number format of what is written (default: {usual})"
        )


def ran(act: Callable[[list[str] | None], None], argv: list[str] | None) -> int:
    """The exit code of a command: 0, or 2 for bad input (see console.guarded)."""
    if argv is None:
        console.utf8()
    return console.guarded(lambda: act(argv))


def check_output(output: Path, inputs: Iterable[Path], overwrite: bool, ending: str = ".safetensors") -> None:
    """Raises TrainerError unless it can be written to: never an input, and nothing else unless overwrite is set.

    What an earlier call that was killed left half written goes.
    """
    if output.suffix.lower() != ending:
        raise TrainerError(f"--output {output}: expected a name that ends in {ending or 'nothing, for it is a folder'}")
    if any(output.exists() and path.exists() and output.samefile(path) for path in inputs):
        raise TrainerError(f"--output {output}: is an input; expected another file, for inputs are never changed")
    if output.exists() and not overwrite:
        raise TrainerError(f"--output {output}: is there already; expected another name, or --overwrite")
    if not output.parent.exists():
        output.parent.mkdir(parents=True)
    remove_leftovers_of(output)


def written(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file of deferred tensors, one in memory at a time, atomically.  Raises TrainerError for one that holds
    values that are not numbers."""
    about = outlines(tensors)
    order, size = file_order(about), disk.size_of(about.values())

    def checked() -> Iterator[Tensor]:
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"writing {path.name}", disable=size < 2**26) as bar:
            for name, tensor in zip(order, made(tensors[name] for name in order)):
                if not sources.is_finite(tensor):
                    raise TrainerError(
                        f"{name!r} holds values that are not numbers: an input is damaged, or too large for {kind(tensor)}"
                    )
                bar.update(tensor.numel() * tensor.element_size())
                yield tensor

    disk.room(path, size, print)
    save_streamed(about, checked(), path, metadata)
    print(f"wrote {path} ({disk.short(size)})")


def kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def target(kind: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """In which a tensor of this kind is written; dtype None: as it is stored, fp8 as bf16."""
    if not kind.is_floating_point:
        return kind
    return dtype or (torch.bfloat16 if kind.itemsize == 1 else kind)


def cast(tensors: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """Deferred tensors in the dtype that each is written in."""
    return {name: t if t.dtype == (to := target(t.dtype, dtype)) else t.to(to) for name, t in tensors.items()}
