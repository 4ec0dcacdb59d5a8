"""Finds a real ComfyUI and loads the pack into it, as ComfyUI itself does.

COMFYUI_PATH, else the ComfyUI that this repository is installed in, else ~/ComfyUI.  The tests run in an interpreter that
has ComfyUI's requirements: `make test-comfyui` picks it.  With TWINFLOW_REQUIRE_COMFYUI=1 nothing is skipped for its absence.
"""

import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))  # helpers beside this file
EXTRAS = ("custom_sampler", "model_advanced", "mask", "model_merging", "sd3", "latent")  # core's nodes that the tests use
HOW = "set COMFYUI_PATH to a ComfyUI checkout and run `make test-comfyui` (COMFYUI_PYTHON names its interpreter)"


def find_comfyui() -> Path | None:
    around = REPOSITORY.parents[1] if REPOSITORY.parent.name == "custom_nodes" else None
    named = os.environ.get("COMFYUI_PATH")
    for path in [Path(named)] if named else [around, Path.home() / "ComfyUI"]:
        if path and (path / "comfyui_version.py").is_file():
            return path
    return None


def find_goldens() -> Path | None:
    named = os.environ.get("TWINFLOW_GOLDENS")
    for path in [Path(named)] if named else [REPOSITORY / "tests" / "goldens" / "data", REPOSITORY / "tests" / "goldens"]:
        if (path / "qwen_weights.safetensors").is_file():
            return path
    return None


def lacking() -> str | None:
    """Why the tests cannot run here, in one line; None where they can."""
    if find_comfyui() is None:
        return f"no ComfyUI: {HOW}"
    if missing := [name for name in ("torchsde", "aiohttp", "einops") if importlib.util.find_spec(name) is None]:
        return f"this interpreter lacks {', '.join(missing)}, which ComfyUI needs: {HOW}"
    return None


def pytest_collection_modifyitems(config, items):
    """Without a ComfyUI the first test that needs one is skipped for all of them, with one line."""
    reason = None if os.environ.get("TWINFLOW_REQUIRE_COMFYUI") else lacking()
    need = [
        item
        for item in items
        if "comfyui" in getattr(item, "fixturenames", ()) and item.path.is_relative_to(Path(__file__).parent)
    ]
    if reason and need:
        need[0].add_marker(pytest.mark.skip(reason=f"{len(need)} tests: {reason}"))
        config.hook.pytest_deselected(items=need[1:])
        items[:] = [item for item in items if item not in need[1:]]


@pytest.fixture(scope="session")
def comfyui() -> Path:
    if reason := lacking():
        pytest.fail(reason)
    return find_comfyui()


@pytest.fixture(scope="session")
def goldens() -> Path:
    path = find_goldens()
    if path is None:
        pytest.fail("no goldens (qwen_weights.safetensors): set TWINFLOW_GOLDENS to their folder")
    return path


@pytest.fixture(scope="session")
def comfy(comfyui, tmp_path_factory):
    """The ComfyUI in this process, on the CPU, with folders of its own and the pack loaded by its own loader."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(tmp_path_factory.mktemp("comfyui"))
    args.use_pytorch_cross_attention = True  # core's other one, the usual on CPUs, adds a mask of booleans as numbers
    import torch

    torch.set_num_threads(1)
    import comfyui_version
    import folder_paths

    import nodes

    for name in ("diffusion_models", "loras", "prompts", "vae_approx"):
        Path(folder_paths.models_dir, name).mkdir(parents=True, exist_ok=True)
    for extra in EXTRAS:
        assert asyncio.run(
            nodes.load_custom_node(str(comfyui / "comfy_extras" / f"nodes_{extra}.py"), module_parent="comfy_extras")
        )
    assert asyncio.run(nodes.load_custom_node(str(REPOSITORY))), "ComfyUI refused the pack"
    gguf = comfyui / "custom_nodes" / "ComfyUI-GGUF"
    sys.argv = argv
    root = str(REPOSITORY).replace(".", "_x_")
    return SimpleNamespace(
        nodes=nodes.NODE_CLASS_MAPPINGS,
        models=Path(folder_paths.models_dir),
        version=tuple(int(n) for n in comfyui_version.__version__.split(".")),
        gguf=gguf if gguf.is_dir() else None,
        root=root,
        part=lambda name: sys.modules[f"{root}.{name}"],
    )


@pytest.fixture
def run(comfy):
    """Run a node by its id; the values that it puts out."""

    def run(node_id, **inputs):
        node = comfy.nodes[node_id]
        if hasattr(node, "define_schema"):
            return node.execute(**inputs).args
        return getattr(node(), node.FUNCTION)(**inputs)

    return run
