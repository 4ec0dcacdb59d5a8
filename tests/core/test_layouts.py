"""Names in files: rules go both ways, bit for bit, and leave what they do not know."""

import pytest
import torch

from twinflow.layouts import PREFIXES, Layout, Parameter, Part, Place, Rule, bare, blocks, exchanged, fused, last_block

LAYOUT = Layout(
    native="b.0.qkv.weight",
    diffusers="blocks.0.to_q.weight",
    rules=(
        *fused("blocks.{n}.to_$", "b.{n}.qkv"),
        Rule("blocks.{n}.norm", "b.{n}.n", swapped="last"),
        Rule("final.*", "out.*"),
        Rule("scale", "s", swapped=True),
        Rule("pair.{n}.up", "p.{n}", Part(1, 2)),
        Rule("pair.{n}.gate", "p.{n}", Part(0, 2)),
    ),
    parameters=(
        Parameter("table", "t"),
        Parameter("blocks.{n}.rows", "b.{n}.r", rows=2),
        Parameter("*.inner.weight", "*.i.scale"),
    ),
)


def tensors():
    g = torch.Generator().manual_seed(0)
    names = [
        f"blocks.{n}.{m}.{end}" for n in (0, 2, 10) for m in ("to_q", "to_k", "to_v", "norm") for end in ("weight", "bias")
    ]
    names += ["final.a.b.weight", "scale.weight", "other.weight", "pair.3.up.weight", "pair.3.gate.weight"]
    names += ["blocks.2.rows", "blocks.10.more.inner.weight"]
    tensors = {name: torch.randn(4, 3, generator=g) for name in names} | {"table": torch.randn(4, generator=g)}
    return tensors | {"blocks.2.rows": torch.randn(2, 5, generator=g)}


def test_whole_files_go_both_ways_bit_for_bit():
    there = LAYOUT.to_native(tensors())
    back = LAYOUT.to_diffusers(there)
    assert set(back) == set(tensors()) and all(torch.equal(back[k], v) for k, v in tensors().items())
    assert set(there) == {
        *(f"b.{n}.{m}.{end}" for n in (0, 2, 10) for m in ("qkv", "n") for end in ("weight", "bias")),
        *("out.a.b.weight", "s.weight", "other.weight", "t", "b.2.r", "blocks.10.more.i.scale", "p.3.weight"),
    }
    assert torch.equal(there["b.2.r"], tensors()["blocks.2.rows"].flatten())


def test_parts_stand_in_order_and_halves_are_exchanged_where_stated():
    given = tensors()
    there = LAYOUT.to_native(given)
    assert torch.equal(there["p.3.weight"], torch.cat([given["pair.3.gate.weight"], given["pair.3.up.weight"]]))
    assert torch.equal(there["b.2.qkv.weight"], torch.cat([given[f"blocks.2.to_{x}.weight"] for x in "qkv"]))
    assert torch.equal(there["s.weight"], given["scale.weight"][[2, 3, 0, 1]])
    for n in (0, 2, 10):
        want = exchanged(given[f"blocks.{n}.norm.weight"]) if n == 10 else given[f"blocks.{n}.norm.weight"]
        assert torch.equal(there[f"b.{n}.n.weight"], want), n


def test_names_already_there_and_unknown_ones_stay():
    there = LAYOUT.to_native(tensors())
    again = LAYOUT.to_native(there)
    assert list(again) == list(there) and all(again[k] is v for k, v in there.items())
    assert LAYOUT.to_diffusers({"x.y": torch.ones(2)}).keys() == {"x.y"}
    assert LAYOUT.place("blocks.x.norm", 3) is None and LAYOUT.place("blocks.1.norm.more", 3) is None
    assert LAYOUT.place("blocksX1Xnorm", 3) is None  # a dot is a dot


def test_places_state_part_and_exchange():
    assert LAYOUT.place("blocks.7.to_k", 7) == Place("b.7.qkv", Part(1, 3), False)
    assert Part(1, 3).rows(12) == (4, 4) and LAYOUT.place("pair.0.up", 7) == Place("p.0", Part(1, 2))
    assert [LAYOUT.place("blocks.7.norm", last) for last in (7, 8)] == [Place("b.7.n", None, True), Place("b.7.n")]
    assert [name for name, _ in LAYOUT.names_behind(["b.1.qkv"])["b.1.qkv"]] == [f"blocks.1.to_{x}" for x in "qkv"]


def test_a_file_without_a_part_is_refused():
    given = tensors()
    del given["blocks.2.to_k.weight"]
    with pytest.raises(ValueError, match="b.2.qkv.weight is made of 3 parts, but the file has 2 of them"):
        LAYOUT.to_native(given)


def test_the_last_block_takes_no_absurd_number():
    assert last_block([]) == last_block(["norm.weight", "3.weight"]) == -1
    assert last_block(["blocks.2.a", "blocks.10.a", "x.blocks.99.a"]) == 10
    assert last_block(["blocks.3.a", f"blocks.{'9' * 5000}.a", "blocks.-1.a"]) == 3  # int() refuses 5000 digits


def test_blocks_are_counted_to_the_first_gap():
    assert blocks([], "b.{}.w") == 0
    assert blocks(iter(["b.0.w", "b.1.w", "b.3.w"]), "b.{}.w") == 2


def test_every_prefix_is_taken_off():
    for prefix in PREFIXES:
        assert bare(f"{prefix}a.b") == "a.b"
    assert bare("".join(PREFIXES) + "a") == "a" and bare("a.transformer.b") == "a.transformer.b"
