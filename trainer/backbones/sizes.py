"""How large a published model is: numbers only, no weights; the plan reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST = 8192  # pixels of a side that no model here was made for


@dataclass(frozen=True)
class Size:
    """config: of the diffusers class, where it differs from the class's own defaults.  channels: of the latents.

    text: GiB of the text encoders in bf16; 0: the model has no encoders.  vae: like config, of the autoencoder.  tokens: of a
    long prompt.  references: images beside the one that is made.
    """

    config: Mapping[str, Any]
    channels: int
    text: float
    tokens: int = 256
    references: int = 0
    vae: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_encoders(self) -> bool:
        return bool(self.text)


DC: Mapping[str, Any] = dict(  # SANA's, DC-AE
    encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3, downsample_block_type="conv",
    decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3, upsample_block_type="interpolate",
)  # fmt: skip
KL_16: Mapping[str, Any] = dict(  # the autoencoder of FLUX and SD3, apart from its scale
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False,
    use_post_quant_conv=False, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
