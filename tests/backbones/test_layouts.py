"""Whole checkpoints between diffusers' and ComfyUI's names, both ways, for the real classes."""

import pytest
import torch

from twinflow.layouts import blocks

from .conftest import families

renamed = families(lambda backbone: backbone.core.layout.rules)
fused = families(lambda backbone: backbone.name in ("z-image", "sd3.5", "flux2-klein", "qwen-image-2.1"))


@pytest.fixture(params=[False, True], ids=["plain", "two"])
def tensors(request, family):
    model = family.plain()
    if request.param:
        family.backbone.core.time.install(model)
    return model.state_dict()


@renamed
def test_a_round_trip_is_bit_equal(family, tensors):
    native = family.backbone.to_file(tensors)
    back = family.backbone.from_file(native)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], t) for name, t in tensors.items())


@renamed
def test_converting_twice_is_converting_once(family, tensors):
    native = family.backbone.to_file(tensors)
    again = family.backbone.to_file(native)
    assert again.keys() == native.keys() and all(torch.equal(again[k], native[k]) for k in native)
    back = family.backbone.from_file(tensors)
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], tensors[k]) for k in tensors)


@renamed
def test_native_names_and_order(family, tensors):
    """What is special in each layout; equality with ComfyUI's own converter is tested in tests/comfyui."""
    native, layout = family.backbone.to_file(tensors), family.backbone.core.layout
    assert layout.native in native
    if any(family.backbone.core.time.name in name for name in tensors):
        assert set(family.backbone.core.second) <= set(native)
    if family.backbone.name == "z-image":
        parts = [tensors[f"layers.1.attention.to_{c}.weight"] for c in "qkv"]
        assert torch.equal(native["layers.1.attention.qkv.weight"], torch.cat(parts))
        assert not [name for name in native if "to_" in name or name.startswith("all_")]
    if family.backbone.name == "flux2-klein":
        parts = [tensors[f"transformer_blocks.1.attn.add_{c}_proj.weight"] for c in "qkv"]
        assert torch.equal(native["double_blocks.1.txt_attn.qkv.weight"], torch.cat(parts))
        scale, shift = tensors["norm_out.linear.weight"].chunk(2)
        assert torch.equal(native["final_layer.adaLN_modulation.1.weight"], torch.cat([shift, scale]))
        assert not [name for name in native if "transformer" in name or "linear_" in name]
    if family.backbone.name == "qwen-image-2.1":
        parts = [tensors[f"transformer_blocks.1.img_mlp.{name}.weight"] for name in ("gate_layer", "proj")]
        assert torch.equal(native["transformer_blocks.1.img_mlp.gate_up.weight"], torch.cat(parts))
        assert len(native) == len(tensors) - 2  # in each of its two blocks one less
    if family.backbone.name == "krea2":
        table = tensors["transformer_blocks.1.scale_shift_table"]
        assert torch.equal(native["blocks.1.mod.lin"], table.flatten()) and native["last.modulation.lin"].shape == (2, 32)
        norms = {name for name in native if "norm" in name}
        assert len(norms) == 4 * (2 + 4) + 1 and all(name.endswith("norm.scale") for name in norms)
        assert not [name for name in native if "transformer" in name or "linear_" in name or "embed" in name]
    if family.backbone.name == "sd3.5":
        last = blocks({k: () for k in native}, "joint_blocks.{}.x_block.attn.qkv.weight") - 1
        for theirs, ours in (
            ("norm_out.linear.bias", "final_layer.adaLN_modulation.1.bias"),
            (
                f"transformer_blocks.{last}.norm1_context.linear.bias",
                f"joint_blocks.{last}.context_block.adaLN_modulation.1.bias",
            ),
        ):
            scale, shift = tensors[theirs].chunk(2)
            assert torch.equal(native[ours], torch.cat([shift, scale])), ours
        assert torch.equal(
            native["joint_blocks.0.context_block.adaLN_modulation.1.bias"],
            tensors["transformer_blocks.0.norm1_context.linear.bias"],
        )


@fused
def test_an_incomplete_part_is_an_error(family, tensors):
    name = {"z-image": "layers.0.attention.to_k.weight", "sd3.5": "transformer_blocks.0.attn.add_k_proj.bias"}
    name |= {"flux2-klein": "transformer_blocks.0.attn.to_v.weight"}
    name |= {"qwen-image-2.1": "transformer_blocks.0.img_mlp.proj.weight"}
    with pytest.raises(ValueError, match=r"is made of ([23]) parts, but the file has [12] of them"):
        family.backbone.to_file({k: t for k, t in tensors.items() if k != name[family.backbone.name]})
