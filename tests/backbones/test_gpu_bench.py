"""benchmarks/gpu.py on a CPU: the same steps on tiny models, and its page."""

import json
import math
import sys
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_step_of_every_model(family, mode, monkeypatch):
    monkeypatch.setattr(gpu, "POOL", 2**12)
    known = copy(family.backbone)
    known.size = replace(known.size, config=family.config, tokens=5)
    settings = gpu.resolve(mode, dict(model=known.name), notify=lambda line: None)
    row = gpu.measure(known, settings, pixels=8 * known.factor)
    assert math.isfinite(row["loss"]) and 0 < row["norm"] < math.inf, row
    assert row["rows"] == settings.training.batch * settings.training.accumulation
    assert min(row[key] for key in ("loading_s", "first_s", "step_s", "evaluation_s")) > 0


def test_what_is_measured():
    """Every ready configuration for one card, each change in a setting that really is another one."""
    found = gpu.configurations()
    own = {path.stem for path in (ROOT / "trainer" / "configs").glob("*.yaml")} - {"qwen-image-full-8x80gb"}
    assert own == {name for name in found if "," not in name}
    usual = found[gpu.ONE_BY_ONE].flat()
    for name in gpu.CHANGES:
        changed = {k for k, v in found[f"{gpu.ONE_BY_ONE}, {name}"].flat().items() if v != usual[k]}
        assert changed == set(gpu.CHANGES[name]), name


def test_the_page(tmp_path, monkeypatch, capsys):
    whole = dict(device="a card", rows=4, step_s=2.0, peak=10.0, plan=11.0, plan_reserve=1.5, resident=7.0, plan_resident=6.5)
    whole |= dict(plan_step=3.0, evaluation_s=0.5, loading_s=9.0)
    rows = {"one": whole, "other": {"failed": "not run: no time left"}, "goldens": {"sana fp32": [1e-6, 6]}}
    rows["comfyui, a sampling step"] = {"ratios": {"sampling step": [1.01, 0.02]}}
    (tmp_path / "gpu.json").write_text(json.dumps(rows))
    page = tmp_path / "gpu.md"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--table", str(tmp_path / "gpu.json"), "--page", str(page)])
    gpu.main()
    text = page.read_text()
    head = gpu.PAGE.read_text("utf-8").split(gpu.MARK)[0]
    assert text.startswith(head) and text.count(gpu.MARK) == 1
    assert "| one | 4 | 2.00 | 10.0 | 9.5 | 7.0 | 6.5 | 3.0 | 3.0 | 0.500 | 9 |" in text
    assert "| other | not run: no time left |" in text and "| sana fp32 | 1.00e-06 | 6 |" in text
    assert "| sampling step | 1.010 | 0.020 |" in text and "| comfyui, loading | not run | |" in text
    assert "| z-image-lora-24gb | not run |" in text
    assert capsys.readouterr().out.strip() in text


def test_comfyui_s_side(tmp_path, monkeypatch):
    """Not measured where there is none."""
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    for line in gpu.COMFYUI:
        told = gpu.in_comfyui(line, nullcontext(), math.inf)
        assert told["failed"].startswith("not run: no ComfyUI")
        assert gpu.in_comfyui(line, nullcontext(), -math.inf) == {"failed": "not run: no time left"}
