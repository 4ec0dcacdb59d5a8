"""The shared workflows and the nodes' public interface, as data: no ComfyUI is needed."""

import json
import re
from pathlib import Path

import pytest
import workflow
from make_workflows import job
from PIL import Image
from templates import TEMPLATES
from templates.files import FILES, SHARDS
from templates.template import PICTURES, Template

INTERFACE = json.loads(Path(__file__).with_name("interface.json").read_text())
every = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.title)
TITLE, FOOTER = 30, 34  # above a node, and below one that lacks a file


def nodes(template: Template) -> list[dict]:
    return [node for node in workflow.read(template.title)["nodes"] if node["type"] not in workflow.NOTES]


def notes(template: Template) -> list[str]:
    read = workflow.read(template.title)
    return [node["widgets_values"][0] for node in read["nodes"] if node["type"] in workflow.NOTES]


def test_all_are_there_with_a_picture():
    assert workflow.names() == sorted(template.title for template in TEMPLATES)
    for name in workflow.names():
        with Image.open(workflow.FOLDER / f"{name}.jpg") as picture:
            assert picture.format == "JPEG" and picture.width == picture.height >= 400
            assert sum(picture.convert("L").resize((1, 1)).tobytes()) > 60, f"{name}: is dark"


FOR_FILES = {"TwinFlowInspect", "TwinFlowSave"}  # which no picture needs


def test_every_node_that_makes_a_picture_appears():
    used = {node["type"] for name in workflow.names() for node in workflow.read(name)["nodes"]}
    assert set(INTERFACE) - used == FOR_FILES


@every
def test_is_what_its_template_says(template):
    """Whoever changes templates/ runs make_workflows.py."""
    found = workflow.prompt(workflow.read(template.title))
    wanted = job(template)
    assert set(found) == set(wanted["graph"])
    for key, node in wanted["graph"].items():
        assert found[key]["class_type"] == node["class_type"]
        assert node["inputs"].items() <= found[key]["inputs"].items()
    assert tuple(notes(template)) == template.notes()


@every
def test_fits_the_interface(template):
    """Our nodes have the widgets, the values and the links that the interface allows; nothing required is left open."""
    read = workflow.read(template.title)
    links = {link[0]: link for link in read["links"]}
    for node in read["nodes"]:
        if node["type"] not in INTERFACE:
            assert not node["type"].startswith("TwinFlow")
            continue
        inputs, where = INTERFACE[node["type"]]["inputs"], f"{template.title}: {node['type']}"
        values = workflow.widgets(node)
        linked = {i["name"]: links[i["link"]][5] for i in node["inputs"] if i.get("link") is not None}
        for key, value in values.items():
            fits(inputs[key], value, f"{where}.{key}")
        for key, kind in linked.items():
            assert inputs[key]["type"] == kind, f"{where}.{key}"
        required = {key for key, spec in inputs.items() if not spec.get("optional")}
        assert required <= values.keys() | linked.keys(), where


def fits(spec: dict, value, where: str):
    if "options" in spec:
        assert value in spec["options"], where
    if "min" in spec:
        assert spec["min"] <= value <= spec["max"], where
    kinds = {"INT": int, "FLOAT": (int, float), "STRING": str, "COMBO": str}
    assert isinstance(value, kinds[spec["type"]]), where


@every
def test_files_can_be_had(template):
    """The page offers to download each file, or the note says first how to train it."""
    english, chinese = notes(template)
    for node in nodes(template):
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        for name in (str(value) for value in node.get("widgets_values") or []):
            if name in FILES:
                folder, address = FILES[name]
                assert models[name] == {"name": name, "url": address, "directory": folder}
                assert f"[{name}]({address})" in english and f"[{name}]({address})" in chinese
            elif name.endswith((".safetensors", ".gguf", ".sft", ".ckpt")):
                assert english.startswith("**Train first**") and chinese.startswith("**先训练**")
                assert name in english and name in chinese
        if SHARDS[0] in models:
            assert list(models) == SHARDS
    for line in re.findall(r"^python -m .+$", english, re.M):
        assert line in chinese


def test_addresses_are_of_the_files():
    for name, (folder, address) in FILES.items():
        assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/.+", address)
        assert address.endswith(f"/{name}") and folder in ("diffusion_models", "checkpoints", "text_encoders", "vae")


@pytest.mark.parametrize("line", sorted({c for t in TEMPLATES for c in re.findall(r"^python -m .+$", t.says[0], re.M)}))
def test_training_commands_name_what_is_there(line):
    """The configuration exists, and its run writes the file that the note says."""
    (note,) = [template.says[0] for template in TEMPLATES if line in template.says[0]]
    name = line.split("--config ")[1].split()[0]
    config = (workflow.REPOSITORY / "trainer" / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    model, mode = (re.search(rf"^{key}: (\S+)", config, re.M)[1] for key in ("model", "mode"))
    assert f"runs/{model}-{mode}/{model}-{mode}.safetensors" in note


@every
def test_every_node_names_its_pack(template):
    for node in nodes(template):
        ours = node["type"].startswith("TwinFlow")
        assert node["properties"]["cnr_id"] == (workflow.pack()["name"] if ours else "comfy-core")
        assert node["properties"]["ver"] == (workflow.pack()["version"] if ours else "0.3.64")


@every
def test_a_second_run_draws_another_picture(template):
    controls = [value for node in nodes(template) for value in node.get("widgets_values") or [] if value in workflow.CONTROLS]
    assert controls and set(controls) == {"randomize"}


@every
def test_groups(template):
    """Numbered groups, with every node in one of them, room for what the page adds, and no text of a node changed.

    Nodes of templates that need no file have no room for a footer, which says that one is missing.
    """
    read = workflow.read(template.title)
    groups = {group["title"]: group["bounding"] for group in read["groups"]}
    assert list(groups) == list(template.groups) and [title[0] for title in groups] == list("12345"[: len(groups)])
    assert list(groups)[:2] == ["1 Model", "2 Prompt"]
    footer = 0 if template.below else FOOTER
    boxes = [box(node, footer) for node in read["nodes"]]
    for i, one in enumerate(boxes):
        assert not any(overlap(one, other) for other in boxes[i + 1 :]), (template.title, read["nodes"][i]["type"])
    for node in nodes(template):
        assert sum(inside(box(node, footer), (x, y, x + w, y + h)) for x, y, w, h in groups.values()) == 1, node["type"]
        assert "title" not in node, "a title of its own is not translated"


def box(node: dict, footer: int) -> tuple[float, float, float, float]:
    (x, y), (w, h) = node["pos"], node["size"]
    return x, y - TITLE, x + w, y + h + (0 if node["type"] in workflow.NOTES else footer)


def overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a, b) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


@every
def test_app_mode_has_its_inputs_and_pictures(template):
    read = workflow.read(template.title)
    by_id = {str(node["id"]): node for node in read["nodes"]}
    app = read["extra"]["linearData"]
    assert app["inputs"] and read["extra"]["linearMode"] is False
    for key, widget in app["inputs"]:
        assert widget in workflow.widgets(by_id[key])
    kinds = [kind for kind in PICTURES if any(node["type"] == kind for node in by_id.values())]
    assert app["outputs"] == [key for key, node in by_id.items() if node["type"] == kinds[0]]
