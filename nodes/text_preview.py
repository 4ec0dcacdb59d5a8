"""A node's report as text: below the node on the page, and in the history."""

import sys
from typing import Any

from comfy_api.latest import io, ui


def text_preview(node: type[io.ComfyNode], text: str) -> ui.PreviewText:
    """The ui value that puts the text into the history; where a page is listening, it sees the text at once."""
    server: Any = getattr(sys.modules.get("server"), "PromptServer", None)  # absent where ComfyUI runs without its server
    hidden = getattr(node, "hidden", None)
    if getattr(server, "instance", None) is not None and hidden is not None and hidden.unique_id is not None:
        server.instance.send_progress_text(text, hidden.unique_id)
    return ui.PreviewText(text)
