"""What all nodes share: inputs are looked at before a node works with them, whatever sent them.

The page keeps widgets within their ranges, the API only what stands in the prompt itself, and NaN passes both.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

from comfy_api.latest import io

from ..twinflow.plain_json import one_line
from .inputs import check_numbers, check_numel

NUMBERS = {"INT": numbers.Integral, "FLOAT": numbers.Real}
WORDS = {"INT": "whole number", "FLOAT": "number"}
LEAST_SEED = -(2**63)
FIXES = {
    "LATENT": "encode the image again, with the VAE in float32 (--fp32-vae), or sample it again",
    "CONDITIONING": "encode the prompt again, or choose another prompts file",
    "SIGMAS": "connect TwinFlow Schedule, or another scheduler made for this model",
}


class Node(io.ComfyNode):
    """A node whose execute raises ValueError, with the input's name, for what its schema does not allow.

    files: its combos of files, whose own errors say more.
    """

    files: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        own = cls.__dict__.get("execute")
        if isinstance(own, classmethod) and not hasattr(own.__func__, "__wrapped__"):  # ComfyUI clones classes
            cls.execute = classmethod(checked(own.__func__))


def checked(execute: Callable) -> Callable:
    known = inspect.signature(execute)

    @functools.wraps(execute)
    def run(cls, *args, **inputs):
        given = known.bind(cls, *args, **inputs).arguments
        for own in (cls.SCHEMA or cls.GET_SCHEMA()).inputs:
            if given.get(own.id) is not None and own.id not in cls.files:
                check(own, given[own.id])
        return execute(cls, *args, **inputs)

    return run


def range_of(own: Any) -> tuple[float, float]:
    """The least and the greatest number of an input; a seed may be negative, since core's Int node draws such and PyTorch
    takes them."""
    if getattr(own, "control_after_generate", None):
        return LEAST_SEED, own.max
    return (-math.inf if own.min is None else own.min), (math.inf if own.max is None else own.max)


def check(own: Any, value: Any) -> None:
    """Raises ValueError for a value that this input of a schema does not allow."""
    kind = str(own.io_type)
    if kind in NUMBERS:
        low, high = range_of(own)
        if not (isinstance(value, NUMBERS[kind]) and low <= value <= high and abs(value) < math.inf):  # false for NaN
            found = one_line(repr(value), 60)
            raise ValueError(f"{own.id} is {found}; expected a {WORDS[kind]} from {low:g} to {high:g}")
    elif kind == "COMBO":
        if value not in own.options:
            raise ValueError(f"{own.id} is {one_line(repr(value), 60)}; expected one of {', '.join(map(str, own.options))}")
    elif kind in FIXES:
        if kind == "LATENT":
            check_numel(own.id, value["samples"])
        check_numbers(own.id, value, FIXES[kind])
