"""The nodes' public interface stays as it is, so that shared workflows go on loading.

A new node or a new optional input belongs in the snapshot: run this file with WRITE_INTERFACE=1.
"""

import json
import os
import sys
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("interface.json")
KEEP = ("default", "min", "max", "step", "options", "control_after_generate")


def described(comfy) -> dict:
    pack, out = comfy.part("nodes"), {}
    for node in pack.NODES:
        info = node.GET_NODE_INFO_V1()
        inputs = {}
        for kind in ("required", "optional"):
            for name, (type_, *rest) in info["input"].get(kind, {}).items():
                spec = {key: rest[0][key] for key in KEEP if rest and rest[0].get(key) is not None}
                if isinstance(type_, list):
                    type_, spec["options"] = "COMBO", type_
                if name in ("model_name", "adapter", "lora_name", "file"):  # what is on this disk
                    spec.pop("options")
                inputs[name] = {"type": type_, **spec} | ({"optional": True} if kind == "optional" else {})
        out[node.define_schema().node_id] = {
            "inputs": inputs,
            "outputs": dict(zip(info["output_name"], info["output"], strict=True)),
            "display_name": info["display_name"],
        }
    return out


def test_interface_is_unchanged(comfy):
    now = json.loads(json.dumps(described(comfy)))
    if os.environ.get("WRITE_INTERFACE"):
        SNAPSHOT.write_text(json.dumps(now, indent=2) + "\n")
    assert now == json.loads(SNAPSHOT.read_text())


def test_ids_are_our_own(comfy):
    """Other packs own these."""
    taken = {"TwinFlowSampler", "TwinFlowScheduler", "TwinFlowPatcher", "TwinFlowKSampler"}
    assert not taken & set(described(comfy))
    assert not [i for i in described(comfy) if i.startswith("TwinFlow_SM_")]


def test_no_dependency_beyond_comfyui(comfy):
    """The pack is loaded; the trainer and its needs are not."""
    assert not [name for name in sys.modules if name.split(".")[0] in ("peft", "accelerate", "diffusers", "sklearn")]
    assert not [name for name in sys.modules if name == "trainer" or name.startswith((f"{comfy.root}.trainer", "trainer."))]


def test_translations_follow_the_schemas(comfy):
    """English says what the schemas say, word for word; Chinese has an entry for everything."""
    folder = Path(__file__).parents[2] / "locales"
    english, chinese = (json.loads((folder / language / "nodeDefs.json").read_text()) for language in ("en", "zh"))
    for node in comfy.part("nodes").NODES:
        info, node_id = node.GET_NODE_INFO_V1(), node.define_schema().node_id
        tooltips = {k: v[1]["tooltip"] for kind in ("required", "optional") for k, v in info["input"].get(kind, {}).items()}
        assert {k: v["tooltip"] for k, v in english[node_id]["inputs"].items()} == tooltips
        assert english[node_id]["description"] == info["description"]
        for language in (english, chinese):
            assert language[node_id]["inputs"].keys() == tooltips.keys()
            assert len(language[node_id]["outputs"]) == len(info["output_name"])
        assert all("\u4e00" <= max(v["tooltip"]) for v in chinese[node_id]["inputs"].values())


def test_every_node_has_its_help_page(comfy):
    for node in comfy.part("nodes").NODES:
        schema = node.define_schema()
        for language in ("en", "zh"):
            page = Path(__file__).parents[2] / "web" / "docs" / schema.node_id / f"{language}.md"
            missing = [i.id for i in schema.inputs if i.id not in page.read_text()]
            assert not missing, (schema.node_id, language, missing)
