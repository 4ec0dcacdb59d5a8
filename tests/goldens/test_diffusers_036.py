"""The backbones once more, on the oldest diffusers that we support; it lies beside the installed one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = Path(os.environ.get("TWINFLOW_DIFFUSERS_036") or ROOT / ".venv" / "diffusers-0.36")
INSTALL = f"{sys.executable} -m pip install --no-deps --target {OLD} diffusers==0.36.0"
TESTS = ("goldens/test_backbones_replay.py", "core/test_time_embedding.py", "core/test_velocity.py")
RUN = """
import sys
sys.modules["torchao"] = None  # 0.36 fails to import beside a torchao of today
import diffusers, pytest
print("diffusers", diffusers.__version__)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.skipif("TWINFLOW_INSIDE_036" in os.environ, reason="this is that run")
def test_the_backbones_on_diffusers_0_36(replayed):
    if not (OLD / "diffusers").is_dir():
        pytest.fail(f"no diffusers 0.36 in {OLD}; expected what this command puts there: {INSTALL}", pytrace=False)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(OLD), str(ROOT)]), TWINFLOW_INSIDE_036="1")
    done = subprocess.run(
        [sys.executable, "-c", RUN, "-q", "-s", *(str(ROOT / "tests" / name) for name in TESTS)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "diffusers 0.36." in done.stdout
    replayed(sum(int(n) for n in re.findall(r"^(\d+) cases$", done.stdout, re.MULTILINE)))
