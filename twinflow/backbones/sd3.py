"""SD3.5 Medium and Large.  Time arrives multiplied by 1000; E(t) + P(pooled) + (t - r) (E_r(r) + P_r(pooled))."""

import math

from ..layouts import Layout, Parameter, Rule, blocks, fused
from ..time_embedding import SecondEmbedder
from . import Backbone, Shapes, keys

BLOCK = {  # of a block, diffusers -> native
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
OURS, THEIRS = "joint_blocks.{n}.", "transformer_blocks.{n}."
RULES = (
    *(Rule(THEIRS + diffusers, OURS + native) for diffusers, native in BLOCK.items()),
    *fused(THEIRS + "attn.to_$", OURS + "x_block.attn.qkv"),
    *fused(THEIRS + "attn2.to_$", OURS + "x_block.attn2.qkv"),
    *fused(THEIRS + "attn.add_$_proj", OURS + "context_block.attn.qkv"),
    Rule(THEIRS + "norm1_context.linear", OURS + "context_block.adaLN_modulation.1", swapped="last"),
    Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True),
    Rule("proj_out", "final_layer.linear"),
    Rule("pos_embed.proj", "x_embedder.proj"),
    *(
        Rule(f"time_text_embed{n}.{diffusers}_embedder.linear_{i}", f"{native}_embedder{n}.mlp.{2 * i - 2}")
        for n in ("", "_2")
        for diffusers, native in (("timestep", "t"), ("text", "y"))
        for i in (1, 2)
    ),
)


def widths(shapes: Shapes) -> dict:
    """text, pooled: of the two embeddings.  caption: of the text inside.  dual: blocks with a second attention."""
    width, channels, patch, _ = shapes["pos_embed.proj.weight"]
    caption, text = shapes["context_embedder.weight"]
    layers = blocks(shapes, "transformer_blocks.{}.attn.to_q.weight")
    norm = shapes.get("transformer_blocks.0.attn.norm_q.weight")
    head = norm[0] if norm else 64
    return dict(
        head=head,
        heads=width // head,
        width=width,
        layers=layers,
        normed=norm is not None,
        patch=patch,
        channels=channels,
        text=text,
        caption=caption,
        pooled=shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        positions=math.isqrt(shapes["pos_embed.pos_embed"][-2]),
        dual=tuple(i for i in range(layers) if f"transformer_blocks.{i}.attn2.to_q.weight" in shapes),
    )


BACKBONE = Backbone(
    name="sd3.5",
    title="SD3.5",
    models={"sd3.5": "stabilityai/stable-diffusion-3.5-medium", "sd3.5-large": "stabilityai/stable-diffusion-3.5-large"},
    layout=Layout(
        native="joint_blocks.0.x_block.attn.qkv.weight",
        diffusers="pos_embed.proj.weight",
        rules=RULES,
        parameters=(Parameter("pos_embed.pos_embed", "pos_embed"),),
        ranks=(("pos_embed", 3),),
    ),
    widths=widths,
    time=SecondEmbedder("time_text_embed", "time_text_embed_2", scale=1000.0, init="normal"),
    native_time=SecondEmbedder("t_embedder", "t_embedder_2", scale=1000.0, init="normal"),
    second=keys("t_embedder_2.mlp", "02") + keys("y_embedder_2.mlp", "02"),
    native_scale=1000.0,
    modules=(
        r"context_embedder|norm_out\.linear|pos_embed\.proj|proj_out|time_text_embed\.(text|timestep)_embedder\.linear_[12]"
        r"|transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out|norm_(added_)?[qk])"
        r"|(ff|ff_context)\.net\.(0\.proj|2)|norm1(_context)?\.linear)"
    ),
    stock=("transformer.", "base_model.model.", "lora_transformer_", "lycoris_"),
    gguf="sd3",
    pipelines=r"StableDiffusion3\w*Pipeline",
)
