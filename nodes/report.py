"""What a node says of its work: a verdict in a line, warnings, and details.  web/js/report.js keeps them on the node."""

import logging
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

EVENT = "twinflow.warning"
_said: set[tuple] = set()  # of the prompt that runs: a model is asked many times


@dataclass
class Report:
    """Shown on the node: the verdict, then the warnings; the details are folded."""

    verdict: str
    details: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "\n".join([self.verdict, *(f"warning: {warning}" for warning in self.warnings), *self.details])


def shown(node: type[io.ComfyNode], report: Report) -> dict:
    """The value for the node's `ui`.  The warnings are logged, too."""
    for warning in report.warnings:
        logging.warning("[TwinFlow] %s", warning)
    return {"text": [report.text()], "twinflow": [asdict(report)]}


def warn(message: str, node_id: str | None = None) -> None:
    """To the log and, where a page is listening, onto a node: the one that is running, unless another is named."""
    where = get_executing_context()
    if where is not None:
        if any(prompt != where.prompt_id for prompt, *_ in _said):
            _said.clear()
        said = (where.prompt_id, node_id or where.node_id, message)
        if said in _said:
            return
        _said.add(said)
        node_id = node_id or where.node_id
    logging.warning("[TwinFlow] %s", message)
    server: Any = getattr(sys.modules.get("server"), "PromptServer", None)  # absent where ComfyUI runs without its server
    server = getattr(server, "instance", None)
    if server is not None and node_id is not None:
        server.send_sync(EVENT, {"node": node_id, "warning": message}, server.client_id)
