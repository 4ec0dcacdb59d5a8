"""A new backbone is three files, one in each world: nothing else of a copy of this repository is touched, and all of it works.

The files in toy/ are also the example of CONTRIBUTING.md.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT, TOY = Path(__file__).parents[2], Path(__file__).parent / "toy"
TREE = ("__init__.py", "pyproject.toml", "twinflow", "trainer", "nodes", "web", "locales", "tests/comfyui")
OPTIONS = ["--model", "toy", "--resolution", "32", "--steps", "3", "--warmup", "0", "--threads", "1", "--dtype", "fp32",
           "--lr", "1e-2", "--sample-every", "0", "--tracker", "none", "--targets", "all"]  # fmt: skip
BASE = """
import torch
from safetensors.torch import save_file
from trainer.backbones import backbone
torch.manual_seed(0)
known = backbone("toy")
tensors = known.skeleton().state_dict()
native = known.to_file(tensors)
assert "layers.0.qkv.weight" in native and not set(native) & {n for n in tensors if n.startswith(("blocks.", "proj_"))}
back = known.from_file(native)
assert back.keys() == tensors.keys() and all(torch.equal(back[n], t) for n, t in tensors.items())
save_file(native, "base.safetensors")
"""
RUNS = f"""
from trainer.cli import main
from trainer.generate import main as draw
for mode, options in dict(lora={OPTIONS}, full={OPTIONS[:-2]}).items():
    assert main(mode, [*options, "--source", "base.safetensors", "--data", "images"]) == 0
    asked = ["--prompts", "a red house", "--steps", "2", "--each", "1", "--output", mode + ".png"]
    assert draw(["runs/toy-" + mode, *asked]) == 0
"""
REFERENCE = """
from trainer.weights.inference import generate, load_trained
from twinflow.presets import Sampling
known = backbone("toy")
cond = known.collate(known.text_encoder().encode_text(["a red house"]))
start = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7))
made = {m: generate(load_trained(known, known.load("base.safetensors"), f"runs/toy-{m}/toy-{m}.safetensors"), start, cond,
                    Sampling(2, "any", 0.0, end_gap=0.6)) for m in ("lora", "full")}
assert not torch.equal(made["lora"], made["full"])
save_file(made | {"embeds": cond[0].contiguous()}, "reference.safetensors")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The copy with the toy; two finished runs in it, a LoRA's and one of all weights, and a picture of each."""
    tree = tmp_path_factory.mktemp("tree")
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tree / name)
    for world in ("twinflow", "nodes", "trainer"):
        shutil.copy(TOY / f"{world}.py", tree / world / "backbones" / "toy.py")
    images, g = tree / "images", np.random.default_rng(0)
    images.mkdir()
    for i in range(4):
        Image.fromarray(g.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"a house {i}")
    python(tree, "-c", BASE + RUNS + REFERENCE)
    return tree


def python(tree, *arguments, code=0, interpreter=sys.executable, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [interpreter, *map(str, arguments)], cwd=tree, env=clean | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_command_line_knows_it(tree):
    asked = [["--help"], ["--model", "toy", "--help"], ["--model", "tooy"], [*OPTIONS[:4], "--plan"]]
    code = f"from trainer.cli import main\nfor asked in {asked}: print('== code', main('lora', asked), flush=True)"
    parts = python(tree, "-u", "-c", code).split("== code ")
    assert [part[0] for part in parts[1:]] == ["0", "0", "2", "0"]
    usual, own, wrong, plan = parts[0], parts[1], parts[-1], parts[3]
    assert "toy" in usual.split("model to train")[1].split("--data")[0] and "--resolution" in own
    assert "did you mean --model toy" in wrong and "toy: LoRA rank 32 on attention" in plan


def test_it_trains_and_draws(tree):
    for mode in ("lora", "full"):
        folder = tree / "runs" / f"toy-{mode}"
        assert (folder / "summary.md").is_file() and (folder / f"toy-{mode}.safetensors").is_file()
        assert Image.open(tree / f"{mode}.png").size[0] >= 32


def test_comfyui_loads_and_samples_it(tree):
    """The trainer's files, by the stock loader and ours; two steps equal the trainer's to 1e-4."""
    named = os.environ.get("COMFYUI_PATH")
    comfyui = Path(named) if named else Path.home() / "ComfyUI"
    interpreters = [comfyui / folder / "bin" / "python" for folder in (".venv", "venv")]
    interpreter = next((path for path in interpreters if path.is_file()), None)
    if not (comfyui / "comfyui_version.py").is_file() or interpreter is None:
        pytest.skip("no ComfyUI with an interpreter of its own: set COMFYUI_PATH")
    shutil.copy(TOY / "in_comfyui.py", tree / "tests" / "comfyui" / "test_toy.py")
    environment = dict(TOY_RUNS=str(tree), COMFYUI_PATH=str(comfyui), TWINFLOW_REQUIRE_COMFYUI="1")
    python(tree, "-m", "pytest", "tests/comfyui/test_toy.py", interpreter=interpreter, **environment)
