"""Small files under the names that the shared workflows mention, and the graphs cut down to them.

Text encoders have no small version in ComfyUI, so their nodes give way to cached prompts, which is what those are for.
"""

import json
from pathlib import Path

import tiny
import torch
from templates.files import SHARDS

SAMPLER = '[{"steps": 4, "style": "any", "stochasticity": 0.0, "gaps": [0.001, 0.5]}]'
FAMILY = {  # the longest beginning first
    "qwen_image_2.1": "qwen21",
    "qwen": "qwen",
    "diffusion_pytorch_model": "qwen",
    "TwinFlow-Z": "zimage",
    "flux-2-klein": "flux2",
    "krea2": "krea2",
    "sd3.5": "sd3",
    "base": "digits",
    "TwinFlow emoji": "emoji",
}


def family(graph: dict) -> str:
    names = [v for n in graph.values() for k, v in n["inputs"].items() if k in ("unet_name", "model_name", "ckpt_name")]
    return next(kind for start, kind in FAMILY.items() if names[0].startswith(start))


def write(models: Path, goldens: Path, find, *, newer: tuple[str, ...]) -> None:
    """All files of all workflows.  find: of twinflow.backbones.  newer: families that this ComfyUI has besides the oldest's."""
    families = {name: tiny.read(goldens, name) for name in ("qwen", "sd3", *newer)}
    unets, loras, prompts = (models / name for name in ("diffusion_models", "loras", "prompts"))
    qwen, sd3 = families["qwen"], families["sd3"]
    for shard, name in enumerate(SHARDS):
        tiny.save(dict(list(qwen.weights.items())[shard :: len(SHARDS)]), unets / name)
    for name in ("qwen_image_fp8_e4m3fn", "qwen_image_edit_2509_fp8_e4m3fn"):
        tiny.save(qwen.plain, unets / f"{name}.safetensors")
    tiny.save(find(sd3.plain).layout.to_native(sd3.plain), unets / "sd3.5_medium.safetensors")
    if "zimage" in families:
        tiny.save(families["zimage"].weights, unets / "TwinFlow-Z-Image-Turbo_bf16.safetensors")
    klein = tiny.read(goldens, "flux2")
    tiny.save(klein.plain, unets / "flux-2-klein-base-4b.safetensors")
    lora(klein.plain, loras / "flux2-klein-lora.safetensors", "two", klein.second)
    krea = tiny.read(goldens, "krea2")
    tiny.save(krea.plain, unets / "krea2_raw_fp8_scaled.safetensors")
    lora(krea.plain, loras / "krea2-lora.safetensors", "two", krea.second, prefix="transformer.")
    plus = tiny.read(goldens, "qwen21")
    tiny.save(plus.plain, unets / "qwen_image_2.1_int8_convrot.safetensors")
    lora(plus.plain, loras / "qwen-image-2.1-lora.safetensors", "two", plus.second, prefix="transformer.")
    lora(qwen.plain, loras / "qwen-image-lora.safetensors", "fold")
    lora(sd3.plain, loras / "sd3.5-lora.safetensors", "fold", prefix="transformer.")
    lora(qwen.plain, loras / "qwen-image-edit-lora.safetensors", "two", qwen.second)
    base = tiny.digits()
    tiny.save(base, unets / "base.safetensors")
    lora(base, loras / "digits-lora.safetensors", "two", tiny.second_embedder(base))
    texts = {str(n): f"a handwritten {n}" for n in range(10)}
    embeds = {f"{name}.embeds": torch.randn(1, 64) for name in texts}
    tiny.save(embeds, prompts / "prompts.safetensors", {"twinflow.prompts": json.dumps(texts)})
    for name, golden in families.items():
        tensors = {"a.embeds": golden.tensors["c0"][0]}
        if name == "sd3":
            tensors["a.pooled"] = golden.tensors["c1"][0]
        tiny.save(tensors, prompts / f"{name}.safetensors", {"twinflow.prompts": '{"a": "a picture"}'})


