"""Writes example_workflows/*.json through the real frontend, from templates/.

    COMFYUI_PATH=... PLAYWRIGHT=folder/with/node_modules python tests/comfyui/make_workflows.py [TITLE ...]

All of them, or those of these titles.  The model files need not be there.  thumbnails.py draws the pictures.
"""

import sys
import tempfile
from pathlib import Path

import workflow
from browser import task
from conftest import find_comfyui
from server import Server
from templates import TEMPLATES
from templates.files import FILES, files_of
from templates.template import Template

CORE = "0.3.64"  # the oldest that has all of core's nodes in the graphs


def main() -> None:
    comfyui = find_comfyui()
    assert comfyui is not None, "set COMFYUI_PATH to a ComfyUI checkout"
    wanted = [template for template in TEMPLATES if template.title in sys.argv[1:]] or TEMPLATES
    with tempfile.TemporaryDirectory() as base:
        server = Server(comfyui, Path(base))
        try:
            server.wait()
            task(server, Path(base), export=[job(template) for template in wanted])
        finally:
            server.stop()
    print(f"{len(wanted)} workflows in {workflow.FOLDER}", file=sys.stderr)


def job(template: Template) -> dict:
    """What browser.mjs needs to write one workflow; the frontend wants numbers where the graphs have names."""
    numbers = {name: str(n) for n, name in enumerate(template.graph, 1)}
    graph = {numbers[name]: renumbered(node, numbers) for name, node in template.graph.items()}
    shown = [numbers[name] for name in template.pictures()]
    return {
        "name": template.title,
        "notes": template.notes(),
        "groups": {
            title: [[numbers[name] for name in column] for column in columns] for title, columns in template.groups.items()
        },
        "below": template.below,
        "graph": graph,
        "extra": {
            "linearData": {"inputs": [[numbers[name], widget] for name, widget in template.app], "outputs": shown},
            "linearMode": False,
        },
        "packs": {numbers[name]: properties(node) for name, node in template.graph.items()},
        "out": str(workflow.FOLDER / f"{template.title}.json"),
    }


def renumbered(node: dict, numbers: dict[str, str]) -> dict:
    inputs = {k: [numbers[v[0]], v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
    return {**node, "inputs": inputs, "_meta": {"title": None}}


def properties(node: dict) -> dict:
    """The pack that a node is from, so that the page can offer it, and its files, so that the page can fetch them."""
    ours = node["class_type"].startswith("TwinFlow")
    pack = {"cnr_id": "twinflow", "ver": workflow.pack()["version"]} if ours else {"cnr_id": "comfy-core", "ver": CORE}
    models = [{"name": name, "url": FILES[name][1], "directory": FILES[name][0]} for name in files_of(node)]
    return {**pack, **({"models": models} if models else {})}


if __name__ == "__main__":
    main()
