"""The backbones' goldens once more, on the oldest diffusers that we support; it lies beside the installed one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = Path(os.environ.get("TWINFLOW_DIFFUSERS_036") or ROOT / ".venv" / "diffusers-0.36")
INSTALL = f"{sys.executable} -m pip install --no-deps --target {OLD} diffusers==0.36.0"


@pytest.mark.skipif("TWINFLOW_INSIDE_036" in os.environ, reason="this is that run")
def test_the_backbones_on_diffusers_0_36(replayed):
    if not (OLD / "diffusers").is_dir():
        pytest.fail(f"no diffusers 0.36 in {OLD}; expected what this command puts there: {INSTALL}", pytrace=False)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(OLD), str(ROOT)]), TWINFLOW_INSIDE_036="1")

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("-c", "import diffusers; print(diffusers.__version__)").split()[-1].startswith("0.36.")
    out = run("-m", "pytest", "-q", str(Path(__file__).with_name("test_backbones_replay.py")))
    replayed(sum(int(n) for n in re.findall(r"^(\d+) cases$", out, re.MULTILINE)))
