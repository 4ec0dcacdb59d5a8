"""Pixels to latents and back, with any of diffusers' autoencoders."""

from typing import Any

import torch
from torch import Tensor


class ImageCodec:
    """One autoencoder; drop it to free its memory.  Latents come scaled as the transformer was trained on them.

    The scale stands in the autoencoder's configuration: per channel (mean, std), or one factor and perhaps a shift.
    """

    def __init__(self, vae: Any):
        self.vae: Any = vae.eval().requires_grad_(False)
        config = vae.config
        like: dict[str, Any] = dict(device=vae.device, dtype=torch.float32)
        self.video = hasattr(config, "latents_mean") and config.latents_mean is not None  # its tensors have a time axis
        if self.video:
            self.shift, self.scale = (
                torch.tensor(v, **like).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std)
            )
        else:
            self.shift = torch.tensor(getattr(config, "shift_factor", None) or 0.0, **like)
            self.scale = torch.tensor(1 / config.scaling_factor, **like)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, h, w), float32, of pixels (B, 3, H, W) in [-1, 1]: the mode of their distribution."""
        x = pixels.to(self.vae.device, self.vae.dtype)
        out = self.vae.encode(x.unsqueeze(2) if self.video else x)
        z = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latent
        return self.normalised((z.squeeze(2) if self.video else z).float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], float32, of latents (B, C, h, w)."""
        z = self.raw(latents.to(self.shift)).to(self.vae.dtype)
        x = self.vae.decode(z.unsqueeze(2) if self.video else z, return_dict=False)[0]
        return ((x.squeeze(2) if self.video else x).float() / 2 + 0.5).clamp(0, 1)

    def normalised(self, z: Tensor) -> Tensor:
        """Latents as the transformer has them, of the autoencoder's."""
        return (z - self.shift) / self.scale

    def raw(self, latents: Tensor) -> Tensor:
        """The inverse of normalised."""
        return latents * self.scale + self.shift


def tile(vae: Any, side: int = 512) -> None:
    """Let an autoencoder of diffusers encode and decode larger images in overlapping squares of so many pixels.

    In less memory, and a little differently: what sees the whole image (norms, attention) sees a square then.
    """
    if not hasattr(vae, "enable_tiling"):
        return
    vae.enable_tiling()
    if hasattr(vae, "tile_sample_min_size"):  # AutoencoderKL has names of its own
        vae.tile_sample_min_size = side
        vae.tile_latent_min_size = side // 2 ** (len(vae.config.block_out_channels) - 1)
    else:
        step = side - side // 8
        vae.enable_tiling(side, side, step, step)
