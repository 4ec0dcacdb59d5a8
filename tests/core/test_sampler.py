import pytest
import torch

from twinflow import path
from twinflow.sampler import STYLES, sample, sde_share
from twinflow.schedule import times

S = 0.5  # data ~ N(0, S^2): its velocity field is linear and its flow is known


def gaussian(x, t, r):
    """The instantaneous velocity (z - x) expected at x_t."""
    t = path.like(t, x)
    return x * (t - (1 - t) * S**2) / (t**2 + (1 - t) ** 2 * S**2)


def flow(x, t, to):
    deviation = lambda t: (t**2 + (1 - t) ** 2 * S**2) ** 0.5
    return x * deviation(to) / deviation(t)


def noise(dtype=torch.float64, seed=0):
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fresh(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator)


def curved(x, t, r):
    return torch.tanh(x) * path.like(t + 0.5 * r, x)


def asked(style, **options):
    calls = []
    sample(lambda x, t, r: calls.append((t, r)) or x, noise(), times(4, 0.001, 0.5), style=style, **options)
    return [torch.stack(c)[:, 0].tolist() for c in zip(*calls, strict=True)]


def test_each_style_asks_for_its_target_time():
    ts = times(4, 0.001, 0.5).tolist()
    assert asked("few") == [ts[:-1], [0, 0, 0, 0]]
    assert asked("any") == [ts[:-1], ts[1:]]
    assert asked("multi") == [ts[:-1], ts[:-1]]


def test_order_two_asks_once_more_at_the_end_of_every_step_but_the_last():
    a, b, c, d, _ = times(4, 0.001, 0.5).tolist()
    assert asked("few", order=2) == [[a, b, b, c, c, d, d], [0, b, 0, c, 0, d, 0]]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("order", [1, 2])
def test_a_straight_path_is_followed_to_any_last_time(style, order):
    z, data = noise(), noise(seed=1)
    v = lambda x, t, r: path.velocity(data, z)
    for last in (0.0, 0.25):
        ts = torch.tensor([0.99, 0.6, last], dtype=torch.float64)
        start = path.interpolate(data, z, ts[:1].expand(3))
        expected = path.interpolate(data, z, ts[-1:].expand(3))
        torch.testing.assert_close(sample(v, start, ts, style=style, order=order), expected, rtol=0, atol=1e-12)


def test_multi_is_eulers_method():
    ts = times(7, 0.001, 0.3)
    x = expected = noise()
    for t, t_next in zip(ts, ts[1:], strict=False):
        expected = expected + (t_next - t) * curved(expected, t.expand(3), t.expand(3))
    torch.testing.assert_close(sample(curved, x, ts, style="multi"), expected, rtol=0, atol=1e-12)


