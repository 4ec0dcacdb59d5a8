"""The straight path between data and noise:  x_t = (1 - |t|) data + |t| noise,  v = noise - data.

Convention: t = 1 is noise, t = 0 is data.  A negative time is the same path to the model's own samples (the fake
trajectory), so only |t| mixes.  Source: TwinFlow (arXiv 2512.05150); its released code calls these alpha and gamma.
"""

from torch import Tensor

SINGLE = ("mps", "privateuseone", "xpu")  # devices without float64: Apple's, DirectML's, most of Intel's


def widest(x: Tensor) -> Tensor:
    """x in the widest floating-point dtype that its device has: float64, or float32."""
    return x.float() if x.device.type in SINGLE else x.double()


def like(t: Tensor, x: Tensor) -> Tensor:
    """Per-sample t of shape (B,), with trailing ones so that it broadcasts over x (B, ...)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point x_t (B, ...) of the path from data to noise at the times t (B,)."""
    t = like(t, data).abs()
    return (1 - t) * data + t * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """dx/dt for t > 0, constant along the path from data to noise (B, ...)."""
    return noise - data


def endpoints(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The data and the noise (B, ...) whose path passes x_t at time t with velocity v: the inverse of interpolate and
    velocity."""
    t = like(t, x_t).abs()
    return x_t - t * v, x_t + (1 - t) * v