def lora(weights, path: Path, time: str, second=None, prefix="diffusion_model."):
    parts = tiny.lora(weights, ("attn.to_q", "attn.to_v"))
    tensors = {f"{prefix}{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab, strict=True)}
    tensors |= {f"diffusion_model.{k}": v for k, v in (second or {}).items()}
    tiny.save(tensors, path, {"twinflow.time": time, "twinflow.base_model": "tiny", "twinflow.sampler": SAMPLER})


def write_vaes(folder: Path, width: int) -> None:
    """Random VAEs of ComfyUI's own classes (which must be importable): Wan's for Qwen-Image, TAESD for the others, 2.1 too."""
    import comfy.ldm.wan.vae
    import comfy.taesd.taesd

    torch.manual_seed(0)
    wan = comfy.ldm.wan.vae.WanVAE(
        dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True]
    )
    tiny.save({k: filled(k, v) for k, v in wan.state_dict().items()}, folder / "qwen_image_vae.safetensors")
    for name, channels in (("ae", 16), ("sd3.5_vae", 16), ("qwen_image_2.1_vae_bf16", 64)):
        tae = comfy.taesd.taesd.TAESD(latent_channels=channels).state_dict()
        tiny.save({k: filled(k, v) for k, v in tae.items()}, folder / f"{name}.safetensors")
    if hasattr(comfy.taesd.taesd, "DecoderFlux2"):
        (folder.parent / "vae_approx").mkdir(exist_ok=True)
        klein = comfy.taesd.taesd.TAESD(latent_channels=128)
        for part in ("encoder", "decoder"):
            tensors = getattr(klein, f"taesd_{part}").state_dict().items()
            tiny.save({k: filled(k, v) for k, v in tensors}, folder.parent / "vae_approx" / f"taef2_{part}.safetensors")


def filled(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Random, and of a size that keeps the signal's; ComfyUI's layers leave their own values uninitialised."""
    if weight.ndim == 0:  # TAESD's scale and shift
        return weight
    if name.endswith("bias"):
        return torch.zeros_like(weight)
    if weight.ndim == 1 or all(n == 1 for n in weight.shape[1:]):  # a norm's gain
        return torch.ones_like(weight)
    return torch.randn_like(weight) / weight[0].numel() ** 0.5


def cut_down(graph: dict) -> dict:
    """The same graph for small files: 64 pixels, cached prompts in place of text encoders."""
    kind, graph = family(graph), json.loads(json.dumps(graph))
    for key, node in list(graph.items()):
        inputs = node["inputs"]
        if node["class_type"] == "EmptySD3LatentImage":
            inputs.update(width=64, height=64)
        elif node["class_type"] == "CheckpointLoaderSimple":  # has its text encoders and VAE in it
            graph[key] = {
                "class_type": "UNETLoader",
                "inputs": {"unet_name": "sd3.5_medium.safetensors", "weight_dtype": "default"},
            }
            graph["1003"] = {"class_type": "VAELoader", "inputs": {"vae_name": "sd3.5_vae.safetensors"}}
            for other in graph.values():
                other["inputs"] |= {name: ["1003", 0] for name, value in other["inputs"].items() if value == [key, 2]}
        elif inputs.get("vae_name") == "flux2-vae.safetensors":  # of which core knows one size only
            inputs["vae_name"] = "taef2"
        elif node["class_type"] == "ImageScaleToTotalPixels":
            inputs["megapixels"] = 0.01
        elif node["class_type"] in ("CLIPTextEncode", "TextEncodeQwenImageEdit"):
            cached = {"class_type": "TwinFlowCachedPrompt", "inputs": {"file": f"{kind}.safetensors", "prompt": ""}}
            graph[key] = cached
            if "image" in inputs:  # what the edit encoder adds besides the text
                graph["1001"] = cached
                graph["1002"] = {"class_type": "VAEEncode", "inputs": {"pixels": inputs["image"], "vae": inputs["vae"]}}
                graph[key] = {"class_type": "ReferenceLatent", "inputs": {"conditioning": ["1001", 0], "latent": ["1002", 0]}}
    return {k: n for k, n in graph.items() if "CLIPLoader" not in n["class_type"]}
