"""Reading the frontend's own workflow format."""

import json
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "example_workflows"
NOTES = {"MarkdownNote", "Note"}
CONTROLS = {"fixed", "randomize", "increment", "decrement"}


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def pack() -> dict[str, str]:
    """Name and version as pyproject.toml has them; tomllib is not in every interpreter that runs ComfyUI."""
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").split("[project]")[1]
    return {key: re.search(rf'^{key} = "(.+)"', project, re.M)[1] for key in ("name", "version")}


def widgets(node: dict) -> dict[str, object]:
    """The values of a node's widgets by name, without the control value that the frontend puts behind every seed."""
    values, out = list(node.get("widgets_values") or []), {}
    for one in node.get("inputs", []):
        if one.get("widget"):
            value = values.pop(0)
            if one["widget"]["name"] != "upload":  # the button below a picture
                out[one["widget"]["name"]] = value
            if values and values[0] in CONTROLS and isinstance(value, int):
                values.pop(0)
    return out


def prompt(workflow: dict) -> dict:
    """The workflow as the HTTP API takes it."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        linked = {i["name"]: sources[i["link"]] for i in node.get("inputs", []) if i.get("link") is not None}
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": {**widgets(node), **linked}}
    return graph
