"""The straight path between data and noise:  x_t = (1 - |t|) data + |t| noise,  v = dx/dt = noise - data.

A negative time runs the same path for the model's own samples (the fake twin), so only |t| mixes.
Source: TwinFlow (arXiv 2512.05150), section 3.
"""

from torch import Tensor

SINGLE = ("mps", "privateuseone", "xpu")  # devices that have no float64: Apple's, DirectML's, most of Intel's


def widest(x: Tensor) -> Tensor:
    """x in the widest floating point that its device has: float64, or float32."""
    return x.float() if x.device.type in SINGLE else x.double()


def like(t: Tensor, x: Tensor) -> Tensor:
    """Per-sample t of shape (B,), with trailing ones so that it broadcasts over x (B, ...)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point x_t (B, ...) of the path from data to noise at the times t (B,)."""
    t = like(t, data).abs()
    return (1 - t) * data + t * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """dx/dt, the same all along the path."""
    return noise - data


def endpoints(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The data and the noise whose path passes x_t at time t with velocity v; the inverse of interpolate and velocity."""
    t = like(t, x_t).abs()
    return x_t - t * v, x_t + (1 - t) * v
