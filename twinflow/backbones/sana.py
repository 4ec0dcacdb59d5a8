"""SANA 1.6B and 0.6B.  Time arrives multiplied by 1000; both outputs of the embedder get (t - r) times the second one's.

ComfyUI has no SANA.
"""

from ..layouts import Layout, blocks
from ..time_embedding import SecondEmbedder
from . import Backbone, Shapes, keys

HEADS = {1152: (36, 32, 16, 72), 2240: (70, 32, 20, 112)}  # of 0.6B and 1.6B by width: heads and their widths, self and cross


def widths(shapes: Shapes) -> dict:
    """Of the two published widths: how another is shared among heads is in no tensor.  text: of an embedding."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    heads, head, cross_heads, cross_head = HEADS[width]
    return dict(
        head=head,
        heads=heads,
        cross_head=cross_head,
        cross_heads=cross_heads,
        width=width,
        layers=blocks(shapes, "transformer_blocks.{}.attn1.to_q.weight"),
        patch=patch,
        channels=channels,
        out=shapes["proj_out.bias"][0] // patch**2,
        text=shapes["caption_projection.linear_1.weight"][1],
        mlp=shapes["transformer_blocks.0.ff.conv_point.weight"][1] / width,
        normed="transformer_blocks.0.attn1.norm_q.weight" in shapes,
    )


TIME = SecondEmbedder("time_embed", "time_embed_2", scale=1000.0, init="normal")
BACKBONE = Backbone(
    name="sana",
    title="SANA",
    models={
        "sana": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "sana-0.6b": "Efficient-Large-Model/Sana_600M_1024px_diffusers",
    },
    layout=Layout(native="caption_projection.linear_1.weight", diffusers="caption_projection.linear_1.weight"),
    widths=widths,
    time=TIME,
    native_time=TIME,
    second=keys("time_embed_2", ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")),
    pipelines=r"Sana(PAG|ControlNet)?Pipeline",
    modules=(
        r"caption_norm|caption_projection\.linear_[12]|patch_embed\.proj|proj_out|time_embed\.linear"
        r"|time_embed\.emb\.timestep_embedder\.linear_[12]"
        r"|transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0|norm_[qk])|ff\.conv_(depth|inverted|point))"
    ),
)
