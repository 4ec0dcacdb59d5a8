"""The shared workflows as graphs: `make_workflows.py` hands them to the frontend, which writes workflows/*.json."""

HF = "https://huggingface.co"
QWEN = f"""**Text encoder** `qwen_2.5_vl_7b_fp8_scaled.safetensors` -> `models/text_encoders`
**VAE** `qwen_image_vae.safetensors` -> `models/vae`
Both from [Comfy-Org/Qwen-Image_ComfyUI]({HF}/Comfy-Org/Qwen-Image_ComfyUI) (`split_files`)."""
Z = f"""**Model** `TwinFlow_Z_Image_Turbo_bf16.safetensors` -> `models/diffusion_models`
from [azazeal2/TwinFlow-Z-Image-Turbo-repacked]({HF}/azazeal2/TwinFlow-Z-Image-Turbo-repacked)
**Text encoder** `qwen_3_4b.safetensors` -> `models/text_encoders`
**VAE** `ae.safetensors` -> `models/vae`
Both from [Comfy-Org/z_image_turbo]({HF}/Comfy-Org/z_image_turbo) (`split_files`). Needs ComfyUI 0.3.74."""
CONVERTED = f"""**Model** `TwinFlow-Qwen-Image-v1.0.safetensors` -> `models/diffusion_models`
The folder `TwinFlow-Qwen-Image-v1.0` of [inclusionAI/TwinFlow]({HF}/inclusionAI/TwinFlow) as one file, or as it is:
put the release's folder there and pick any of its shards.
A GGUF works as well: [Arunk25/TwinFlow-Qwen-Image-v1.0-GGUF]({HF}/Arunk25/TwinFlow-Qwen-Image-v1.0-GGUF)"""
CAT = "a red panda reading a newspaper in a cafe, morning light"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def load(model: str, adapter: str = "none") -> dict:
    return node("TwinFlowModelLoader", model_name=model, adapter=adapter, adapter_strength=1.0, weight_dtype="default")


def sample(model, positive, latent, preset="2 steps", denoise=1.0, seed=42, **more) -> dict:
    inputs = dict(model=model, positive=positive, latent_image=latent, preset=preset, seed=seed, cfg=1.0, denoise=denoise)
    return node("TwinFlowSampleLatent", **inputs, **more)


def text(encoder: str, kind: str, prompt: str = CAT) -> dict:
    return {
        "clip": node("CLIPLoader", clip_name=encoder, type=kind, device="default"),
        "prompt": node("CLIPTextEncode", clip=["clip", 0], text=prompt),
    }


def finish(vae: str, prefix: str) -> dict:
    return {
        "vae": node("VAELoader", vae_name=vae),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
    }


def empty(size: int = 1024) -> dict:
    return node("EmptySD3LatentImage", width=size, height=size, batch_size=1)


QWEN_TEXT = text("qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image")
Z_TEXT = text("qwen_3_4b.safetensors", "lumina2")
Z_MODEL = load("TwinFlow_Z_Image_Turbo_bf16.safetensors")
PICTURE = node("LoadImage", image="example.png")


def qwen_image_2step():
    return f"# Qwen-Image in 2 steps\n{CONVERTED}\n{QWEN}", {
        "model": load("TwinFlow-Qwen-Image-v1.0.safetensors"),
        **QWEN_TEXT,
        "latent": empty(),
        "sample": sample(["model", 0], ["prompt", 0], ["latent", 0]),
        **finish("qwen_image_vae.safetensors", "twinflow_qwen"),
    }


def qwen_image_lora():
    return (
        f"""# Qwen-Image with a TwinFlow LoRA
**Model** `qwen_image_fp8_e4m3fn.safetensors` -> `models/diffusion_models`
{QWEN}
**LoRA** `qwen-image-lora.safetensors` -> `models/loras`: of our trainer, trained with the folded time.
The loader reads its time conditioning and how to sample it from the file. An adapter, which has a second time
embedder, goes into the TwinFlow Model Loader instead.""",
        {
            "model": node("UNETLoader", unet_name="qwen_image_fp8_e4m3fn.safetensors", weight_dtype="default"),
            "lora": node("TwinFlowLoraLoader", model=["model", 0], lora_name="qwen-image-lora.safetensors", strength=1.0),
            **QWEN_TEXT,
            "latent": empty(),
            "sample": sample(["lora", 0], ["prompt", 0], ["latent", 0], "4 steps"),
            **finish("qwen_image_vae.safetensors", "twinflow_qwen_lora"),
        },
    )


