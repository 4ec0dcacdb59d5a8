"""What a node says of its work: a verdict in a line, warnings, and details."""

from dataclasses import dataclass, field

from comfy_api.latest import io

from .text_preview import text_preview


@dataclass
class Report:
    verdict: str
    details: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "\n".join([self.verdict, *(f"warning: {warning}" for warning in self.warnings), *self.details])


def shown(node: type[io.ComfyNode], report: Report):
    """The value for the node's `ui`."""
    return text_preview(node, report.text())
