"""Qwen-Image-2.1 (7B), and its Turbo.  Time in [0, 1], times 1000 inside the embedder's sinusoid; E(t) + (t - r) E_r(r).

Text and reference images are modulated at t = 0, a further row behind those of the batch, which keeps the class's own E(0).
"""

from ..layouts import Layout, Part, Rule, blocks
from ..time_embedding import SecondEmbedder
from . import Backbone, Shapes, axes

BLOCK = "transformer_blocks.{n}.img_mlp."
GATED = {"gate_layer": 0, "proj": 1}  # rows of ComfyUI's gate_up


def widths(shapes: Shapes) -> dict:
    """channels: of the latents, each place a token.  text: of an embedding.  mlp: width of a feed-forward over the model's."""
    (head,), (dim, channels) = shapes["transformer_blocks.0.attn.norm_q.weight"], shapes["img_in.weight"]
    return dict(
        head=head,
        heads=dim // head,
        channels=channels,
        layers=blocks(shapes, "transformer_blocks.{}.attn.norm_q.weight"),
        text=shapes["txt_in.in_layer.weight"][1],
        mlp=shapes["transformer_blocks.0.img_mlp.out.weight"][1] // dim,
        axes=(16, 56, 56) if head == 128 else axes(head),
    )


TIME = SecondEmbedder("time_text_embed", "time_text_embed_2")
BACKBONE = Backbone(
    name="qwen-image-2.1",
    title="Qwen-Image-2.1",
    models={"qwen-image-2.1": "Qwen/Qwen-Image-2.1", "qwen-image-2.1-turbo": "Qwen/Qwen-Image-2.1-Turbo"},
    layout=Layout(
        native="transformer_blocks.0.img_mlp.gate_up.weight",
        diffusers="transformer_blocks.0.img_mlp.gate_layer.weight",
        rules=tuple(Rule(BLOCK + name, BLOCK + "gate_up", Part(index, len(GATED))) for name, index in GATED.items()),
    ),
    widths=widths,
    time=TIME,
    native_time=TIME,
    note="ComfyUI 0.37 and later",
    second=tuple(f"time_text_embed_2.timestep_embedder.linear_{i}.weight" for i in (1, 2)),  # it has no biases
    modules=(
        r"img_in|txt_in\.(text_norm|(in|out)_layer)|modulation\.1|norm_out\.linear|proj_out"
        r"|time_text_embed\.timestep_embedder\.linear_[12]"
        r"|transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|norm_[qk])|img_mlp\.(gate_layer|proj|out))"
    ),
    stock=("", "transformer.", "lycoris_"),
    gguf="qwen_image21",
    pipelines=r"QwenImage21Pipeline",
)