def test_order_two_converges_twice_as_fast_and_is_closer_at_equal_cost():
    def error(n, order):
        ts = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        return (sample(gaussian, noise(), ts, style="multi", order=order) - flow(noise(), 0.9, 0.1)).abs().max()

    assert 1.8 < error(32, 1) / error(64, 1) < 2.2
    assert 3.4 < error(32, 2) / error(64, 2)
    assert error(32, 2) < 0.5 * error(64, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_x_is_left_alone_and_its_dtype_kept(dtype):
    x = noise(dtype)
    kept = x.clone()
    out = sample(curved, x, times(4), stochasticity=0.5, extrapolation=0.3, noise_like=fresh(0))
    assert torch.equal(x, kept) and out.dtype == dtype and not torch.equal(out, x)


def test_the_callback_is_called_at_every_step():
    steps, ts = [], times(4, 0.001, 0.5)
    out = sample(curved, noise(), ts, callback=lambda *step: steps.append(step))
    assert [(i, t.item()) for i, t, _, _ in steps] == list(enumerate(ts[:-1].tolist()))
    assert torch.equal(steps[0][2], noise()) and torch.equal(steps[-1][3], out)


def test_equal_noise_gives_equal_samples_and_is_drawn_once_a_step():
    draws = []

    def run(seed, **options):
        source = fresh(seed)
        noise_like = lambda x: draws.append(1) or source(x)
        return sample(curved, noise(), times(4), noise_like=noise_like, **{"stochasticity": 0.8} | options)

    assert torch.equal(run(1), run(1)) and len(draws) == 8
    assert not torch.equal(run(1), run(2))
    draws.clear()
    assert torch.equal(run(1, stochasticity=0.0), run(2, stochasticity=0.0)) and not draws


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    sample(curved, noise(), times(4), stochasticity=1.0, noise_like=fresh(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_full_stochasticity_carries_only_the_estimate_of_the_data():
    data, ts = noise(seed=3), times(3, 0.001, 0.5)
    states = []
    for seed in (1, 2):  # whatever the start, the network finds these data, and the rest is fresh
        velocity = lambda x, t, r: (x - data) / path.like(t, x)
        keep = lambda i, t, x, estimate: states.append(x)
        sample(velocity, noise(seed=seed), ts, stochasticity=1.0, noise_like=fresh(0), callback=keep)
    assert not torch.allclose(states[0], states[3])
    torch.testing.assert_close(states[1:3], states[4:6], rtol=0, atol=1e-12)


def test_sde_first_keeps_the_share_that_sde_recomputes():
    ts = torch.tensor([0.9, 0.8, 0.3, 0.0], dtype=torch.float64)
    share = sde_share(ts[0], ts[1]).item()
    assert share == pytest.approx(2 * 0.9 * 0.1 / 0.8**2)
    run = lambda q: sample(curved, noise(), ts, stochasticity=q, noise_like=fresh(0))
    torch.testing.assert_close(run("sde-first"), run(share))
    assert not torch.allclose(run("sde"), run("sde-first"))


def test_extrapolation_starts_with_the_third_step_and_spares_the_last():
    run = lambda steps, e: sample(curved, noise(), times(steps, 0.001, 0.5), extrapolation=e)
    assert torch.equal(run(3, 0.0), run(3, 0.5))
    assert not torch.equal(run(4, 0.0), run(4, 0.5))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("style", ["few", "any", "multi"])
def test_the_largest_extrapolation_stays_within_bounds(style, order):
    ts = times(1000, 0.001, 0.01)
    end = sample(curved, noise(), ts, style=style, order=order, extrapolation=1.0)
    assert end.isfinite().all() and end.abs().max() < 10 * noise().abs().max()


@pytest.mark.parametrize(
    "options, ts, message",
    [
        (dict(style="mul"), [0.9, 0], "style is 'mul'; expected one of few, any, multi"),
        (dict(order=3), [0.9, 0], "order is 3; expected 1 or 2"),
        (dict(stochasticity=1.5), [0.9, 0], "stochasticity is 1.5; expected a share"),
        (dict(stochasticity="ode"), [0.9, 0], "stochasticity is 'ode'; expected a share"),
        (dict(stochasticity=float("nan")), [0.9, 0], "stochasticity is nan; expected a share"),
        (dict(extrapolation=1.5), [0.9, 0], "extrapolation is 1.5; expected 0 to 1"),
        (dict(extrapolation=-1), [0.9, 0], "extrapolation is -1; expected 0 to 1"),
        (dict(extrapolation=float("nan")), [0.9, 0], "extrapolation is nan; expected 0 to 1"),
        ({}, [0.9], "expected two or more, decreasing, none below 0"),
        ({}, [0.5, 0.9, 0], "expected two or more, decreasing, none below 0"),
        ({}, [0.5, -0.1], "expected two or more, decreasing, none below 0"),
        ({}, [float("inf"), 0.5, 0], "expected two or more, decreasing, none below 0"),
        ({}, [0.9, float("nan"), 0], "expected two or more, decreasing, none below 0"),
    ],
)
def test_impossible_settings_are_named(options, ts, message):
    with pytest.raises(ValueError, match=message):
        sample(curved, noise(), torch.tensor(ts, dtype=torch.float64), **options)


def test_order_two_corrects_no_step_from_noise_alone():
    """At t = 1 a path is fixed by its end: that step is the one of first order, those after it are corrected."""
    points, ts = {1: [], 2: []}, torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    for order, seen in points.items():
        sample(curved, noise(), ts, order=order, callback=lambda i, t, x, data, seen=seen: seen.append(x))
    assert torch.equal(points[1][1], points[2][1]) and not torch.allclose(points[1][2], points[2][2])


def test_a_device_without_float64(monkeypatch):
    """As on Apple's: nothing is widened, and the samples are those of the others to float32's precision."""
    options = dict(style="few", stochasticity=0.5, extrapolation=0.5)
    dtypes = []
    recording = lambda x, t, r: dtypes.append((x.dtype, t.dtype)) or curved(x, t, r)
    wide = sample(recording, noise(torch.float32), times(6, 0.001, 0.5), noise_like=fresh(0), **options)
    monkeypatch.setattr(path, "SINGLE", ("cpu",))
    monkeypatch.setattr(torch.Tensor, "double", None)
    single = sample(
        recording, noise(torch.float32), times(6, 0.001, 0.5), noise_like=fresh(0),
        callback=lambda i, t, x, data: dtypes.append((x.dtype, data.dtype)), **options,
    )  # fmt: skip
    assert set(dtypes) == {(torch.float32, torch.float32)}
    torch.testing.assert_close(single, wide, rtol=1e-5, atol=1e-5)
