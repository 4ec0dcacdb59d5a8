"""That everything is where the network is, on a pretend GPU: machines without a GPU would never notice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration as registration

pytestmark = pytest.mark.skipif(
    not hasattr(registration, "_setup_privateuseone_for_python_backend"), reason="this PyTorch has no backends in Python"
)
PRETEND = Path(__file__).with_name("pretend.py")
TINY = ["--model", "digits", "--base-steps", "2", "--base-batch", "16", "--steps", "3", "--batch", "16", "--save-every", "2",
        "--sample-every", "2", "--evaluate", "20", "--tracker", "none"]  # fmt: skip


def started(*command):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "options",
    [["lora"], ["full"], ["full", "--guide", "teacher", "--guidance", "2", "--target", "data", "--ema", "0.9"]],
    ids=" ".join,
)
def test_a_whole_run(options, tmp_path):
    done = started(PRETEND, *options, *TINY, "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wrote" in done.stdout


def test_the_device_notices(tmp_path):
    """Else the test above could not fail."""
    code = f"""
import sys
sys.path.insert(0, {str(PRETEND.parent)!r})
import pretend, torch
pretend.patch()
layer, x = torch.nn.Linear(2, 2).to("pretend"), torch.zeros(1, 2)
print(layer(x.to("pretend")).device)
layer(x)
"""
    done = started("-c", code)
    assert "pretend:0" in done.stdout and "devices meet" in done.stderr
