"""FLUX.2 klein (4B), base and distilled.  Time in [0, 1], times 1000 before a sinusoid outside; E(t) + (t - r) E_r(r).

diffusers rounds that sinusoid to the dtype of the time, so both embedders are the layers behind it, asked at exact times.
"""

from ..layouts import Layout, Rule, blocks, fused
from ..time_embedding import SecondEmbedder, sinusoid
from . import Backbone, Shapes

DOUBLE = {  # of a block with two streams, diffusers -> native
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
SINGLE = {  # and with one; q, k, v and the MLP are one layer in both
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
RULES = (
    *(Rule("transformer_blocks.{n}." + diffusers, "double_blocks.{n}." + native) for diffusers, native in DOUBLE.items()),
    *fused("transformer_blocks.{n}.attn.to_$", "double_blocks.{n}.img_attn.qkv"),
    *fused("transformer_blocks.{n}.attn.add_$_proj", "double_blocks.{n}.txt_attn.qkv"),
    *(
        Rule("single_transformer_blocks.{n}." + diffusers, "single_blocks.{n}." + native)
        for diffusers, native in SINGLE.items()
    ),
    *(Rule(f"{name}.linear", f"{name}.lin") for name in MODULATIONS),
    Rule("norm_out.linear", "final_layer.adaLN_modulation.1", swapped=True),
    Rule("proj_out", "final_layer.linear"),
    Rule("x_embedder", "img_in"),
    Rule("context_embedder", "txt_in"),
    *(
        Rule(f"{diffusers}.linear_{i}", f"{native}.{side}_layer")
        for diffusers, native in (
            ("time_guidance_embed.timestep_embedder", "time_in"),
            ("time_guidance_embed.guidance_embedder", "guidance_in"),
            ("time_guidance_embed_2", "time_in_2"),
        )
        for i, side in ((1, "in"), (2, "out"))
    ),
)


def widths(shapes: Shapes) -> dict:
    """layers, singles: blocks of two streams, and of one.  text: of an embedding.  features: of the time's sinusoid.

    mlp: width of a feed-forward over the model's.
    """
    (head,), (dim, channels) = shapes["transformer_blocks.0.attn.norm_q.weight"], shapes["x_embedder.weight"]
    return dict(
        head=head,
        heads=dim // head,
        channels=channels,
        layers=blocks(shapes, "transformer_blocks.{}.attn.norm_q.weight"),
        singles=blocks(shapes, "single_transformer_blocks.{}.attn.norm_q.weight"),
        text=shapes["context_embedder.weight"][1],
        features=shapes["time_guidance_embed.timestep_embedder.linear_1.weight"][1],
        mlp=shapes["transformer_blocks.0.ff.linear_out.weight"][1] / dim,
        axes=(head // 4,) * 4,
    )


TIME = SecondEmbedder("time_guidance_embed.timestep_embedder", "time_guidance_embed_2", scale=1000.0, sinusoid=sinusoid)
BACKBONE = Backbone(
    name="flux2-klein",
    title="FLUX.2 klein",
    models={
        "flux2-klein": "black-forest-labs/FLUX.2-klein-base-4B",
        "flux2-klein-distilled": "black-forest-labs/FLUX.2-klein-4B",
        "flux2-klein-edit": "black-forest-labs/FLUX.2-klein-base-4B",  # the same model, trained with reference images
    },
    layout=Layout(
        native="double_stream_modulation_img.lin.weight",
        diffusers="double_stream_modulation_img.linear.weight",
        rules=RULES,
        older=(("_norm.scale", "_norm.weight"),),  # the makers' own files, and ComfyUI's first
    ),
    widths=widths,
    time=TIME,
    native_time=SecondEmbedder("time_in", "time_in_2", scale=1000.0, sinusoid=sinusoid),
    note="ComfyUI 0.14 and later",
    second=("time_in_2.in_layer.weight", "time_in_2.out_layer.weight"),
    modules=(
        r"x_embedder|context_embedder|proj_out|norm_out\.linear|time_guidance_embed\.timestep_embedder\.linear_[12]"
        r"|(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear"
        r"|transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out|norm_(added_)?[qk])"
        r"|ff(_context)?\.linear_(in|out))|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out|norm_[qk])"
    ),
    stock=("", "transformer.", "lycoris_", "lora_transformer_"),
    unnamed=r"(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear|time_guidance_embed\..*",
    gguf="flux",
    others={
        "guidance_in.in_layer.weight": "FLUX.2 dev",
        "time_guidance_embed.guidance_embedder.linear_1.weight": "FLUX.2 dev",
    },
    pipelines=r"Flux2Klein(Inpaint)?Pipeline",
)
