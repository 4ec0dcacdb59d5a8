"""Where the files of the templates are that can be had, and which of them a node names."""

HF = "https://huggingface.co"
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


def files_of(node: dict) -> list[str]:
    """The files of this node that can be downloaded; any shard of the release needs all."""
    named = [value for value in node["inputs"].values() if isinstance(value, str) and value in FILES]
    return SHARDS if SHARDS[0] in named else named
