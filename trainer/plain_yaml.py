"""What a YAML text may be here: plain values, each written where it stands."""

from typing import Any

import yaml

from twinflow.plain_json import DEEPEST


class Loader(yaml.SafeLoader):
    """Without aliases, which let a few lines stand for gigabytes, and without endless depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise refused(f"an alias (*{self.peek_event().anchor}); expected the value itself", self.peek_event())
        if self.depth > DEEPEST:
            raise refused(f"nested more than {DEEPEST} deep", self.peek_event())
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # of a tag or a date that the value does not fit
            raise refused(f"{str(node.value)[:40]!r} is not a {node.tag.rpartition(':')[2]}", node) from error


def refused(why: str, at: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, why, at.start_mark)


def loads(text: str) -> Any:
    """The value of a YAML text.  Raises yaml.YAMLError."""
    return yaml.load(text, Loader)
