"""Krea 2 (12.9B), raw and turbo.  Time in [0, 1]; E(t) + (t - r) E_r(r).

diffusers computes the sinusoid of 1000 times it inside its embedder, ComfyUI outside.  A text's embedding is of several layers
of its encoder, one behind the other in the last dimension, as in ComfyUI.
"""

from ..layouts import Layout, Parameter, Rule, blocks
from ..time_embedding import SecondEmbedder, sinusoid
from . import Backbone, Shapes, keys

BLOCKS = {  # diffusers -> native
    "transformer_blocks.{n}": "blocks.{n}",
    "text_fusion.layerwise_blocks.{n}": "txtfusion.layerwise_blocks.{n}",
    "text_fusion.refiner_blocks.{n}": "txtfusion.refiner_blocks.{n}",
}
LAYERS = {  # of each of them
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo",
    "ff.gate": "mlp.gate",
    "ff.up": "mlp.up",
    "ff.down": "mlp.down",
}
NORMS = {"norm1": "prenorm", "norm2": "postnorm", "attn.norm_q": "attn.qknorm.qnorm", "attn.norm_k": "attn.qknorm.knorm"}
OTHERS = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_embed_2.linear_1": "tmlp_2.0",
    "time_embed_2.linear_2": "tmlp_2.2",
    "time_mod_proj": "tproj.1",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "text_fusion.projector": "txtfusion.projector",
    "final_layer.linear": "last.linear",
}
FIRST = "transformer_blocks.0."
TEXT = "text_fusion.refiner_blocks.0."


def widths(shapes: Shapes) -> dict:
    """heads, groups: of queries, and of keys and values.  hidden: of a feed-forward.  text_...: of blocks that refine a text.

    taps: layers of the text encoder.  text: of an embedding, of all of them.  channels: of the latents before they are packed.
    """
    side = lambda block: dict(
        head=shapes[f"{block}attn.norm_q.weight"][0],
        heads=shapes[f"{block}attn.to_q.weight"][0] // shapes[f"{block}attn.norm_q.weight"][0],
        groups=shapes[f"{block}attn.to_k.weight"][0] // shapes[f"{block}attn.norm_q.weight"][0],
        hidden=shapes[f"{block}ff.up.weight"][0],
    )
    image = side(FIRST)
    turn = image["head"] // 16 * 6
    return dict(
        **image,
        **{f"text_{name}": width for name, width in side(TEXT).items()},
        layers=blocks(shapes, "transformer_blocks.{}.attn.to_q.weight"),
        layerwise=blocks(shapes, "text_fusion.layerwise_blocks.{}.attn.to_q.weight"),
        refiners=blocks(shapes, "text_fusion.refiner_blocks.{}.attn.to_q.weight"),
        taps=shapes["text_fusion.projector.weight"][1],
        text=shapes["text_fusion.projector.weight"][1] * shapes["txt_in.linear_1.weight"][1],
        channels=shapes["final_layer.linear.bias"][0] // 4,
        features=shapes["time_embed.linear_1.weight"][1],
        axes=(image["head"] - 2 * turn, turn, turn),
    )


BACKBONE = Backbone(
    name="krea2",
    title="Krea 2",
    models={"krea2": "krea/Krea-2-Raw", "krea2-turbo": "krea/Krea-2-Turbo"},
    layout=Layout(
        native="txtfusion.projector.weight",
        diffusers="text_fusion.projector.weight",
        rules=(
            *(Rule(f"{a}.{one}", f"{b}.{other}") for a, b in BLOCKS.items() for one, other in LAYERS.items()),
            *(Rule(diffusers, native) for diffusers, native in OTHERS.items()),
        ),
        parameters=(
            *(Parameter(f"{a}.{one}.weight", f"{b}.{other}.scale") for a, b in BLOCKS.items() for one, other in NORMS.items()),
            Parameter("txt_in.norm.weight", "txtmlp.0.scale"),
            Parameter("final_layer.norm.weight", "last.norm.scale"),
            Parameter("final_layer.scale_shift_table", "last.modulation.lin"),
            Parameter("transformer_blocks.{n}.scale_shift_table", "blocks.{n}.mod.lin", rows=6),
        ),
        ranks=(("txtfusion.projector.weight", 2),),
    ),
    widths=widths,
    time=SecondEmbedder("time_embed", "time_embed_2"),
    native_time=SecondEmbedder("tmlp", "tmlp_2", scale=1000.0, sinusoid=sinusoid),
    note="ComfyUI 0.26 and later",
    second=keys("tmlp_2", "02"),
    modules=(
        r"img_in|time_embed\.linear_[12]|time_mod_proj|txt_in\.linear_[12]|text_fusion\.projector|final_layer\.linear"
        r"|(transformer_blocks|text_fusion\.(layerwise|refiner)_blocks)\.\d+\.(attn\.to_([qkv]|gate|out\.0)|ff\.(gate|up|down))"
    ),
    stock=("", "transformer.", "diffusion_model.", "lycoris_"),
    gguf="krea2",
    still=True,
    pipelines=r"Krea2Pipeline",
)
