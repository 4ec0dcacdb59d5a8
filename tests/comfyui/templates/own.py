"""Templates of what the user trains first: adapters and LoRAs of their own, and digits."""

from .layout import MODEL, PLAIN, PRESET, PROMPT, SAMPLE, SEED, SIZE
from .nodes import PANDA, PICTURE, QWEN_TEXT, decoded, empty, finish, load, node, sample, text
from .note import trained
from .template import Template


def qwen_image_lora():
    return Template(
        "Your Qwen-Image LoRA",
        trained(
            "python -m trainer.lora --config qwen-image-lora-24gb --time fold --data my_images",
            "runs/qwen-image-lora/qwen-image-lora.safetensors",
            "The loader reads from the file which times it was trained with and how to sample it.",
            "加载器会从文件中读取时间条件和采样设置。",
        ),
        {**PLAIN, "1 Model": [["model", "clip", "vae", "lora"]]},
        {
            "model": node("UNETLoader", unet_name="qwen_image_fp8_e4m3fn.safetensors", weight_dtype="default"),
            "lora": node("TwinFlowLoraLoader", model=["model", 0], lora_name="qwen-image-lora.safetensors", strength=1.0),
            **QWEN_TEXT,
            "latent": empty(),
            "sample": sample("lora", "4 steps"),
            **finish("qwen_image_vae.safetensors", "twinflow_qwen_lora"),
        },
        [PROMPT, ("lora", "strength"), PRESET, SEED, *SIZE],
    )


def qwen_image_edit():
    return Template(
        "Your Qwen-Image-Edit adapter",
        trained(
            "python -m trainer.lora --config qwen-image-edit-lora-24gb --data my_edits.jsonl",
            "runs/qwen-image-edit-lora/qwen-image-edit-lora.safetensors",
            "It holds a LoRA and the second time embedder.",
            "文件中有 LoRA 和第二时间嵌入器。",
        ),
        {"1 Model": MODEL, "2 Prompt": [["image", "scaled"], ["prompt", "latent"]], "3 Sample": SAMPLE},
        {
            "model": load("qwen_image_edit_2509_fp8_e4m3fn.safetensors", "qwen-image-edit-lora.safetensors"),
            "clip": QWEN_TEXT["clip"],
            "vae": node("VAELoader", vae_name="qwen_image_vae.safetensors"),
            "image": PICTURE,
            "scaled": node("ImageScaleToTotalPixels", image=["image", 0], upscale_method="lanczos", megapixels=1.0),
            "prompt": node(
                "TextEncodeQwenImageEdit",
                clip=["clip", 0],
                vae=["vae", 0],
                image=["scaled", 0],
                prompt="make it a pencil drawing",
            ),
            "latent": node("VAEEncode", pixels=["scaled", 0], vae=["vae", 0]),
            "sample": sample(preset="4 steps"),
            **decoded(["vae", 0], "twinflow_edit"),
        },
        [("image", "image"), ("prompt", "prompt"), PRESET, SEED],
    )


def own_adapter(title: str, config: str, needs: str, model: str, encoder: tuple[str, str], vae: str, prefix: str):
    """Of a model that is asked at (t, r) by an adapter of the user's own.  encoder: file, and the kind that core calls it."""
    name = config.rpartition("-")[0]
    return Template(
        f"Your {title} adapter",
        trained(
            f"python -m trainer.lora --config {config} --data my_images",
            f"runs/{name}/{name}.safetensors",
            f"It holds a LoRA and the second time embedder. Needs ComfyUI {needs}.",
            f"文件中有 LoRA 和第二时间嵌入器。需要 ComfyUI {needs}。",
        ),
        PLAIN,
        {
            "model": load(model, f"{name}.safetensors"),
            **text(*encoder),
            "latent": empty(),
            "sample": sample(preset="4 steps"),
            **finish(vae, prefix),
        },
        [PROMPT, PRESET, SEED, *SIZE],
    )


