"""The pack's templates in an order of their own: ComfyUI lists them as the disk does, which is by no order at all."""

import json
import sys
from typing import Any

from .help_pages import PACK

FIRST = ("Emoji in one step", "How TwinFlow works - the twin")  # they need no download


def ordered(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def keep() -> None:
    """On ComfyUI's server; nothing where ComfyUI runs without one.  Other packs' lists stay as they are."""
    server: Any = getattr(sys.modules.get("server"), "PromptServer", None)
    if getattr(server, "instance", None) is None:
        return

    async def reorder(request, response) -> None:
        if request.path in ("/workflow_templates", "/api/workflow_templates") and response.content_type == "application/json":
            listed = json.loads(response.text)
            if PACK.name in listed:
                response.text = json.dumps({**listed, PACK.name: ordered(listed[PACK.name])})

    server.instance.app.on_response_prepare.append(reorder)
