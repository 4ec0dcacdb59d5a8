"""Writes workflows/*.json and their thumbnails through the real frontend, from graphs.py.

    COMFYUI_PATH=... PLAYWRIGHT=folder/with/node_modules python tests/comfyui/make_workflows.py

The model files need not be there: thumbnails show the graph.  That of digits is a picture from the workflow itself, and stays.
"""

import io
import sys
import tempfile
from pathlib import Path

from browser import task
from conftest import REPOSITORY, find_comfyui
from graphs import WORKFLOWS
from PIL import Image
from server import Server


def main() -> None:
    folder = REPOSITORY / "workflows"
    with tempfile.TemporaryDirectory() as base:
        server = Server(find_comfyui(), Path(base))
        try:
            lay_out_names(server)
            server.wait()
            jobs = []
            for name, make in WORKFLOWS.items():
                note, graph = make()
                graph = {str(i): renumbered(n, list(graph)) for i, n in enumerate(graph.values(), 1)}
                out = dict(out=str(folder / f"{name}.json"), shot=f"{base}/{name}.png")
                jobs.append(dict(name=name, note=note, graph=graph, **out))
            task(server, Path(base), export=jobs)
        finally:
            server.stop()
        for name in WORKFLOWS.keys() - {"digits"}:
            thumbnail(Path(base, f"{name}.png").read_bytes()).save(folder / f"{name}.jpg", quality=80)
    print(f"{len(WORKFLOWS)} workflows in {folder}", file=sys.stderr)


def lay_out_names(server: Server) -> None:
    """Empty files under the names that the graphs mention, so that no loader is drawn as lacking its file."""
    values = {v for make in WORKFLOWS.values() for n in make()[1].values() for v in n["inputs"].values() if isinstance(v, str)}
    for name in (v for v in values if v.endswith(".safetensors")):
        for folder in ("diffusion_models", "loras", "text_encoders", "vae", "prompts"):
            (server.models / folder / name).touch()
    (server.base / "input").mkdir(exist_ok=True)
    Image.linear_gradient("L").resize((512, 512)).convert("RGB").save(server.base / "input" / "example.png")


def renumbered(node: dict, names: list[str]) -> dict:
    """The frontend wants numbers where the graphs have names."""
    inputs = {k: [str(names.index(v[0]) + 1), v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
    return {**node, "inputs": inputs, "_meta": {"title": None}}


def thumbnail(png: bytes) -> Image.Image:
    """The graph without the frontend's bars."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return image.crop((60, 95, image.width, 800)).resize((640, 293), Image.LANCZOS)


if __name__ == "__main__":
    main()
