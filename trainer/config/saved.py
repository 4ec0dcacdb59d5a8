"""The settings saved beside a run, of this, an older or a newer version."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from twinflow.plain_json import loads

from .. import TrainerError
from .flat import current, from_flat
from .settings import OPTIONS, Settings

INIT = "init_file"  # in config.json beside the settings: what --init named


def read_settings(folder: Path, notify: Callable[[str], None] = lambda line: None) -> Settings:
    """The settings saved beside a run, of this, an older or a newer version.  Raises TrainerError.

    notify: is given a line on what this version does not know, which is left out.
    """
    path = folder / "config.json"
    try:
        values = loads(path.read_text("utf-8"))
        values.pop(INIT, None)
        played = {role for role, weight in values.get("roles", {}).items() if weight}
        if "difference" in values and (values["reach"] < 1 or not {"one_step", "fake"} <= played):
            values["rectify"] = 0.0  # of the first version, which did not refuse what cannot be rectified
        values = current(values, notify=lambda line: None)
        foreign = [name for name in values if name not in OPTIONS or not is_known(name, values[name])]
        if foreign:
            told = ", ".join(f"{name}: {values[name]!r}" for name in foreign)
            notify(f"{path}: holds {told}, which this version does not know; left out")
        return from_flat({name: value for name, value in values.items() if name not in foreign})
    except FileNotFoundError:
        raise TrainerError(f"{path}: is not there; expected the folder of a run") from None
    except TrainerError as error:
        raise TrainerError(f"{path}: cannot be used ({error})") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainerError(f"{path}: cannot be read ({error})") from None


def is_known(name: str, value: Any) -> bool:
    """Whether an option that is one of several words has a value that is one of them."""
    choices = get_args(OPTIONS[name].kind) if get_origin(OPTIONS[name].kind) is Literal else ()
    return not choices or value in choices
