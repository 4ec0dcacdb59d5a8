"""DoRA as PEFT writes it, among ComfyUI's weight adapters."""

import torch
from comfy.model_management import cast_to_device
from comfy.weight_adapter import WeightAdapterBase


class Dora(WeightAdapterBase):
    """PEFT's DoRA (lora_magnitude_vector): m V / ||V|| by rows, V the weight with the LoRA.  weights: the LoRA, m.

    ComfyUI's own dora_scale divides by the norm of the weight without the LoRA, and stays as it is there.
    """

    name = "dora"

    def __init__(self, loaded_keys: set[str], weights: tuple):
        self.loaded_keys, self.weights = loaded_keys, weights  # pyright: ignore[reportAttributeAccessIssue]

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        inner, magnitude = self.weights
        merged = inner.calculate_weight(weight.clone(), key, 1.0, 1.0, offset, function, intermediate_dtype, original_weight)
        magnitude = cast_to_device(magnitude, weight.device, intermediate_dtype)
        rows = merged.flatten(1).norm(dim=1).clamp(min=torch.finfo(merged.dtype).tiny)
        scaled = merged * (magnitude / rows).reshape(-1, *[1] * (merged.ndim - 1)).to(merged.dtype)
        weight += strength * (scaled - weight)  # in place: it may be rows of a fused weight
        return weight
