"""A LoRA's alpha where no tensor names it: the settings of diffusers and PEFT in a file's metadata."""

import re
from collections.abc import Mapping
from typing import Any

from .plain_json import loads


class Alphas:
    """Settings as JSON in `lora_adapter_metadata`, or each under its own name, with `transformer.` before it or without."""

    NAMES = ("lora_adapter_metadata", "lora_alpha", "network_alpha", "alpha_pattern", "use_rslora")  # that are read

    def __init__(self, metadata: Mapping[str, str]):
        inner = _parsed(metadata.get("lora_adapter_metadata"))
        found = {**metadata, **(inner if isinstance(inner, dict) else {})}
        self.settings: dict[str, Any] = {}
        for start in ("", "transformer."):  # a text encoder's are another's
            self.settings |= {key.removeprefix(start): _parsed(value) for key, value in found.items() if key.startswith(start)}

    def of(self, module: str, rank: int) -> float | None:
        """So that alpha / rank is the scale of the module; None where the file says nothing of it."""
        get = self.settings.get
        alpha = get("lora_alpha", get("network_alpha"))
        patterns = get("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if re.fullmatch(rf"(.*\.)?({pattern.removeprefix('^')})", module):  # as PEFT matches them
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            return None
        return float(alpha) * (rank**0.5 if get("use_rslora") in (True, "True") else 1)


def _parsed(value: Any) -> Any:
    """What a text says in JSON; anything else as it is."""
    try:
        return loads(value)
    except (TypeError, ValueError):
        return value
