"""Trained here, loaded in a real ComfyUI: the samples of the trainer's own sampler, from the same noise, to 1e-4."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4  # of the largest sample
SETTINGS = {"few": (2, 0.6), "any": (4, 0.5), "multi": (4, 0.1)}  # steps and end gap, as write_trained.py has them


@pytest.fixture(scope="session")
def trained(goldens, comfy, tmp_path_factory) -> Path:
    """The folder that write_trained.py filled, in the trainer's own interpreter."""
    named = os.environ.get("TWINFLOW_TRAINER_PYTHON")
    for python in [named] if named else [str(ROOT / ".venv" / "bin" / "python"), sys.executable]:
        if (
            shutil.which(python)
            and not subprocess.run([python, "-c", "import diffusers, peft"], capture_output=True).returncode
        ):
            break
    else:
        why = "no interpreter with diffusers and peft: run `make setup`, or set TWINFLOW_TRAINER_PYTHON"
        (pytest.fail if os.environ.get("TWINFLOW_REQUIRE_COMFYUI") else pytest.skip)(why)
    folder = tmp_path_factory.mktemp("trained")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, ROOT / "tests/comfyui/write_trained.py", goldens, folder], capture_output=True, text=True, env=clean
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def base(golden, comfy):
    """The plain model's file, in the layout that the stock loader needs."""
    backbone = comfy.part("twinflow.backbones").find(golden.weights)
    weights = {k: v.float() for k, v in backbone.layout.to_native(golden.plain).items()}
    return golden.write(comfy.models / "diffusion_models", weights, name="trained_base")


def placed(trained, comfy, name, folder) -> str:
    """The file's name, once it lies where ComfyUI looks."""
    shutil.copy(trained / f"{name}.safetensors", comfy.models / folder)
    return f"{name}.safetensors"


def check(golden, trained, run, model, mode):
    """The pack's own nodes sample from the goldens' noise and prompts."""
    wanted = load_file(trained / "expected.safetensors")
    for style, (steps, gap) in SETTINGS.items():
        sigmas = run(
            "TwinFlowSchedule",
            preset="custom",
            steps=steps,
            start_gap=0.001,
            end_gap=gap,
            warp_a=1.0,
            warp_b=1.0,
            warp_c=1.0,
            denoise=1.0,
        )[0]
        sampler = run("TwinFlowUnifiedSampler", style=style, order="1", noise="constant", stochasticity=0.0, extrapolation=0.0)[
            0
        ]
        guider = run("BasicGuider", model=model, conditioning=golden.conditioning(slice(0, 2)))[0]
        x = golden.tensors["x"]
        out = run(
            "SamplerCustomAdvanced",
            noise=tiny.FixedNoise(x),
            guider=guider,
            sampler=sampler,
            sigmas=sigmas,
            latent_image={"samples": torch.zeros_like(x)},
        )[0]
        got, want = model.model.process_latent_in(out["samples"]).reshape(x.shape), wanted[f"{golden.name}_{mode}/{style}"]
        assert (got - want).abs().max() <= TOLERANCE * want.abs().max(), (mode, style, (got - want).abs().max())


def test_an_adapter_in_the_model_loader(golden, comfy, run, trained, base):
    adapter = placed(trained, comfy, f"{golden.name}_adapter", "loras")
    model, report = run("TwinFlowModelLoader", model_name=base, weight_dtype="float32", adapter=adapter, adapter_strength=1.0)
    assert "dropped: 0" in report
    check(golden, trained, run, model, "adapter")


@pytest.mark.parametrize("loader", ["LoraLoaderModelOnly", "TwinFlowLoraLoader"])
def test_a_folded_lora_in_the_stock_loader_and_in_ours(golden, comfy, run, trained, base, loader):
    file = placed(trained, comfy, f"{golden.name}_lora", "loras")
    model = run("UNETLoader", unet_name=base, weight_dtype="default")[0]
    if loader == "TwinFlowLoraLoader":
        model, report = run(loader, model=model, lora_name=file, strength=1.0)
        assert "dropped: 0" in report
    else:
        model = run(loader, model=model, lora_name=file, strength_model=1.0)[0]
        model = run("TwinFlowModelPatch", model=model, times="folded (t - r/2)", branch="real")[0]
    check(golden, trained, run, model, "lora")


@pytest.mark.parametrize("loader", ["UNETLoader", "TwinFlowModelLoader"])
def test_full_weights_in_the_stock_loader_and_in_ours(golden, comfy, run, trained, loader):
    file = placed(trained, comfy, f"{golden.name}_full", "diffusion_models")
    if loader == "UNETLoader":
        model = run(loader, unet_name=file, weight_dtype="default")[0]
    else:
        model, report = run(loader, model_name=file, weight_dtype="float32")
        assert "missing: none" in report and "not used" not in report
    check(golden, trained, run, model, "full")
