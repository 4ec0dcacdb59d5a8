"""Qwen-Image (20B).  Time in [0, 1], multiplied by 1000 inside the embedder's sinusoid; E(t) + (t - r) E_r(r)."""

from ..layouts import Layout, blocks
from ..time_embedding import SecondEmbedder
from . import Backbone, Shapes, axes, keys


def widths(shapes: Shapes) -> dict:
    """channels: of the latents before they are packed into patches of 2 x 2.  text: of an embedding."""
    (head,), (inner,) = shapes["transformer_blocks.0.attn.norm_q.weight"], shapes["img_in.bias"]
    return dict(
        head=head,
        heads=inner // head,
        layers=blocks(shapes, "transformer_blocks.{}.attn.norm_q.weight"),
        text=shapes["txt_norm.weight"][0],
        channels=shapes["proj_out.bias"][0] // 4,
        axes=(16, 56, 56) if head == 128 else axes(head),
    )


TIME = SecondEmbedder("time_text_embed", "time_text_embed_2")
BACKBONE = Backbone(
    name="qwen-image",
    title="Qwen-Image",
    models={"qwen-image": "Qwen/Qwen-Image", "qwen-image-2512": "Qwen/Qwen-Image-2512"},
    layout=Layout(native="txt_norm.weight", diffusers="txt_norm.weight"),  # ComfyUI's names are diffusers'
    widths=widths,
    time=TIME,
    native_time=TIME,
    second=keys("time_text_embed_2.timestep_embedder", ("linear_1", "linear_2")),
    modules=(
        r"img_in|txt_in|txt_norm|proj_out|norm_out\.linear|time_text_embed\.timestep_embedder\.linear_[12]"
        r"|transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out|norm_(added_)?[qk])"
        r"|(img|txt)_(mod\.1|mlp\.net\.(0\.proj|2)))"
    ),
    stock=("", "transformer.", "diffusion_model.", "lycoris_", "lora_unet_"),
    gguf="qwen_image",
    others={"time_text_embed.addition_t_embedding.weight": "Qwen-Image-Layered"},
    pipelines=r"QwenImage(Img2Img|Inpaint|ControlNet(Inpaint)?)?Pipeline",
)
