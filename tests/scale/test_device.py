"""That everything is where the network is, on a pretend GPU: machines without a GPU would never notice."""

from pathlib import Path

import pytest
import torch.utils.backend_registration as registration

from ..processes import Started

pytestmark = pytest.mark.skipif(
    not hasattr(registration, "_setup_privateuseone_for_python_backend"), reason="this PyTorch has no backends in Python"
)
PRETEND = Path(__file__).with_name("pretend.py")
TINY = ["--model", "digits", "--base-steps", "2", "--base-batch", "16", "--steps", "2", "--batch", "8", "--save-every", "1",
        "--tracker", "none"]  # fmt: skip
UNSEEN = ["--sample-every", "0", "--evaluate", "0"]
SEEN = ["--sample-every", "2", "--sample-base", "1", "--evaluate", "20"]


@pytest.mark.parametrize(
    "options",
    [
        ["lora", *SEEN],
        ["full", *UNSEEN],
        ["full", *UNSEEN, "--guide", "teacher", "--guidance", "2", "--target", "data", "--ema", "0.9"],
    ],
    ids=" ".join,
)
def test_a_whole_run(options, tmp_path):
    process = Started(PRETEND, *options, *TINY, "--out", tmp_path, files=tmp_path)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    assert "wrote" in out


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
    (tmp_path / "meet.py").write_text(code)
    out, errors = Started(tmp_path / "meet.py", files=tmp_path).communicate(timeout=300)
    assert "pretend:0" in out and "devices meet" in errors
