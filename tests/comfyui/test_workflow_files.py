"""The shared workflows and the nodes' public interface, as data: no ComfyUI is needed."""

import json
from pathlib import Path

import pytest
import workflow

WANTED = "qwen_image_2step qwen_image_lora qwen_image_edit z_image_2step sd35_lora img2img inpaint compare_steps digits".split()
INTERFACE = json.loads(Path(__file__).with_name("interface.json").read_text())


def test_all_are_there_with_a_thumbnail():
    assert workflow.names() == sorted(WANTED)
    for name in WANTED:
        assert (workflow.FOLDER / f"{name}.jpg").read_bytes().startswith(b"\xff\xd8")


def test_every_node_appears():
    used = {node["type"] for name in workflow.names() for node in workflow.read(name)["nodes"]}
    assert set(INTERFACE) <= used


@pytest.mark.parametrize("name", WANTED)
def test_fits_the_interface(name):
    """Our nodes have the widgets, the values and the links that the interface allows; nothing required is left open."""
    read = workflow.read(name)
    links = {link[0]: link for link in read["links"]}
    for node in read["nodes"]:
        if node["type"] not in INTERFACE:
            assert not node["type"].startswith("TwinFlow")
            continue
        inputs = INTERFACE[node["type"]]["inputs"]
        values = workflow.widgets(node)
        linked = {i["name"]: links[i["link"]][5] for i in node["inputs"] if i.get("link") is not None}
        for key, value in values.items():
            fits(inputs[key], value, f"{name}: {node['type']}.{key}")
        for key, kind in linked.items():
            assert inputs[key]["type"] == kind, f"{name}: {node['type']}.{key}"
        required = {key for key, spec in inputs.items() if not spec.get("optional")}
        assert required <= values.keys() | linked.keys(), f"{name}: {node['type']}"


def fits(spec: dict, value, where: str):
    if "options" in spec:
        assert value in spec["options"], where
    if "min" in spec:
        assert spec["min"] <= value <= spec["max"], where
    kinds = {"INT": int, "FLOAT": (int, float), "STRING": str, "COMBO": str}
    assert isinstance(value, kinds[spec["type"]]), where


@pytest.mark.parametrize("name", WANTED)
def test_note_names_every_file(name):
    """Each carries a note with the exact file names and folders."""
    read = workflow.read(name)
    note = "\n".join(str(v) for n in read["nodes"] if n["type"] in workflow.NOTES for v in n["widgets_values"])
    files = {
        v
        for n in read["nodes"]
        if n["type"] not in workflow.NOTES
        for v in (n.get("widgets_values") or [])
        if str(v).endswith(".safetensors")
    }
    assert files
    for file in files:
        assert f"`{file}` -> `models/" in note or (f"`{file}`" in note and "models/text_encoders" in note), file
