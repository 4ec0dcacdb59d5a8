"""A template: one workflow as a graph, and what its page says and shows."""

from dataclasses import dataclass, field

from .files import FILES, files_of

PICTURES = ("SaveImage", "TwinFlowEmojiImage", "TwinFlowVelocityFields")


@dataclass
class Template:
    """One workflow.  title: its file's name, which the page shows.

    says: the note's text, in English and in Chinese, before the list of files.  groups: what stands together, in columns from
    left to right.  below: the groups that stand below the one before them.  app: the widgets that app mode shows, as (node,
    widget); the pictures it shows are those that are saved or, where none is, those of our own nodes.
    """

    title: str
    says: tuple[str, str]
    groups: dict[str, list[list[str]]]
    graph: dict[str, dict]
    app: list[tuple[str, str]] = field(default_factory=list)
    below: tuple[str, ...] = ()

    def pictures(self) -> list[str]:
        by_kind = {kind: [name for name, node in self.graph.items() if node["class_type"] == kind] for kind in PICTURES}
        return next(filter(None, by_kind.values()))

    def notes(self) -> tuple[str, str]:
        english, chinese = self.says
        return f"{english}\n\n{self.files('to')}".strip(), f"{chinese}\n\n{self.files('放到')}".strip()

    def files(self, to: str) -> str:
        names = [name for node in self.graph.values() for name in files_of(node)[:1]]
        return "\n".join(f"- [{name}]({FILES[name][1]}) {to} models/{FILES[name][0]}" for name in names)
