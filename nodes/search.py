"""Words that the page's node search finds a node by, besides its name.  ComfyUI 0.3.64 has no place for them."""

from dataclasses import fields
from typing import Any

from comfy_api.latest import io


def found_by(*words: str) -> dict[str, Any]:
    """Arguments for io.Schema."""
    return {"search_aliases": list(words)} if "search_aliases" in {field.name for field in fields(io.Schema)} else {}
