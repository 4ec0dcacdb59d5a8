"""The nodes' public interface stays as it is, so that shared workflows go on loading.

A new node or a new optional input belongs in the snapshot: run this file with WRITE_INTERFACE=1.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
    """English is in the schemas themselves; Chinese has an entry for everything."""
    chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text())
    for node in comfy.part("nodes").NODES:
        info, entry = node.GET_NODE_INFO_V1(), chinese[node.define_schema().node_id]
        assert entry["inputs"].keys() == {name for kind in ("required", "optional") for name in info["input"].get(kind, {})}
        assert len(entry["outputs"]) == len(info["output_name"])
        assert all("\u4e00" <= max(v["tooltip"]) for v in entry["inputs"].values())


@pytest.mark.parametrize("folder", ["nodes", "web", "locales"])
def test_no_list_of_models_is_written_out(comfy, folder):
    """Two of the titles in one text are a list that the next backbone would leave untrue: it is made from the records."""
    titles = [record.title for record in comfy.part("nodes.supported").supported().values()]
    any_title = re.compile("|".join(sorted(map(re.escape, titles), key=len, reverse=True)))  # Qwen-Image-2.1 names one
    assert len(titles) >= 3
    for path in (ROOT / folder).rglob("*.*"):
        if path.suffix not in (".py", ".md", ".json"):
            continue
        for line in path.read_text().splitlines():
            assert len(set(any_title.findall(line))) < 2 or "For messages" in line, (path, line)


def test_the_names_of_the_models_are_made_from_the_records(comfy):
    supported, nodes = comfy.part("nodes.supported"), {n.define_schema().node_id: n for n in comfy.part("nodes").NODES}
    assert supported.names() == "FLUX.2 klein, Krea 2, Qwen-Image, Qwen-Image-2.1, SD3.5 or Z-Image"
    whole = "FLUX.2 klein (ComfyUI 0.14 and later), Krea 2 (ComfyUI 0.26 and later), Qwen-Image, "
    whole += "Qwen-Image-2.1 (ComfyUI 0.37 and later), Qwen-Image-Edit, SD3.5 and Z-Image (ComfyUI 0.3.74 and later)"
    assert supported.names_with_notes() == whole
    for node_id, name in (("TwinFlowModelLoader", "model_name"), ("TwinFlowModelPatch", "model")):
        assert supported.names() in nodes[node_id].GET_NODE_INFO_V1()["input"]["required"][name][1]["tooltip"]


def test_every_node_has_its_help_page(comfy):
    for node in comfy.part("nodes").NODES:
        schema = node.define_schema()
        for language in ("en", "zh"):
            page = ROOT / "web" / "docs" / schema.node_id / f"{language}.md"
            missing = [i.id for i in schema.inputs if i.id not in page.read_text()]
            assert not missing, (schema.node_id, language, missing)
