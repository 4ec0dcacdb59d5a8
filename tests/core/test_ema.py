import pytest
import torch
from torch import nn

from twinflow.ema import EMA


def test_the_warm_up_halves_the_shortfall():
    live, goal = nn.Parameter(torch.zeros(3)), 0.9
    ema, d, expected = EMA([live], goal), 0.0, torch.zeros(3)
    for k in range(6):
        live.data = torch.full((3,), float(k + 1))
        assert ema.decay == pytest.approx(d)
        ema.update()
        expected = d * expected + (1 - d) * live.data
        d += (1 - d) * (goal - d) / 2
        torch.testing.assert_close(ema.shadow[0], expected)
    assert 0.6 < ema.decay < goal


def test_the_first_update_copies_and_later_ones_lag():
    live = nn.Parameter(torch.ones(2))
    ema = EMA([live], 0.99, shadow=[torch.full((2,), 7.0)])
    ema.update()
    assert torch.equal(ema.shadow[0], live.data)
    live.data += 1
    ema.update()
    assert (ema.shadow[0] < live.data).all() and (ema.shadow[0] > 1).all()


def test_without_warm_up_the_goal_holds_from_the_start():
    live = nn.Parameter(torch.zeros(1))
    ema = EMA([live], 0.5, warm_up=False)
    live.data += 1
    ema.update()
    ema.update()
    assert ema.shadow[0].item() == pytest.approx(0.75) and ema.decay == 0.5


def test_it_averages_into_the_given_tensors_and_never_into_the_live_ones():
    live, shadow = nn.Linear(2, 2), nn.Linear(2, 2)
    kept = [p.detach().clone() for p in live.parameters()]
    EMA(live.parameters(), 0.9, shadow=[p.detach() for p in shadow.parameters()]).update()
    for a, b, c in zip(live.parameters(), shadow.parameters(), kept, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and b.grad_fn is None


@pytest.mark.parametrize("goal", [1.0, -0.1, 2])
def test_an_impossible_decay_is_named(goal):
    with pytest.raises(ValueError, match=f"EMA decay is {goal}; expected 0 or more and below 1"):
        EMA([], goal)
