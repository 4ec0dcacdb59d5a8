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
    ema = EMA([live], 0.99)
    ema.shadow[0].fill_(7.0)
    ema.update()
    assert torch.equal(ema.shadow[0], live.data)
    live.data += 1
    ema.update()
    assert (ema.shadow[0] < live.data).all() and (ema.shadow[0] > 1).all()


def test_it_averages_into_copies_and_never_into_the_live_tensors():
    live = nn.Linear(2, 2)
    ema, kept = EMA(live.parameters(), 0.9), [p.detach().clone() for p in live.parameters()]
    held = list(ema.shadow)
    for _ in range(3):
        ema.update()
    for p, shadow, same, before in zip(live.parameters(), ema.shadow, held, kept, strict=True):
        assert torch.equal(p, before) and shadow is same and shadow.data_ptr() != p.data_ptr()
        torch.testing.assert_close(shadow, before)
        assert not shadow.requires_grad


@pytest.mark.parametrize("goal", [1.0, -0.1, 2, float("nan")])
def test_an_impossible_decay_is_named(goal):
    with pytest.raises(ValueError, match=f"EMA decay is {goal}; expected 0 or more and below 1"):
        EMA([], goal)