def qwen_image_edit():
    return (
        f"""# Qwen-Image-Edit with a TwinFlow adapter
**Model** `qwen_image_edit_2509_fp8_e4m3fn.safetensors` -> `models/diffusion_models`
from [Comfy-Org/Qwen-Image-Edit_ComfyUI]({HF}/Comfy-Org/Qwen-Image-Edit_ComfyUI) (`split_files`)
**Adapter** `qwen-image-edit-lora.safetensors` -> `models/loras`: LoRA and second time embedder in one file, from our trainer
{QWEN}""",
        {
            "model": load("qwen_image_edit_2509_fp8_e4m3fn.safetensors", "qwen-image-edit-lora.safetensors"),
            "image": PICTURE,
            "scaled": node("ImageScaleToTotalPixels", image=["image", 0], upscale_method="lanczos", megapixels=1.0),
            "vae": node("VAELoader", vae_name="qwen_image_vae.safetensors"),
            "clip": QWEN_TEXT["clip"],
            "prompt": node(
                "TextEncodeQwenImageEdit",
                clip=["clip", 0],
                vae=["vae", 0],
                image=["scaled", 0],
                prompt="make it a pencil drawing",
            ),
            "latent": node("VAEEncode", pixels=["scaled", 0], vae=["vae", 0]),
            "sample": sample(["model", 0], ["prompt", 0], ["latent", 0], "4 steps"),
            **{k: v for k, v in finish("qwen_image_vae.safetensors", "twinflow_edit").items() if k != "vae"},
        },
    )


def z_image_2step():
    schedule = dict(preset="2 steps", steps=2, start_gap=0.001, end_gap=0.6, warp_a=1.0, warp_b=1.0, warp_c=1.0, denoise=1.0)
    return (
        f"# Z-Image Turbo in 2 steps, in core's own sampling nodes\n{Z}\n\n"
        "Schedule and style go together: few for 1, 2 and 4 steps, any for 8, multi for 30.",
        {
            "model": Z_MODEL,
            **Z_TEXT,
            "guider": node("BasicGuider", model=["model", 0], conditioning=["prompt", 0]),
            "schedule": node("TwinFlowSchedule", **schedule),
            "plot": node("TwinFlowSchedulePlot", sigmas=["schedule", 0], style="few", width=768, height=512),
            "sampler": node(
                "TwinFlowUnifiedSampler", style="few", order="1", noise="constant", stochasticity=1.0, extrapolation=0.0
            ),
            "noise": node("RandomNoise", noise_seed=42),
            "latent": empty(),
            "sample": node(
                "SamplerCustomAdvanced",
                noise=["noise", 0],
                guider=["guider", 0],
                sampler=["sampler", 0],
                sigmas=["schedule", 0],
                latent_image=["latent", 0],
            ),
            **finish("ae.safetensors", "twinflow_z"),
        },
    )


def sd35_lora():
    clips = ("clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors")
    return (
        f"""# SD3.5 with a TwinFlow LoRA
**Model** `sd3.5_medium.safetensors` -> `models/diffusion_models`
**VAE** `sd3.5_vae.safetensors` -> `models/vae` (the release's `vae/diffusion_pytorch_model.safetensors`, renamed)
from [stabilityai/stable-diffusion-3.5-medium]({HF}/stabilityai/stable-diffusion-3.5-medium)
**Text encoders** `{clips[0]}`, `{clips[1]}`, `{clips[2]}` -> `models/text_encoders`
from [Comfy-Org/stable-diffusion-3.5-fp8]({HF}/Comfy-Org/stable-diffusion-3.5-fp8) (`text_encoders`)
**LoRA** `sd3.5-lora.safetensors` -> `models/loras`: of our trainer, trained with the folded time

TwinFlow Model Patch shows the model's time conditioning; set it to folded for a LoRA whose file does not say so.""",
        {
            "model": node("UNETLoader", unet_name="sd3.5_medium.safetensors", weight_dtype="default"),
            "lora": node("TwinFlowLoraLoader", model=["model", 0], lora_name="sd3.5-lora.safetensors", strength=1.0),
            "patch": node("TwinFlowModelPatch", model=["lora", 0], times="folded (t - r/2)", branch="real"),
            "clip": node("TripleCLIPLoader", clip_name1=clips[0], clip_name2=clips[1], clip_name3=clips[2]),
            "prompt": node("CLIPTextEncode", clip=["clip", 0], text=CAT),
            "latent": empty(),
            "sample": sample(["patch", 0], ["prompt", 0], ["latent", 0], "4 steps"),
            **finish("sd3.5_vae.safetensors", "twinflow_sd35"),
        },
    )


