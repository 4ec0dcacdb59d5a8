"""Templates of models that are published: Qwen-Image, and Z-Image Turbo in several ways."""

from .files import HF, SHARDS
from .layout import MODEL, PLAIN, PRESET, PROMPT, SEED, SIZE
from .nodes import PICTURE, QWEN_TEXT, empty, finish, load, node, sample, text
from .note import command
from .template import Template

Z_TEXT = text("qwen_3_4b.safetensors", "lumina2")
Z_MODEL = load("TwinFlow-Z-Image-Turbo_bf16.safetensors")
ALL_SHARDS = "hf download inclusionAI/TwinFlow --include 'TwinFlow-Qwen-Image-v1.0/*/transformer/*'"


def qwen_image():
    return Template(
        "Qwen-Image in 2 steps",
        (
            "The release is one model in eight files, 41 GB. Put all of them into models/diffusion_models, choose any. "
            f"Smaller, and one file: a [GGUF of it]({HF}/smthem/TwinFlow-Qwen-Image-v1.0-diffusers-gguf), with ComfyUI-GGUF."
            f"{command(ALL_SHARDS)}",
            "发布的模型分为八个文件，共 41 GB；全部放到 models/diffusion_models，在加载器中选任意一个。"
            f"更小的单个文件：[GGUF 版本]({HF}/smthem/TwinFlow-Qwen-Image-v1.0-diffusers-gguf)，需要 ComfyUI-GGUF。"
            f"{command(ALL_SHARDS)}",
        ),
        PLAIN,
        {
            "model": load(SHARDS[0]),
            **QWEN_TEXT,
            "latent": empty(),
            "sample": sample(),
            **finish("qwen_image_vae.safetensors", "twinflow_qwen"),
        },
        [PROMPT, PRESET, SEED, *SIZE],
    )


def z_image():
    return Template(
        "Z-Image Turbo in 2 steps",
        (
            "Three files, then press Run. Needs ComfyUI 0.3.74. Leave cfg at 1: guidance is trained in.",
            "准备三个文件，然后点击运行。需要 ComfyUI 0.3.74。cfg 保持 1：引导已训练在模型里。",
        ),
        PLAIN,
        {"model": Z_MODEL, **Z_TEXT, "latent": empty(), "sample": sample(), **finish("ae.safetensors", "twinflow_z")},
        [PROMPT, PRESET, SEED, *SIZE],
    )


def core_samplers():
    schedule = dict(preset="2 steps", steps=2, start_gap=0.001, end_gap=0.6, warp_a=1.0, warp_b=1.0, warp_c=1.0, denoise=1.0)
    sampler = dict(style="few", order="1", noise="constant", stochasticity=1.0, extrapolation=0.0)
    return Template(
        "Z-Image Turbo with core samplers",
        (
            "The same as SIGMAS and SAMPLER in core's own nodes. Schedule and style go together: few for 1, 2 and 4 steps, "
            "any for 8, multi for 30. Needs ComfyUI 0.3.74.",
            "在核心自带的采样节点中使用 SIGMAS 和 SAMPLER。时间表与风格要对应：1、2、4 步用 few，8 步用 any，30 步用 multi。"
            "需要 ComfyUI 0.3.74。",
        ),
        {
            "1 Model": MODEL,
            "2 Prompt": [["prompt", "latent", "noise"]],
            "3 Sample": [["schedule", "sampler", "plot"], ["guider", "sample"], ["decode", "save"]],
        },
        {
            "model": Z_MODEL,
            **Z_TEXT,
            "guider": node("BasicGuider", model=["model", 0], conditioning=["prompt", 0]),
            "schedule": node("TwinFlowSchedule", **schedule),
            "plot": node("TwinFlowSchedulePlot", sigmas=["schedule", 0], style="few", width=768, height=512),
            "sampler": node("TwinFlowUnifiedSampler", **sampler),
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
        [PROMPT, ("schedule", "preset"), ("sampler", "style"), ("noise", "noise_seed"), *SIZE],
    )


def image_to_image():
    return Template(
        "Image to image",
        (
            "Z-Image Turbo on a picture of yours. Denoise sets how far it may change; the number of steps stays the same. "
            "Needs ComfyUI 0.3.74.",
            "用 Z-Image Turbo 处理你的图片。denoise 决定改动的幅度；步数不变。需要 ComfyUI 0.3.74。",
        ),
        {"1 Model": MODEL, "2 Prompt": [["prompt", "image"]], "3 Sample": [["latent", "sample"], ["decode", "save"]]},
        {
            "model": Z_MODEL,
            **Z_TEXT,
            "image": PICTURE,
            "latent": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
            "sample": sample(preset="4 steps", denoise=0.6),
            **finish("ae.safetensors", "twinflow_img2img"),
        },
        [("image", "image"), PROMPT, ("sample", "denoise"), PRESET, SEED],
    )


def inpainting():
    return Template(
        "Inpainting",
        (
            "Right-click the picture, open the mask editor and paint over what Z-Image Turbo shall draw anew. "
            "Needs ComfyUI 0.3.74.",
            "右键点击图片，打开遮罩编辑器，涂抹要由 Z-Image Turbo 重画的部分。需要 ComfyUI 0.3.74。",
        ),
        {
            "1 Model": MODEL,
            "2 Prompt": [["prompt", "image"]],
            "3 Sample": [["encoded", "latent", "sample"], ["decode", "save"]],
        },
        {
            "model": Z_MODEL,
            **Z_TEXT,
            "image": PICTURE,
            "encoded": node("VAEEncode", pixels=["image", 0], vae=["vae", 0]),
            "latent": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["image", 1]),
            "sample": sample(preset="4 steps"),
            **finish("ae.safetensors", "twinflow_inpaint"),
        },
        [("image", "image"), PROMPT, PRESET, SEED],
    )


def compare_steps():
    graph = {"model": Z_MODEL, **Z_TEXT, "vae": node("VAELoader", vae_name="ae.safetensors"), "latent": empty()}
    graph["seed"] = node("PrimitiveInt", value=42)
    columns = []
    for preset in ("1 step", "2 steps", "4 steps", "8 steps"):
        names = [f"{what} {preset}" for what in ("sample", "decode", "save")]
        graph[names[0]] = sample(preset=preset)
        graph[names[0]]["inputs"]["seed"] = ["seed", 0]
        graph[names[1]] = node("VAEDecode", samples=[names[0], 0], vae=["vae", 0])
        graph[names[2]] = node("SaveImage", images=[names[1], 0], filename_prefix=f"twinflow_{preset.replace(' ', '_')}")
        columns.append([names[2], names[1], names[0]])
    return Template(
        "Compare 1, 2, 4 and 8 steps",
        (
            "Z-Image Turbo from one seed, side by side. Needs ComfyUI 0.3.74.",
            "Z-Image Turbo，同一个种子，并排比较。需要 ComfyUI 0.3.74。",
        ),
        {"1 Model": MODEL, "2 Prompt": [["prompt", "latent", "seed"]], "3 Sample": columns},
        graph,
        [PROMPT, ("seed", "value"), *SIZE],
    )
