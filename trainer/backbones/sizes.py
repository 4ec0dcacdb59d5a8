"""How large a published model is: numbers only, no weights; the plan reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """config: of the diffusers class, where it differs from the class's own defaults.  channels: of the latents.

    text: GiB of the text encoders in bf16.  tokens: of a long prompt.  references: images beside the one that is made.
    """

    config: Mapping[str, Any]
    channels: int
    text: float
    tokens: int = 256
    references: int = 0
