"""A setting as the user meets it: its name on the command line and in files, its help, and what may be written for it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from twinflow.objective import Objective

from .sections import OBJECTIVE, Section

RENAMED = {"difference": "dt"}  # an older name -> the present one; read with a notice, for one version
SOURCES = {("data", "data"), ("logging", "validation")}  # options that hold paths


@dataclasses.dataclass(frozen=True)
class Option:
    """A setting as the user meets it.  section: "" for Settings' own fields.  kind: the field's type."""

    section: str
    field: str
    kind: Any
    default: Any
    help: str
    metavar: str = ""
    top: bool = False
    lora: bool = False

    @property
    def is_path(self) -> bool:
        return self.metavar in ("PATH", "FILE") or Path in {self.kind, *get_args(self.kind)}

    def parse(self, value: Any) -> Any:
        """Tables and pairs may be text: "one_step=1,fake=2" and "0,1"; data may be a list of paths, and prompts of texts."""
        if (self.section, self.field) in SOURCES and isinstance(value, list) and all(isinstance(v, str) for v in value):
            return ",".join('"' + path.replace('"', '""') + '"' if set(path) & set(',"') else path for path in value)
        if (self.section, self.field) == ("logging", "prompts") and isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        if value is False and "none" in get_args(self.kind):  # YAML's off and no
            return "none"
        origin = get_origin(self.kind)
        if not (isinstance(value, str) and isinstance(origin, type) and issubclass(origin, (Mapping, tuple))):
            return value
        items = [item for item in value.replace(" ", "").split(",") if item]
        if origin is tuple:
            return tuple(items)
        return {name: value if equals else 1 for name, equals, value in (item.partition("=") for item in items)}


def options_of(record: type[Section], section: str = "") -> dict[str, Option]:
    found = {}
    for name, field in record.model_fields.items():
        if field.annotation is Objective:
            kinds = get_type_hints(Objective)
            found |= {n: Option(name, n, kinds[n], getattr(Objective(), n), help) for n, help in OBJECTIVE.items()}
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= options_of(field.annotation, name)
        else:
            assert isinstance(field.json_schema_extra, dict) and field.description  # as option() makes it
            extra: dict[str, Any] = {**field.json_schema_extra}
            own = extra.pop("name") or name
            found[own] = Option(section, name, field.annotation, field.default, field.description, **extra)
    return found


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
