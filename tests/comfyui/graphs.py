"""The shared workflows as graphs: `make_workflows.py` hands them to the frontend, which writes example_workflows/*.json."""

from dataclasses import dataclass, field

HF = "https://huggingface.co"
PANDA = "a red panda reading a newspaper in a cafe, morning light"
RELEASE = "inclusionAI/TwinFlow/resolve/main/TwinFlow-Qwen-Image-v1.0/TwinFlow-Qwen-Image/transformer"
SHARDS = [f"diffusion_pytorch_model-{n:05}-of-00008.safetensors" for n in range(1, 9)]

# Where the files are that can be had: name -> (folder in models, address).  What our trainer writes is not here.
FILES = {
    name: (folder, f"{HF}/{where}/{name}")
    for folder, where, names in (
        ("diffusion_models", RELEASE, SHARDS),
        ("diffusion_models", "DeepBeepMeep/Z-Image/resolve/main", ["TwinFlow-Z-Image-Turbo_bf16.safetensors"]),
        (
            "diffusion_models",
            "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/diffusion_models",
            ["qwen_image_fp8_e4m3fn.safetensors"],
        ),
        (
            "diffusion_models",
            "Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files/diffusion_models",
            ["qwen_image_edit_2509_fp8_e4m3fn.safetensors"],
        ),
        (
            "checkpoints",
            "Comfy-Org/stable-diffusion-3.5-fp8/resolve/main",
            ["sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"],
        ),
        (
            "text_encoders",
            "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/text_encoders",
            ["qwen_2.5_vl_7b_fp8_scaled.safetensors"],
        ),
        ("vae", "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/vae", ["qwen_image_vae.safetensors"]),
        ("text_encoders", "Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders", ["qwen_3_4b.safetensors"]),
        ("vae", "Comfy-Org/z_image_turbo/resolve/main/split_files/vae", ["ae.safetensors"]),
        (
            "diffusion_models",
            "Comfy-Org/flux2-klein/resolve/main/split_files/diffusion_models",
            ["flux-2-klein-base-4b.safetensors"],
        ),
        ("vae", "Comfy-Org/flux2-dev/resolve/main/split_files/vae", ["flux2-vae.safetensors"]),
        ("diffusion_models", "Comfy-Org/Krea-2/resolve/main/diffusion_models", ["krea2_raw_fp8_scaled.safetensors"]),
        ("text_encoders", "Comfy-Org/Krea-2/resolve/main/text_encoders", ["qwen3vl_4b_fp8_scaled.safetensors"]),
        *(
            (folder, f"Comfy-Org/Qwen-Image-2.1/resolve/main/{folder}", [name])
            for folder, name in (
                ("diffusion_models", "qwen_image_2.1_int8_convrot.safetensors"),
                ("text_encoders", "qwen3vl_8b_int8_convrot.safetensors"),
                ("vae", "qwen_image_2.1_vae_bf16.safetensors"),
            )
        ),
    )
    for name in names
}

PICTURES = ("SaveImage", "TwinFlowEmojiImage", "TwinFlowVelocityFields")


@dataclass
class Template:
    """One workflow.  title: its file's name, which the page shows.

    says: the note's text, in English and in Chinese, before the list of files.  groups: what stands together, in columns from
    left to right.  below: the groups that stand below the one before them.  app: the widgets that app mode shows, as (node,
    widget); the pictures it shows are those that are saved or, where none is, those of our own nodes.
    """

    title: str
    says: tuple[str, str]
    groups: dict[str, list[list[str]]]
    graph: dict[str, dict]
    app: list[tuple[str, str]] = field(default_factory=list)
    below: tuple[str, ...] = ()

    def pictures(self) -> list[str]:
        by_kind = {kind: [name for name, node in self.graph.items() if node["class_type"] == kind] for kind in PICTURES}
        return next(filter(None, by_kind.values()))

    def notes(self) -> tuple[str, str]:
        english, chinese = self.says
        return f"{english}\n\n{self.files('to')}".strip(), f"{chinese}\n\n{self.files('放到')}".strip()

    def files(self, to: str) -> str:
        names = [name for node in self.graph.values() for name in files_of(node)[:1]]
        return "\n".join(f"- [{name}]({FILES[name][1]}) {to} models/{FILES[name][0]}" for name in names)


def files_of(node: dict) -> list[str]:
    """The files of this node that can be downloaded; any shard of the release needs all."""
    named = [value for value in node["inputs"].values() if isinstance(value, str) and value in FILES]
    return SHARDS if SHARDS[0] in named else named


def command(line: str) -> str:
    return f"\n\n```\n{line}\n```\n\n"


def trained(line: str, file: str, english: str, chinese: str) -> tuple[str, str]:
    return (
        f"**Train first**, with this pack's trainer:{command(line)}then copy **{file}** to models/loras. {english}",
        f"**先训练**，使用本包的训练器：{command(line)}然后把 **{file}** 复制到 models/loras。{chinese}",
    )


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
Z_TEXT = text("qwen_3_4b.safetensors", "lumina2")
Z_MODEL = load("TwinFlow-Z-Image-Turbo_bf16.safetensors")
PICTURE = node("LoadImage", image="example.png")
PROMPT, SEED, PRESET = ("prompt", "text"), ("sample", "seed"), ("sample", "preset")
SIZE = [("latent", "width"), ("latent", "height")]
MODEL = [["clip", "vae", "model"]]
SAMPLE = [["sample", "decode"], ["save"]]
PLAIN = {"1 Model": MODEL, "2 Prompt": [["prompt", "latent"]], "3 Sample": SAMPLE}
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
            "3 Sample": [["schedule", "sampler"], ["guider", "sample", "decode", "plot"], ["save"]],
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
        {"1 Model": MODEL, "2 Prompt": [["prompt", "image"]], "3 Sample": [["latent", "sample", "decode"], ["save"]]},
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
            "3 Sample": [["encoded", "latent", "sample", "decode"], ["save"]],
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
        columns.append(names)
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
            "3 Sample": [["sample", "decode", "large"], ["save"]],
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


