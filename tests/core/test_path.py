import torch

from twinflow import path


def points(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 7, 3, 4, 4, generator=g, dtype=dtype)
    return data, noise, torch.tensor([0.0, 0.1, 0.5, 0.999, 1.0, -0.3, -1.0], dtype=dtype)


def test_endpoints_invert_interpolation_at_either_sign_of_time():
    data, noise, t = points()
    ends = path.endpoints(path.interpolate(data, noise, t), path.velocity(data, noise), t)
    torch.testing.assert_close(ends, (data, noise), rtol=0, atol=1e-14)


def test_interpolation_starts_at_the_data_and_ends_at_the_noise():
    data, noise, t = points()
    x = path.interpolate(data, noise, t)
    assert torch.equal(x[0], data[0]) and torch.equal(x[4], noise[4]) and torch.equal(x[6], noise[6])


def test_velocity_is_the_derivative_of_the_path():
    data, noise, _ = points()
    t = torch.full((7,), 0.4, dtype=torch.float64)
    slope = (path.interpolate(data, noise, t + 1e-3) - path.interpolate(data, noise, t - 1e-3)) / 2e-3
    torch.testing.assert_close(slope, path.velocity(data, noise), rtol=0, atol=1e-11)
