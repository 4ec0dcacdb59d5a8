"""Against a started ComfyUI: the pack is there, runs through the HTTP API, previews, reports and stops."""

import json
import re
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import save_file
from server import Server

IDS = {
    "TwinFlowModelLoader",
    "TwinFlowLoraLoader",
    "TwinFlowModelPatch",
    "TwinFlowCachedPrompt",
    "TwinFlowSchedule",
    "TwinFlowUnifiedSampler",
    "TwinFlowSampleLatent",
    "TwinFlowSchedulePlot",
    "TwinFlowEmojiPrompt",
    "TwinFlowEmojiImage",
    "TwinFlowVelocityFields",
}


@pytest.fixture(scope="module")
def server(comfyui, tmp_path_factory):
    base = tmp_path_factory.mktemp("server")
    server = Server(comfyui, base)
    try:
        weights = tiny.digits()
        second = tiny.second_embedder(weights)
        save_file(weights, server.models / "diffusion_models" / "plain.safetensors")
        save_file(weights | second, server.models / "diffusion_models" / "two.safetensors")
        save_file(
            {"a.embeds": torch.randn(2, 64)},
            server.models / "prompts" / "prompts.safetensors",
            {"twinflow.prompts": '{"a": "a three"}'},
        )
        server.wait()
        yield server
    finally:
        server.stop()


def graph(model="two.safetensors", *, preset="4 steps", seed=1, size=8) -> dict:
    return {
        "1": {
            "class_type": "TwinFlowModelLoader",
            "inputs": {"model_name": model, "adapter": "none", "adapter_strength": 1.0, "weight_dtype": "default"},
        },
        "2": {"class_type": "TwinFlowCachedPrompt", "inputs": {"file": "prompts.safetensors", "prompt": "a"}},
        "3": {"class_type": "EmptyImage", "inputs": {"width": size, "height": size, "batch_size": 1, "color": 0x808080}},
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["4", 0]}},
        "6": {
            "class_type": "TwinFlowSampleLatent",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "latent_image": ["5", 0],
                "preset": preset,
                "seed": seed,
                "cfg": 1.0,
                "denoise": 1.0,
            },
        },
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["4", 0]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "digit"}},
    }


def test_pack_is_loaded(server):
    info = server.get("/object_info")
    assert IDS <= set(info)
    assert not re.search("IMPORT FAILED.*twinflow", server.said())  # core's own nodes may lack a package
    assert all(info[i]["category"] == "TwinFlow" for i in IDS)


def test_no_kind_of_model_is_added(server, comfyui):
    """The page's model library shows every kind that is registered: those of core alone, though our nodes list more."""
    code = "import folder_paths, json; print(json.dumps(list(folder_paths.folder_names_and_paths)))"
    core = subprocess.run([sys.executable, "-c", code], cwd=comfyui, check=True, capture_output=True, text=True)
    assert set(server.get("/models")) == set(json.loads(core.stdout.splitlines()[-1]))
    (file, *_) = server.get("/object_info/TwinFlowCachedPrompt")["TwinFlowCachedPrompt"]["input"]["required"]["file"]
    options = file if isinstance(file, list) else _[0]["options"]
    assert options == ["prompts.safetensors"]


def test_every_input_has_a_tooltip(server):
    for node_id, info in server.get("/object_info").items():
        if node_id in IDS:
            for kind in info["input"].keys() - {"hidden"}:
                for name, spec in info["input"][kind].items():
                    assert len(spec) > 1 and spec[1].get("tooltip"), f"{node_id}.{name}"


def test_image_with_progress_and_preview(server):
    outcome = server.run(graph(seed=11))
    assert not outcome.error
    steps = [p["value"] for p in outcome.of("progress") if p["max"] == 4]
    assert steps == sorted(steps) and steps[-1] == 4 and len(set(steps)) == 4
    assert outcome.previews >= 4
    (image,) = outcome.outputs["8"]["images"]
    assert server.image(image).startswith(b"\x89PNG")
    assert any("second time embedder: 4 tensors" in text for text in outcome.outputs["1"]["text"])


def test_plain_file_is_refused_with_the_fix(server):
    outcome = server.run(graph("plain.safetensors"))
    assert "plain.safetensors: is a plain Qwen-Image" in outcome.error and "Choose its TwinFlow adapter" in outcome.error


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\two.safetensors", "two.ckpt"])
def test_hostile_file_name_is_refused(server, name):
    status, answer = server.post("/prompt", {"prompt": graph(name)})
    if status == 400:
        assert "model_name" in str(answer["node_errors"])
    else:  # ComfyUI 0.3.64 does not compare V3 lists, so the node has to refuse it
        assert "is refused" in server.run(graph(name)).error


def test_interrupt_stops_within_one_call(server):
    """Asked to stop at step 2 of 30, no step after the one that was running is done; then the model works as before."""
    before = server.run(graph(seed=5, preset="30 steps", size=64))
    seen = []

    def stop(progress):
        seen.append(progress["value"])
        if progress["value"] == 2:
            server.post("/interrupt", {})

    outcome = server.run(graph(seed=6, preset="30 steps", size=256), on_progress=stop)
    assert outcome.of("execution_interrupted"), outcome.events[-1]
    assert max(seen) <= 4
    again = server.run(
        graph(seed=5, preset="30 steps", size=64)
        | {"9": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "again"}}}
    )
    images = [server.image(o["images"][0]) for o in (before.outputs["8"], again.outputs["9"])]
    assert pixels(images[0]) == pixels(images[1])


def pixels(png: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).tobytes()
