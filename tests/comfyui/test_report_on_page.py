"""What the page shows of a node's work: the loader's verdict, a sampler's warning, inputs that have no effect."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import browser
import pytest
import tiny
import torch
from server import Server

HERE = Path(__file__).parent
ARTEFACTS = HERE.parents[1] / "runs" / "test-comfyui"
GRAPH = {
    "1": (
        "TwinFlowModelLoader",
        dict(model_name="page.safetensors", adapter="none", adapter_strength=1, weight_dtype="default"),
    ),
    "2": ("TwinFlowCachedPrompt", dict(file="page.safetensors", prompt="")),
    "3": ("EmptySD3LatentImage", dict(width=64, height=64, batch_size=1)),
    "4": (
        "KSampler",
        dict(seed=1, steps=4, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
        | dict(model=["1", 0], positive=["2", 0], negative=["2", 0], latent_image=["3", 0]),
    ),
    "5": ("SaveLatent", dict(samples=["4", 0], filename_prefix="page")),
    "6": (
        "TwinFlowSchedule",
        dict(preset="30 steps", steps=2, start_gap=0.001, end_gap=0.6, warp_a=1.0, warp_b=1.0, warp_c=1.0, denoise=1.0),
    ),
    "7": ("TwinFlowUnifiedSampler", dict(style="few", order="1", noise="sde", stochasticity=1.0, extrapolation=0.0)),
    "8": (
        "TwinFlowSampleLatent",
        dict(preset="2 steps", seed=1, cfg=1.0, denoise=1.0, model=["1", 0], positive=["2", 0], latent_image=["3", 0])
        | dict(sigmas=["6", 0], sampler=["7", 0]),
    ),
    "9": ("SaveLatent", dict(samples=["8", 0], filename_prefix="page")),
}


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    server = Server(comfyui, tmp_path_factory.mktemp("page"))
    try:
        weights = tiny.digits()
        tiny.save(weights | tiny.second_embedder(weights), server.models / "diffusion_models" / "page.safetensors")
        texts = {"twinflow.prompts": json.dumps({"a": "a digit"})}
        tiny.save({"a.embeds": torch.randn(2, 64)}, server.models / "prompts" / "page.safetensors", texts)
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def pages(server, tmp_path_factory):
    """What the nodes show, by page and node."""
    if lacks := browser.missing():
        (pytest.fail if os.environ.get("TWINFLOW_REQUIRE_COMFYUI") else pytest.skip)(lacks)
    folder = tmp_path_factory.mktemp("shots")
    graph = {id: dict(class_type=kind, inputs=inputs) for id, (kind, inputs) in GRAPH.items()}
    task = dict(
        url=server.url, chromium=browser.chromium(), playwright=str(browser.playwright()), graph=graph, shots=str(folder)
    )
    (folder / "task.json").write_text(json.dumps(task))
    command = ["node", str(HERE / "report.mjs"), str(folder / "task.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:] + server.said()[-2000:]
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    for shot in folder.glob("*.png"):
        shutil.copy(shot, ARTEFACTS / f"report-{shot.name}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {page: {str(node["id"]): node for node in nodes} for page, nodes in found.items()}


PAGES = ["canvas", "canvas-reloaded", "nodes2", "nodes2-reloaded"]


def need_page(page: str, version: tuple[int, ...]) -> None:
    if version < (0, 4) and page.startswith("nodes2"):
        pytest.skip("Nodes 2.0 was an experiment in the page of this ComfyUI")


@pytest.mark.parametrize("page", PAGES)
def test_verdict_and_warnings_stay_on_the_nodes(pages, page, comfy):
    need_page(page, comfy.version)
    nodes = pages[page]
    assert nodes["1"]["text"].startswith("Qwen-Image, float32, two-time")
    assert "4 steps give a wrong image" in nodes["4"]["text"]
    assert "the schedule has 30 steps, but style 'few'" in nodes["8"]["text"]
    assert all(nodes[id]["shown"][0] > 50 and nodes[id]["shown"][1] > 15 for id in ("1", "4", "8"))
    assert not any(nodes[id]["text"] for id in ("2", "3", "5", "6", "7", "9"))


@pytest.mark.parametrize("page", PAGES)
def test_what_is_said_covers_no_neighbour(pages, page, comfy):
    """The preview that core draws below a sampler is another matter."""
    if comfy.version < (0, 4):
        pytest.skip("the page of this ComfyUI measures nodes later: a warning's box can cover the title of the node below")
    nodes = pages[page]
    for said, below in (("1", "2"), ("4", "5"), ("8", "9")):
        assert nodes[said]["bottom"] <= nodes[below]["pos"][1] - 29, (said, below)


@pytest.mark.parametrize("page", PAGES)
def test_inputs_without_effect_are_hidden_and_a_link_says_what_it_replaces(pages, page):
    nodes = pages[page]
    assert nodes["6"]["hidden"] == ["steps", "start_gap", "end_gap", "warp_a", "warp_b", "warp_c"]
    assert nodes["7"]["hidden"] == ["stochasticity"]
    assert nodes["8"]["hidden"] == ["preset", "denoise"]
    assert nodes["8"]["labels"]["sigmas"] == "sigmas (replaces preset, denoise)"
    assert nodes["8"]["labels"]["sampler"] == "sampler (replaces preset)"
