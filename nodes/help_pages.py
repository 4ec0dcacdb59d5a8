"""The nodes' help pages, with the models that the pack supports in place of {{models}}, and the words of emoji of {{words}}.

ComfyUI serves the pages (web/docs) as static files.  Routes of packs come before those, so this one answers first.
"""

import sys
from pathlib import Path
from typing import Any

from .emoji_prompt import words
from .supported import names_with_notes

PACK = Path(__file__).parents[1]  # its folder's name is in the pages' addresses
LISTS = {"zh": ("、", "、")}  # commas between the names, and what stands before the last


def page(path: Path) -> str:
    """The text of a help page, in the language that its file is named by."""
    text = path.read_text(encoding="utf-8").replace("{{models}}", names_with_notes(*LISTS.get(path.stem, ())))
    return text.replace("{{words}}", ", ".join(words().words[1:])) if "{{words}}" in text else text


def add_route() -> None:
    """On ComfyUI's server; nothing where ComfyUI runs without one."""
    server: Any = getattr(sys.modules.get("server"), "PromptServer", None)
    if getattr(server, "instance", None) is None:
        return
    from aiohttp import web

    pages = {(path.parent.name, path.stem): path for path in (PACK / "web" / "docs").glob("*/*.md")}

    @server.instance.routes.get(f"/extensions/{PACK.name}/docs/{{node}}/{{language}}.md")
    async def help_page(request: web.Request) -> web.Response:
        path = pages.get((request.match_info["node"], request.match_info["language"]))
        if path is None:
            raise web.HTTPNotFound
        return web.Response(text=page(path), content_type="text/markdown")
