"""The backbones' records: found by being there, told apart by their keys, consistent in themselves."""

import pkgutil
import re

import pytest

import twinflow.backbones
from twinflow.backbones import all_backbones, axes, find, is_second_embedder, models

FILES = sorted(info.name for info in pkgutil.iter_modules(twinflow.backbones.__path__))


def test_every_file_is_a_record():
    assert list(all_backbones()) == FILES and {"qwen_image", "z_image", "sd3", "sana", "digits"} <= set(FILES)
    assert len({b.name for b in all_backbones().values()}) == len(FILES)


def test_a_command_line_name_belongs_to_one_backbone():
    assert len(models()) == sum(len(b.models) for b in all_backbones().values())
    assert models()["z-image-turbo"] == "z_image" and models()["sd3.5"] == "sd3"


@pytest.mark.parametrize("file", FILES)
def test_a_backbone_is_found_by_its_keys_unless_it_is_a_variant(file):
    record = all_backbones()[file]
    for key in (record.layout.native, record.layout.diffusers):
        found = find({key, "other.weight"})
        assert (found is not record) if record.variant else (found is record), key


def test_other_models_are_not_found():
    assert find(set()) is None and find({"double_blocks.0.img_attn.qkv.weight"}) is None


@pytest.mark.parametrize("file", FILES)
def test_second_embedders_are_recognised_with_and_without_a_prefix(file):
    record = all_backbones()[file]
    for key in (*record.second, f"{record.time.name}.weight", f"{record.native_time.name}.weight"):
        assert (
            is_second_embedder(key)
            and is_second_embedder(f"transformer.{key}")
            and is_second_embedder(f"model.diffusion_model.{key}")
        )
    first = [f"{record.time.embedder}.weight", f"{record.native_time.embedder}.weight"]
    first += [re.sub(r"_2\.", ".", key) for key in record.second]
    assert not any(is_second_embedder(key) for key in first)


@pytest.mark.parametrize("head", [8, 16, 64, 128])
def test_rotary_axes_share_the_whole_head(head):
    own = axes(head)
    assert sum(own) == head and own[1] == own[2] and not any(a % 2 for a in own)
