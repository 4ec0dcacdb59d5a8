"""Widths read off the tensors, for models smaller than those that ComfyUI's detection knows.

Each function takes shape(key) -> tuple or None and returns what to change in the detected configuration; nothing for
a model of the published size.  How a head's width is shared among the rotary axes is in no tensor: heads of 128 have the
published shares, others 2:3:3, as in diffusers' own small configurations and in the trainer's digits model.
"""


def axes(head: int) -> tuple[int, int, int]:
    side = head * 3 // 8
    side -= side % 2
    return head - 2 * side, side, side


def count(shape, block: str) -> int:
    n = 0
    while shape(block.format(n)):
        n += 1
    return n


def qwen_image(shape) -> dict:
    (head,), (inner,), (text,) = (
        shape("transformer_blocks.0.attn.norm_q.weight"),
        shape("img_in.bias"),
        shape("txt_norm.weight"),
    )
    (out,) = shape("proj_out.bias")
    if (head, inner, text, out) == (128, 3072, 3584, 64):
        return {}
    return dict(
        attention_head_dim=head,
        num_attention_heads=inner // head,
        joint_attention_dim=text,
        out_channels=out // 4,
        axes_dims_rope=(16, 56, 56) if head == 128 else axes(head),
    )


def z_image(shape) -> dict:
    (head,), (dim,) = shape("layers.0.attention.q_norm.weight"), shape("cap_embedder.1.bias")
    if dim == 3840:
        return {}
    hidden = shape("layers.0.feed_forward.w1.weight")[0]
    (out,) = shape("final_layer.linear.bias")
    return dict(
        dim=dim,
        cap_feat_dim=shape("cap_embedder.0.weight")[0],
        in_channels=out // 4,
        n_layers=count(shape, "layers.{}.attention.q_norm.weight"),
        n_refiner_layers=count(shape, "noise_refiner.{}.attention.q_norm.weight"),
        n_heads=dim // head,
        n_kv_heads=(shape("layers.0.attention.qkv.weight")[0] - dim) // (2 * head),
        axes_dims=axes(head),
        axes_lens=(1536, 512, 512),
        rope_theta=256.0,
        multiple_of=1,
        ffn_dim_multiplier=(hidden + 0.5) / dim,  # int() of this times dim is hidden again
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=32 if shape("cap_pad_token") else None,
        time_widths=(shape("t_embedder.mlp.0.bias")[0], shape("t_embedder.mlp.2.bias")[0]),
    )


class Heads(int):
    """MMDiT's `depth`: the number of heads, and 64 times it the width.  This one answers with the width it was given."""

    def __new__(cls, heads: int, width: int):
        self = super().__new__(cls, heads)
        self.width = width
        return self

    def __mul__(self, other):
        return self.width if other == 64 else int(self) * other

    __rmul__ = __mul__


def sd3(shape) -> dict:
    norm = shape("joint_blocks.0.x_block.attn.ln_q.weight")
    if norm is None or norm[0] == 64:
        return {}
    (width,) = shape("x_embedder.proj.bias")
    return dict(depth=Heads(width // norm[0], width), num_blocks=count(shape, "joint_blocks.{}.x_block.attn.qkv.weight"))
