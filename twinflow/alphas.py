"""A LoRA's alpha where no tensor names it: the settings of diffusers and PEFT in a file's metadata."""

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from .plain_json import loads, one_line


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
            if matcher(pattern).fullmatch(module):
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            return None
        if not math.isfinite(found := float(alpha) * (rank**0.5 if get("use_rslora") in (True, "True") else 1)):
            raise refused(f"the LoRA's metadata give {module} an alpha of {alpha:g}, which is too large to be one")
        return found


def refused(message: str) -> ValueError:
    from .weights import WeightsError  # only now: it needs safetensors, the library's core torch alone

    return WeightsError(message)


@cache
def matcher(pattern: str) -> re.Pattern:
    """Of modules, as PEFT matches them.  Raises WeightsError for a pattern without a meaning, or one that could take for ever:
    more than two repetitions, or one of a group."""
    try:
        if len(pattern) > 300 or len(re.findall(r"[*+{]", pattern)) > 2 or re.search(r"\)[*+?{]", pattern):
            raise ValueError("expected a name, or a short pattern")
        return re.compile(rf"(.*\.)?({pattern.removeprefix('^')})")
    except (re.error, ValueError, RecursionError, OverflowError) as error:
        raise refused(f"the LoRA's metadata have the alpha_pattern {one_line(repr(pattern), 60)}: {error}") from None


def _parsed(value: Any) -> Any:
    """What a text says in JSON; anything else as it is."""
    try:
        return loads(value)
    except (TypeError, ValueError):
        return value
