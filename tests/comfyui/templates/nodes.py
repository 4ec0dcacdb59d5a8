"""Nodes of the templates' graphs, and the few that come in several of them."""

PANDA = "a red panda reading a newspaper in a cafe, morning light"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def load(model: str, adapter: str = "none") -> dict:
    return node("TwinFlowModelLoader", model_name=model, adapter=adapter, adapter_strength=1.0, weight_dtype="default")


def sample(model="model", preset="2 steps", denoise=1.0, **more) -> dict:
    return node(
        "TwinFlowSampleLatent",
        model=[model, 0],
        positive=["prompt", 0],
        latent_image=["latent", 0],
        preset=preset,
        seed=42,
        cfg=1.0,
        denoise=denoise,
        **more,
    )


def text(encoder: str, kind: str, prompt: str = PANDA) -> dict:
    return {
        "clip": node("CLIPLoader", clip_name=encoder, type=kind, device="default"),
        "prompt": node("CLIPTextEncode", clip=["clip", 0], text=prompt),
    }


def finish(vae: str, prefix: str) -> dict:
    return {"vae": node("VAELoader", vae_name=vae), **decoded(["vae", 0], prefix)}


def decoded(vae: list, prefix: str) -> dict:
    return {
        "decode": node("VAEDecode", samples=["sample", 0], vae=vae),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
    }


def empty(size: int = 1024) -> dict:
    return node("EmptySD3LatentImage", width=size, height=size, batch_size=1)


QWEN_TEXT = text("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image")
PICTURE = node("LoadImage", image="example.png")
