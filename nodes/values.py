"""Whether a file's weights can be weights: no NaN, and not the size of numbers whose scale was lost."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..twinflow.weights import WeightsError

WHOLE = 1 << 18  # elements: larger tensors are looked at in four places, so that loading stays as fast as reading
PIECE = 1 << 14
LARGEST = 30.0  # root mean square of a matrix; trained ones stay below 1, those of fp8 or int8 without scale are above 40
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)


def check_values(name: str, tensors: Mapping[str, Tensor], whole: Callable[[str], bool] = lambda key: False) -> None:
    """Raises WeightsError for values that are not numbers, and for matrices too large to have been trained.

    whole: whether all of a large tensor is looked at, as of a LoRA, which is small beside its model.
    """
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS:  # packed
            continue
        values = tensor.float() if whole(key) else _some(tensor)
        if not float(values.abs().max() if values.numel() else 0) < math.inf:
            raise WeightsError(
                f"{name}: has values that are not numbers (NaN or infinity): it is damaged, fetch it again ({key})"
            )
        is_matrix = key.endswith(".weight") and tensor.ndim == 2 and f"{key}_scale" not in tensors
        if is_matrix and values.numel() >= 64 and (size := float(values.square().mean().sqrt())) > LARGEST:
            raise WeightsError(
                f"{name}: weights are {size:.0f} in size, where trained ones are below 1: the scales of its quantisation were "
                f"lost. Fetch the original file, or convert it again ({key})"
            )


def _some(tensor: Tensor) -> Tensor:
    flat, n = tensor.reshape(-1), tensor.numel()
    if n > WHOLE:
        starts = [i * (n - PIECE) // 3 for i in range(4)]
        flat = torch.cat([flat[start : start + PIECE] for start in starts])
    return flat.float()
