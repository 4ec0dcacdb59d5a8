"""Asks a tiny model inside ComfyUI for one answer at the times (t, r)."""

import tiny
import torch


def backbone(golden: tiny.Golden, comfy):
    """The golden's record, and ComfyUI's classes of it."""
    records = comfy.part("twinflow.backbones")
    record = records.find(golden.weights)
    file = next(name for name, other in records.all_backbones().items() if other is record)
    return record, comfy.part(f"nodes.backbones.{file}").MODEL


def without_second(golden: tiny.Golden, comfy) -> dict[str, torch.Tensor]:
    """The golden's plain model under ComfyUI's names."""
    is_second = comfy.part("twinflow.backbones").is_second_embedder
    return {key: tensor for key, tensor in tiny.native(golden, comfy).items() if not is_second(key)}


def answer(golden: tiny.Golden, comfy, patcher, r: float, t: float = 0.7) -> torch.Tensor:
    """The data that the model sees behind the golden's first latent, for its first prompt."""
    times = comfy.part("nodes.time_conditioning")
    time = times.time_conditioning_of(patcher.model, {}).with_target(torch.tensor([r]))
    x, prompt = golden.tensors["x"][:1], golden.tensors["c0"][:1]
    extra = {"zimage": dict(num_tokens=prompt.shape[1]), "sd3": dict(y=golden.tensors.get("c1", prompt)[:1])}
    with torch.no_grad():
        return patcher.model.apply_model(
            x.unsqueeze(2) if golden.name == "qwen" else x,
            torch.tensor([t]),
            c_crossattn=prompt,
            transformer_options={"wrappers": patcher.wrappers, times.KEY: time},
            **extra.get(golden.name, {}),
        )
