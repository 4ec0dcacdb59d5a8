"""Z-Image (6B).  It counts time from the noise to the data, times 1000: E(u) + |u - w| E_r(w - u), u and w the signals of t, r.

Its output is data - noise, the other way round than everybody's; ComfyUI's and the trainer's classes each turn it.
"""

from dataclasses import replace

from ..layouts import Layout, Rule, blocks, fused
from ..time_embedding import SecondEmbedder, to_signal
from . import Backbone, Shapes, axes, keys


def widths(shapes: Shapes) -> dict:
    """hidden: of a feed-forward.  text: of an embedding.  channels: of the latents."""
    (head,), (dim,) = shapes["layers.0.attention.norm_q.weight"], shapes["cap_embedder.1.bias"]
    return dict(
        head=head,
        heads=dim // head,
        dim=dim,
        layers=blocks(shapes, "layers.{}.attention.norm_q.weight"),
        refiners=blocks(shapes, "noise_refiner.{}.attention.norm_q.weight"),
        text=shapes["cap_embedder.0.weight"][0],
        channels=shapes["all_final_layer.2-1.linear.bias"][0] // 4,
        axes=axes(head),
    )


TIME = SecondEmbedder("t_embedder", "t_embedder_2", scale=1000.0, view=to_signal, interval=True)
BACKBONE = Backbone(
    name="z-image",
    title="Z-Image",
    models={"z-image": "Tongyi-MAI/Z-Image", "z-image-turbo": "Tongyi-MAI/Z-Image-Turbo"},
    aliases={"z-image-base": "z-image"},
    layout=Layout(
        native="layers.0.attention.qkv.weight",
        diffusers="layers.0.attention.to_q.weight",
        rules=(
            *fused("*.attention.to_$", "*.attention.qkv"),
            Rule("*.attention.to_out.0", "*.attention.out"),
            Rule("*.attention.norm_q", "*.attention.q_norm"),
            Rule("*.attention.norm_k", "*.attention.k_norm"),
            Rule("all_x_embedder.2-1", "x_embedder"),
            Rule("all_final_layer.2-1.*", "final_layer.*"),
        ),
        ranks=(("x_pad_token", 2), ("cap_pad_token", 2)),
    ),
    widths=widths,
    time=TIME,
    native_time=replace(TIME, rows="last"),  # ComfyUI puts the reference images' rows first
    second=keys("t_embedder_2.mlp", "02"),
    note="ComfyUI 0.3.74 and later",
    uncalled=("norm_final",),  # up to 0.6
    modules=(
        r"all_final_layer\.2-1\.(adaLN_modulation\.1|linear)|all_x_embedder\.2-1|cap_embedder\.[01]|t_embedder\.mlp\.[02]"
        r"|(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_[qkv]|to_out\.0|norm_[qk])"
        r"|feed_forward\.w[123]|adaLN_modulation\.0|(attention|ffn)_norm[12])"
    ),
    signed_time=False,
    stock=("", "transformer.", "diffusion_model.", "lycoris_"),
    gguf="lumina2",
    pipelines=r"ZImage(Img2Img|Inpaint|ControlNet(Inpaint)?)?Pipeline",
)
