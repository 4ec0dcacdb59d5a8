import pytest
import torch

from twinflow.schedule import kumaraswamy, times


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((1, 0.001, 0.7), [0.999, 0]),
        ((2, 0.001, 0.6), [0.999, 0.6, 0]),
        ((4, 0.001, 0.5), [0.999, 0.8327, 0.6663, 0.5, 0]),
        ((4, 0.0, 0.0), [1, 0.75, 0.5, 0.25, 0]),
    ],
)
def test_published_schedules(arguments, expected):
    torch.testing.assert_close(times(*arguments), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("end", [0.0, 0.3])
@pytest.mark.parametrize("warp", [(1, 1, 1), (1.17, 0.8, 1.1), (0.5, 2.0, 3.0)])
def test_times_fall_from_the_start_gap_to_zero(steps, end, warp):
    ts = times(steps, 0.01, end, warp)
    assert len(ts) == steps + 1 and ts[-1] == 0 and (ts.diff() < 0).all()
    s = torch.tensor([0.01, 1 - end], dtype=torch.float64)
    first, last = 1 - kumaraswamy(s, *warp)
    torch.testing.assert_close(ts[0], first)
    if end and steps > 1:
        torch.testing.assert_close(ts[-2], last)


def test_the_warp_maps_the_unit_interval_onto_itself():
    s = torch.linspace(0, 1, 101, dtype=torch.float64)
    warped = kumaraswamy(s, 1.17, 0.8, 1.1)
    assert warped[0] == 0 and warped[-1] == 1 and (warped.diff() > 0).all()
    assert torch.equal(kumaraswamy(s, 1, 1, 1), 1 - (1 - s))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "steps is 0; expected 1 or more"),
        ((4, -0.1, 0.5), "gaps are start -0.1, end 0.5"),
        ((4, 0.5, 0.6), "gaps are start 0.5, end 0.6"),
        ((4, 0.001, 1.5), "gaps are start 0.001, end 1.5"),
        ((4, 0.001, float("nan")), "gaps are start 0.001, end nan"),
        ((4, 0.001, 0.5, (1, float("inf"), 1)), "expected three positive"),
        ((4, 0.001, 0.5, (1, 0, 1)), r"warp is \(1, 0, 1\); expected three positive"),
        ((4, 0.001, 0.5, (1, 1)), "expected three positive"),
    ],
)
def test_impossible_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        times(*arguments)