def flux2_klein():
    encoder = "qwen_3_4b.safetensors", "flux2"
    model, vae = "flux-2-klein-base-4b.safetensors", "flux2-vae.safetensors"
    return own_adapter("FLUX.2 klein", "flux2-klein-lora-16gb", "0.14", model, encoder, vae, "twinflow_klein")


def krea2():
    encoder = "qwen3vl_4b_fp8_scaled.safetensors", "krea2"
    model, vae = "krea2_raw_fp8_scaled.safetensors", "qwen_image_vae.safetensors"
    return own_adapter("Krea 2", "krea2-lora-24gb", "0.26", model, encoder, vae, "twinflow_krea2")


def qwen_image_21():
    encoder = "qwen3vl_8b_int8_convrot.safetensors", "qwen_image"
    model, vae = "qwen_image_2.1_int8_convrot.safetensors", "qwen_image_2.1_vae_bf16.safetensors"
    return own_adapter("Qwen-Image-2.1", "qwen-image-2.1-lora-16gb", "0.37", model, encoder, vae, "twinflow_qwen21")


def sd35_lora():
    return Template(
        "Your SD3.5 LoRA",
        trained(
            "python -m trainer.lora --config sd3.5-medium-lora --time fold --data my_images",
            "runs/sd3.5-lora/sd3.5-lora.safetensors",
            "TwinFlow Model Patch shows the times that the model gets; for a LoRA whose file names none, set it to folded.",
            "TwinFlow 模型补丁显示模型接收的时间；文件没有说明的 LoRA 请设为 folded。",
        ),
        {**PLAIN, "1 Model": [["model", "lora", "patch"]]},
        {
            "model": node("CheckpointLoaderSimple", ckpt_name="sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"),
            "lora": node("TwinFlowLoraLoader", model=["model", 0], lora_name="sd3.5-lora.safetensors", strength=1.0),
            "patch": node("TwinFlowModelPatch", model=["lora", 0], times="auto", branch="real"),
            "prompt": node("CLIPTextEncode", clip=["model", 1], text=PANDA),
            "latent": empty(),
            "sample": sample("patch", "4 steps"),
            **decoded(["model", 2], "twinflow_sd35"),
        },
        [PROMPT, ("lora", "strength"), PRESET, SEED, *SIZE],
    )


def digits():
    return Template(
        "Handwritten digits",
        (
            "**Train first**, minutes on any CPU: **python -m trainer.lora --model digits**. Then copy from runs/digits-lora\n"
            "- base.safetensors to models/diffusion_models\n"
            "- digits-lora.safetensors to models/loras\n"
            "- prompts.safetensors to models/prompts (make the folder)\n\n"
            "No text encoder and no VAE: prompts are cached, latents are pixels. The prompt is any digit.",
            "**先训练**，任何 CPU 上几分钟：**python -m trainer.lora --model digits**。然后从 runs/digits-lora 复制\n"
            "- base.safetensors 到 models/diffusion_models\n"
            "- digits-lora.safetensors 到 models/loras\n"
            "- prompts.safetensors 到 models/prompts（新建此文件夹）\n\n"
            "不需要文本编码器和 VAE：提示词已缓存，latent 就是像素。提示词可以是任意数字。",
        ),
        {
            "1 Model": [["vae", "model"]],
            "2 Prompt": [["prompt", "empty", "latent"]],
            "3 Sample": [["sample"], ["decode", "large", "save"]],
        },
        {
            "model": load("base.safetensors", "digits-lora.safetensors"),
            "prompt": node("TwinFlowCachedPrompt", file="prompts.safetensors", prompt="3"),
            "empty": node("EmptyImage", width=8, height=8, batch_size=8, color=0x808080),
            "vae": node("VAELoader", vae_name="pixel_space"),
            "latent": node("VAEEncode", pixels=["empty", 0], vae=["vae", 0]),
            "sample": sample(),
            "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
            "large": node(
                "ImageScale", image=["decode", 0], upscale_method="nearest-exact", width=256, height=256, crop="disabled"
            ),
            "save": node("SaveImage", images=["large", 0], filename_prefix="twinflow_digit"),
        },
        [("prompt", "prompt"), PRESET, SEED, ("empty", "batch_size")],
    )
