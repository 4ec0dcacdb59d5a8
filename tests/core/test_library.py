"""The snippet of docs/method.md runs as it stands, with a network of the reader's own."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "method.md"


def test_the_snippet_trains_and_samples():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    torch.manual_seed(0)
    network = torch.nn.Linear(7, 4)

    def velocity(x_t, t, r, cond):
        return network(torch.cat([x_t, t[:, None], r[:, None], *cond], 1))

    given = dict(x=torch.randn(8, 4), cond=(torch.ones(8, 1),), uncond=(torch.zeros(8, 1),), velocity=velocity, step=0)
    exec(code, given)
    assert network.weight.grad.abs().sum() > 0 and given["images"].shape == (8, 4) and given["images"].isfinite().all()


def test_the_glossary_is_short():
    rows = PAGE.read_text("utf-8").split("## Glossary")[1].count("\n| ")
    assert 20 <= rows <= 31  # with the heading
