"""The snippet of docs/method.md runs as it stands, with a network of the reader's own."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "method.md", ROOT / "README.md"


def test_the_snippet_trains_and_samples():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    torch.manual_seed(0)
    network = torch.nn.Linear(7, 4)

    def velocity(x_t, t, r, cond):
        return network(torch.cat([x_t, t[:, None], r[:, None], *cond], 1))

    given = dict(x=torch.randn(8, 4), cond=(torch.ones(8, 1),), uncond=(torch.zeros(8, 1),), velocity=velocity, step=0)
    exec(code, given)
    assert network.weight.grad.abs().sum() > 0 and given["images"].shape == (8, 4) and given["images"].isfinite().all()


def test_the_snippet_of_the_readme():
    """A small network of one's own learns two points, drawn in two steps."""
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL) if "batches" in c]
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
    network = torch.nn.Sequential(*layers)
    points = torch.tensor([[2.0, 0.0], [-2.0, 0.0]]).repeat(32, 1)
    cond = ((points[:, :1] > 0).float(),)

    def velocity(x_t, t, r, cond):
        return network(torch.cat([x_t, t[:, None], r[:, None], *cond], 1))

    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    given = dict(batches=[(points, cond, cond)] * 300, velocity=velocity, optimizer=optimizer)
    exec(code, given)
    assert (given["images"] - points).norm(dim=1).median() < 0.8


def test_the_glossary_is_short():
    rows = PAGE.read_text("utf-8").split("## Glossary")[1].count("\n| ")
    assert 20 <= rows <= 31  # with the heading
