"""Every shared workflow in a started ComfyUI with small files in place of the big ones; one of them in a real browser."""

import io
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
from pathlib import Path

import browser
import pytest
import stand_ins
import tiny
import workflow
from PIL import Image
from server import Server

HERE = Path(__file__).parent
FLAGSHIP = "Qwen-Image in 2 steps"
ARTEFACTS = HERE.parents[1] / "runs" / "test-comfyui"


@pytest.fixture(scope="module")
def server(comfyui, goldens, tmp_path_factory):
    server = Server(comfyui, tmp_path_factory.mktemp("workflows"))
    try:
        (server.base / "input").mkdir(exist_ok=True)
        picture = Image.linear_gradient("L").resize((64, 64)).convert("RGBA")
        picture.putalpha(Image.radial_gradient("L").resize((64, 64)))
        picture.save(server.base / "input" / "example.png")
        write = [sys.executable, str(HERE / "write_stand_ins.py"), str(comfyui), str(server.models), str(goldens)]
        subprocess.run(write, check=True, timeout=900)  # in a process of its own: it imports ComfyUI
        server.wait()
        yield server
    finally:
        server.stop()


def newer(server, than: tuple[int, ...]) -> bool:
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", server.get("/system_stats")["system"]["comfyui_version"])
    return tuple(map(int, version.groups())) >= than


@pytest.mark.parametrize("name", workflow.names())
def test_runs(server, name):
    graph = workflow.prompt(workflow.read(name))
    if not newer(server, tiny.NEEDED.get(family := stand_ins.family(graph), (0, 0, 0))):
        pytest.skip(f"this ComfyUI has no {tiny.NAMES[family]}")
    if family == "flux2" and not newer(server, (0, 21, 0)):
        pytest.skip("this ComfyUI has no small VAE of FLUX.2 to stand in for the large one")
    outcome = server.run(stand_ins.cut_down(graph))
    assert not outcome.error, outcome.error
    images = [image for output in outcome.outputs.values() for image in output.get("images", [])]
    assert images
    own = stand_ins.family(graph) == "emoji"  # they show their pictures and save none
    assert any(image["type"] == "output" for image in images) != own
    for image in images:
        darkest, brightest = Image.open(io.BytesIO(server.image(image))).convert("L").getextrema()
        assert brightest - darkest > 4, "the picture is empty"


def test_every_required_input_is_given(server):
    """The files as the frontend wrote them give every node what it requires, and ours nothing that they do not know.

    Core's own nodes may have fewer inputs in an older ComfyUI, which leaves the others out.
    """
    info = server.get("/object_info")
    for name in workflow.names():
        for node in workflow.prompt(workflow.read(name)).values():
            inputs, kind = info[node["class_type"]]["input"], node["class_type"]
            assert set(inputs.get("required", {})) <= set(node["inputs"]), (name, kind)
            if kind.startswith("TwinFlow"):
                assert set(node["inputs"]) <= {*inputs.get("required", {}), *inputs.get("optional", {})}, (name, kind)


def test_offered_under_templates(server):
    offered = server.get("/workflow_templates")
    assert sorted(offered["twinflow"]) == workflow.names()
    assert offered["twinflow"][:3] == ["Emoji in one step", "How TwinFlow works - the twin", "Compare 1, 2, 4 and 8 steps"]
    assert server.get("/api/workflow_templates") == offered
    for name in map(urllib.parse.quote, workflow.names()):
        path = f"/api/workflow_templates/twinflow/{name}"
        assert server.get(f"{path}.json")["nodes"] and server.get(f"{path}.jpg").startswith(b"\xff\xd8")


def test_help_pages_and_translations(server):
    info = server.get("/object_info")
    ours = [i for i in info if info[i]["category"] == "TwinFlow"]
    for node_id in ours:
        for language in ("en", "zh"):
            page = server.get(f"/extensions/twinflow/docs/{node_id}/{language}.md").decode()
            assert page.startswith("# ") and len(page) > 200 and "{{" not in page
            lists = node_id in ("TwinFlowModelLoader", "TwinFlowModelPatch")
            assert ("Qwen-Image-Edit" in page and "Z-Image (ComfyUI 0.3.74 and later)" in page) == lists
            assert server.get(f"/api/extensions/twinflow/docs/{node_id}/{language}.md").decode() == page
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/extensions/twinflow/docs/TwinFlowSchedule/..%2F..%2F..%2F..%2FREADME.md")
    texts = server.get("/i18n")["zh"]["nodeDefs"]
    for node_id in ours:
        inputs = {name for kind in ("required", "optional") for name in info[node_id]["input"].get(kind, {})}
        assert texts[node_id]["display_name"] and inputs == set(texts[node_id]["inputs"]), node_id
        assert all(entry["tooltip"] for entry in texts[node_id]["inputs"].values())


def test_first_look(comfyui, tmp_path):
    """At the default settings, without a model file, 1600 x 1000: each template is readable at once and nothing overlaps; the
    page offers the files, the help and app mode."""
    need_browser()
    bare = Server(comfyui, tmp_path)
    try:
        (tmp_path / "input").mkdir(exist_ok=True)
        Image.linear_gradient("L").resize((512, 512)).convert("RGB").save(tmp_path / "input" / "example.png")
        bare.wait()
        if not newer(bare, (0, 18, 0)):
            pytest.skip("this page has neither Nodes 2.0 nor app mode")
        shots = ARTEFACTS / "templates"
        shots.mkdir(parents=True, exist_ok=True)
        names = [name for name in workflow.names() if name != FLAGSHIP] + [FLAGSHIP]
        found = browser.task(bare, tmp_path, look={"names": names, "shots": str(shots)})
    finally:
        bare.stop()
    assert len(found["views"]) == 2 * len(names)
    for view in found["views"]:
        where = (view["name"], view["renderer"])
        assert 0.58 < view["scale"] <= 1, where  # below 0.57 the page leaves the texts out
        assert all(box["drawn"] == (view["renderer"] == "Nodes 2.0") for box in view["boxes"]), where
        boxes = [box["box"] for box in view["boxes"]]
        assert all(inside(box, view["view"]) for box in boxes), where
        for i, one in enumerate(boxes):
            assert not any(overlap(one, other) for other in boxes[i + 1 :]), (where, view["boxes"][i]["type"])
    assert found["downloads"] == 4  # one for each of the flagship's three, and one for all
    assert any(text.startswith("a red panda") for text in found["app"])


def need_browser():
    if lacks := browser.missing():
        (pytest.fail if os.environ.get("TWINFLOW_REQUIRE_COMFYUI") else pytest.skip)(lacks)


def overlap(a, b) -> bool:
    return a[0] < b[2] - 1 and b[0] < a[2] - 1 and a[1] < b[3] - 1 and b[1] < a[3] - 1


def inside(a, b) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def test_in_a_browser(server, tmp_path):
    """A user drops a workflow on the page, presses Run and sees the picture."""
    need_browser()
    shot = tmp_path / "digits.png"
    drop = dict(workflow=str(workflow.FOLDER / "Handwritten digits.json"), shot=str(shot), seconds=400)
    found = browser.task(server, tmp_path, drop=drop)
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(shot, ARTEFACTS / "browser.png")
    assert [i for i in found["images"] if i["filename"].startswith("twinflow_digit")]
    assert "SaveImage" in found["shown"], "the page shows no picture"
    assert any(text.startswith("Qwen-Image") and "two-time" in text for text in found["reports"]), found["reports"]
    assert set(found["types"]) == {n["type"] for n in workflow.read("Handwritten digits")["nodes"]}