def img2img():
    return (
        f"# Image to image with Z-Image Turbo\n{Z}\n\n"
        "Denoise sets how far the image may change; the number of steps stays the same.",
        {
            "model": Z_MODEL,
            **Z_TEXT,
            "image": PICTURE,
            "latent": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
            "sample": sample(["model", 0], ["prompt", 0], ["latent", 0], "4 steps", 0.6),
            **finish("ae.safetensors", "twinflow_img2img"),
        },
    )


def inpaint():
    return (
        f"# Inpainting with Z-Image Turbo\n{Z}\n\n"
        "Right-click the image and open the mask editor to paint what is to be drawn anew.",
        {
            "model": Z_MODEL,
            **Z_TEXT,
            "image": PICTURE,
            "encoded": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
            "latent": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["image", 1]),
            "sample": sample(["model", 0], ["prompt", 0], ["latent", 0], "4 steps"),
            **finish("ae.safetensors", "twinflow_inpaint"),
        },
    )


def compare_steps():
    graph = {"model": Z_MODEL, **Z_TEXT, "latent": empty(), "vae": node("VAELoader", vae_name="ae.safetensors")}
    for steps in (1, 2, 4, 8):
        graph[f"sample{steps}"] = sample(
            ["model", 0], ["prompt", 0], ["latent", 0], "1 step" if steps == 1 else f"{steps} steps"
        )
        graph[f"decode{steps}"] = node("VAEDecode", samples=[f"sample{steps}", 0], vae=["vae", 0])
    row = dict(direction="right", match_image_size=True, spacing_width=0, spacing_color="white")
    graph["left"] = node("ImageStitch", image1=["decode1", 0], image2=["decode2", 0], **row)
    graph["right"] = node("ImageStitch", image1=["decode4", 0], image2=["decode8", 0], **row)
    graph["all"] = node("ImageStitch", image1=["left", 0], image2=["right", 0], **row)
    graph["save"] = node("SaveImage", images=["all", 0], filename_prefix="twinflow_steps")
    return f"# 1, 2, 4 and 8 steps side by side, the same seed\n{Z}", graph


def digits():
    graph = {
        "model": load("base.safetensors", "digits-lora.safetensors"),
        "prompt": node("TwinFlowCachedPrompt", file="prompts.safetensors", prompt="3"),
        "empty": node("EmptyImage", width=8, height=8, batch_size=8, color=0x808080),
        "vae": node("VAELoader", vae_name="pixel_space"),
        "latent": node("VAEEncode", pixels=["empty", 0], vae=["vae", 0]),
        "sample": sample(["model", 0], ["prompt", 0], ["latent", 0], "2 steps"),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "large": node(
            "ImageScale", image=["decode", 0], upscale_method="nearest-exact", width=256, height=256, crop="disabled"
        ),
        "save": node("SaveImage", images=["large", 0], filename_prefix="twinflow_digit"),
    }
    return (
        """# Handwritten digits, on any CPU
Train them with `make demo` (minutes), then put three files of `runs/digits-lora`:
**Model** `base.safetensors` -> `models/diffusion_models`
**Adapter** `digits-lora.safetensors` -> `models/loras`
**Prompts** `prompts.safetensors` -> `models/prompts` (make the folder)

No text encoder and no VAE: the prompts are cached, and the latents are the pixels. Change the prompt to any digit.""",
        graph,
    )


WORKFLOWS = {
    f.__name__: f
    for f in (
        qwen_image_2step,
        qwen_image_lora,
        qwen_image_edit,
        z_image_2step,
        sd35_lora,
        img2img,
        inpaint,
        compare_steps,
        digits,
    )
}
