"""Settings by the names of their options, as a file and the command line give them; faults in them as one line each."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from .. import TrainerError, hints
from ..console import notice
from .options import RENAMED, flag
from .settings import OPTIONS, Settings


def current(given: Mapping[str, Any], notify: Callable[[str], None] = notice) -> dict[str, Any]:
    """Settings with renamed ones under their present names."""
    for old in RENAMED.keys() & given.keys():
        notify(f"{flag(old)} is called {flag(RENAMED[old])} now; the old name will go with the next version")
    return {RENAMED.get(name, name): value for name, value in given.items()}


def from_flat(values: Mapping[str, Any]) -> Settings:
    """The record of settings by option name, the others at their defaults.  Raises TrainerError."""
    if unknown := sorted(values.keys() - OPTIONS.keys()):
        raise TrainerError(hints.option(unknown[0], values[unknown[0]], OPTIONS, flag=False))
    nested: dict[str, Any] = {}
    for name, value in values.items():
        o = OPTIONS[name]
        (nested.setdefault(o.section, {}) if o.section else nested)[o.field] = o.parse(value)
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        raise TrainerError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first fault as one line: setting, value, what was expected."""
    fault = error.errors()[0]
    if fault["type"] == "value_error":
        return fault["msg"].removeprefix("Value error, ")
    parts = [str(part) for part in fault["loc"]]
    names: dict[tuple[str, ...], str] = {}
    names |= {(o.section, o.field) if o.section else (o.field,): name for name, o in OPTIONS.items()}
    own = next((n for n in (2, 1) if tuple(parts[:n]) in names), 0)
    known = names.get(tuple(parts[:own]), "")
    if fault["type"] in ("missing", "too_long"):  # only pairs can have too few or too many
        usual = ",".join(f"{number:g}" for number in OPTIONS[known].default)
        return f"{known} is {','.join(map(str, fault['input']))}; expected two numbers, such as {usual}"
    name = ".".join([known, *parts[own:]]).strip(".")
    if fault["type"] == "string_type":
        return f"{name} is {fault['input']!r}; expected a text: in a file in quotes, or left out"
    if name == "resolution" and fault["type"] == "int_parsing":
        return (
            f"resolution is {fault['input']!r}; expected one number, such as 1024: images keep their shapes, and have about as "
            "many pixels as a square of that side (several resolutions are for a --dataset file)"
        )
    return f"{name} is {fault['input']!r}; {fault['msg'][0].lower()}{fault['msg'][1:]} (see --help)"
