"""Toy: a small DiT that counts time to the data, times 100; E(u) + (t - r) E_r(w), with u and w its counts of t and r."""

from ..layouts import Layout, Rule, blocks, fused
from ..time_embedding import SecondEmbedder
from . import Backbone, Shapes, keys


def widths(shapes: Shapes) -> dict:
    return dict(
        width=shapes["proj_in.bias"][0],
        channels=shapes["proj_out.bias"][0],
        text=shapes["caption.weight"][1],
        layers=blocks(shapes, "blocks.{}.to_q.weight"),
    )


TIME = SecondEmbedder("clock", "clock_2", scale=100.0, view=lambda t: 1 - t)
BACKBONE = Backbone(
    name="toy",
    title="Toy",
    models={"toy": ""},
    layout=Layout(
        native="x_in.weight",
        diffusers="proj_in.weight",
        rules=(
            *fused("blocks.{n}.to_$", "layers.{n}.qkv"),
            Rule("blocks.{n}.to_out", "layers.{n}.out"),
            Rule("proj_in", "x_in"),
            Rule("proj_out", "x_out"),
        ),
    ),
    widths=widths,
    time=TIME,
    native_time=TIME,
    second=keys("clock_2.mlp", "02"),
)
