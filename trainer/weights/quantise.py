"""The frozen base in fewer bits, for a LoRA on top; to be called before the LoRA is put in.

Only the linear layers of the transformer blocks: the time embedders, the first and the last layers stay as they are.

int8      torchao, int8 weights with a scale a row
fp8       torchao, float8 weights with a scale a row
fp8-cast  diffusers' layerwise casting: float8 at rest, no scales, no other package
nf4       bitsandbytes, 4 bits with quantised scales
"""

import re
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from .. import TrainerError
from .block_swap import blocks_of

PACKAGE = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


def check_quantisation(kind: str, option: str = "--quantize") -> None:
    """Raises TrainerError where this machine cannot quantise so."""
    package, other = PACKAGE.get(kind), {"--quantize": "none, int8, fp8 or fp8-cast"}.get(option, "bf16, fp32 or int8")
    if package and not find_spec(package):
        without = f"{option} fp8-cast" if option == "--quantize" else f"{option} bf16"
        raise TrainerError(f"{option} {kind}: {package} is not installed; pip install {package}, or {without}")
    if kind == "nf4" and not torch.cuda.is_available():
        raise TrainerError(f"{option} nf4: needs an NVIDIA GPU, and there is none; expected {other} here")


def quantise(model: nn.Module, kind: str) -> None:
    """Quantise the blocks' linear layers of a plain, frozen model, in place.  Raises TrainerError."""
    check_quantisation(kind)
    if kind in ("int8", "fp8"):
        with_torchao(model, kind)
    elif kind == "fp8-cast":
        with_casting(model)
    elif kind == "nf4":
        with_bitsandbytes(model)


def layers(model: nn.Module, kind: str = "") -> dict[str, nn.Linear]:
    """What is quantised, by full name.  fp8-cast leaves out what the class itself names, such as norms."""
    skipped = (getattr(model, "_skip_layerwise_casting_patterns", None) or ()) if kind == "fp8-cast" else ()
    skipped = [*skipped, *(rf"\.{name}$" for name in getattr(model, "_keep_in_fp32_modules", None) or ())]  # T5's
    return {
        f"{block}.{name}": module
        for block, parent in blocks_of(model).items()
        for name, module in parent.named_modules()
        if isinstance(module, nn.Linear) and not any(re.search(pattern, f"{block}.{name}") for pattern in skipped)
    }


def with_torchao(model: nn.Module, kind: str) -> None:
    from torchao import quantization

    config = {"int8": quantization.Int8WeightOnlyConfig, "fp8": quantization.Float8WeightOnlyConfig}[kind]()
    chosen = layers(model)
    quantization.quantize_(model, config, filter_fn=lambda _, name: name in chosen)
    # PEFT says that it could not merge; files are written without merging
    warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated without")


def with_casting(model: Any) -> None:
    chosen = layers(model)
    whole = [name for name, module in model.named_modules() if name and name not in chosen and not any(module.children())]
    model.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn,
        compute_dtype=next(iter(chosen.values())).weight.dtype,
        skip_modules_pattern=[f"^{re.escape(name)}$" for name in whole],
    )


def with_bitsandbytes(model: nn.Module) -> None:
    import bitsandbytes

    bnb: Any = bitsandbytes

    for name, old in layers(model).items():
        four: dict[str, Any] = dict(quant_type="nf4", compress_statistics=True)
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, old.bias is not None, old.weight.dtype, device="meta", **four
        )
        new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, module=new, **four)  # quantised on its way
        new.bias = old.bias
        model.set_submodule(name, new)