DISTILLED, BASE = "TwinFlow emoji: distilled", "TwinFlow emoji: base"
EMOJI = node("TwinFlowEmojiPrompt", words="dog face", batch_size=1)


def emoji_in_one_step():
    graph = {"distilled": load(DISTILLED), "base": load(BASE), "prompt": EMOJI, "seed": node("PrimitiveInt", value=42)}
    columns = {}
    for name, sampler in {
        "base 1": plain(1),
        "1": sample("distilled", "1 step, by the file"),
        "2": sample("distilled", "2 steps, by the file"),
        "4": sample("distilled", "4 steps, by the file"),
        "base 32": plain(32),
    }.items():
        sampler["inputs"] |= {"seed": ["seed", 0], "latent_image": ["prompt", 2]}
        graph[f"sample {name}"] = sampler
        graph[f"image {name}"] = node("TwinFlowEmojiImage", latent=[f"sample {name}", 0], scale=8)
        columns[name] = [f"image {name}", f"sample {name}"]  # pictures in a row; a preview grows below
    return Template(
        "Emoji in one step",
        (
            "Press Run: seconds on any CPU, nothing to download. Then type the name of another emoji in the prompt: *red "
            "heart*, *flag of Japan*, *pizza*, *rocket*. The base needs 32 steps and cannot do it in one; the model that "
            "TwinFlow made of it can. All known words are on the prompt's help page. Graphics: Twemoji, CC-BY 4.0.",
            "点击运行：任何 CPU 上几秒钟，无需下载。在提示词里输入别的表情名称（英文）："
            "*red heart*、*flag of Japan*、*pizza*、*rocket*。"
            "底模需要 32 步，一步画不出来；用 TwinFlow 蒸馏后的模型一步就够。"
            "全部可用的词见提示词节点的帮助页。图形来自 Twemoji，CC-BY 4.0。",
        ),
        {
            "1 Model": [["distilled", "base"]],
            "2 Prompt": [["prompt", "seed"]],
            "3 Base, 1 step": [columns["base 1"]],
            "4 TwinFlow, 1, 2 and 4 steps": [columns["1"], columns["2"], columns["4"]],
            "5 Base, 32 steps": [columns["base 32"]],
        },
        graph,
        [("prompt", "words"), ("seed", "value"), ("prompt", "batch_size")],
        below=("2 Prompt",),
    )


def plain(steps: int) -> dict:
    """The base as any model is sampled, with a little guidance."""
    return node(
        "KSampler",
        model=["base", 0],
        positive=["prompt", 0],
        negative=["prompt", 1],
        steps=steps,
        cfg=1.5,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )


def the_twin():
    graph = {
        "model": load(DISTILLED),
        "prompt": EMOJI,
        "fields": node(
            "TwinFlowVelocityFields",
            model=["model", 0],
            positive=["prompt", 0],
            latent_image=["prompt", 2],
            seed=42,
            times="0.2, 0.4, 0.6, 0.8",
            cell=160,
        ),
    }
    plots = [f"plot {preset}" for preset in ("1 step", "2 steps", "4 steps", "8 steps")]
    for name in plots:
        graph[name] = node("TwinFlowSchedulePlot", style="few", width=384, height=384, preset=name.removeprefix("plot "))
    return Template(
        "How TwinFlow works - the twin",
        (
            "At a point x_t between picture (t = 0) and noise (t = 1) the model is asked for a velocity v(x_t, t, r). "
            "**r = t**: the *real* field, where to go now. **r = 0**: the jump to the picture in one step. "
            "**Negative times**: the *fake* field, learnt by the same weights from the model's own samples of one step. "
            "Where the two fields differ, such samples do not look real yet; in training the difference corrects the jump. "
            "On the right the times of 1, 2, 4 and 8 steps (blue), and where each step aims (orange).",
            "在图像（t = 0）与噪声（t = 1）之间的一点 x_t 上，向模型询问速度 v(x_t, t, r)。**r = t**：*真*速度场，当前的方向。"
            "**r = 0**：一步跳到图像。**负时间**：*假*速度场，由同一组权重从模型自己的一步样本学得。"
            "两个场不一致的地方，样本还不像真实图像；训练时用这个差来修正这一跳。"
            "右边是 1、2、4、8 步的时间（蓝色）和每一步的目标（橙色）。",
        ),
        {
            "1 Model": [["model"]],
            "2 Prompt": [["prompt"]],
            "3 Real field, fake field, jump": [["fields"]],
            "4 Steps, and where they aim": [plots[::2], plots[1::2]],
        },
        graph,
        [("prompt", "words"), ("fields", "times"), ("fields", "seed")],
        below=("2 Prompt",),
    )


TEMPLATES = [
    make()
    for make in (
        emoji_in_one_step,
        the_twin,
        qwen_image,
        z_image,
        core_samplers,
        image_to_image,
        inpainting,
        compare_steps,
        qwen_image_lora,
        qwen_image_edit,
        flux2_klein,
        krea2,
        qwen_image_21,
        sd35_lora,
        digits,
    )
]
