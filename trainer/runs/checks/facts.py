"""What the checks ask about a run, and what they find that a dry run may yet be without."""

from dataclasses import replace
from functools import cached_property
from typing import Any

from ... import TrainerError, data
from ...backbones import Backbone, backbone
from ...config.settings import Settings
from ...data.image_files import Broken, size
from ...data.report import Report
from ...data.row import Row
from ...plan import memory
from ...plan.card import Card, card, cards
from ...plan.memory import Plan
from .. import run_of


class Facts:
    """What the checks ask about a run, found out when it is first asked for.  Raises TrainerError then."""

    def __init__(self, settings: Settings):
        self.settings, self.published = settings, backbone(settings.model)
        self.kind: Any = run_of(self.published)

    def reads(self, name: str) -> bool:
        """Whether the model reads this option or section."""
        return name not in self.published.unread

    @cached_property
    def known(self) -> Backbone:
        """The backbone of the size that --source has."""
        own, base = self.settings, self.settings.base.path
        source = own.data.source if self.reads("data") else str(base or "")
        model = self.published.outline(source) if source else None
        return self.published.sized(model) if model is not None else self.published

    @cached_property
    def rows(self) -> list[Row]:
        own = self.settings.data
        return usable_rows(self, own.data, "--dataset" if own.dataset else "--data", dataset=own.dataset)

    @cached_property
    def plan(self) -> Plan:
        return memory.plan(self.known, self.settings, cards())

    @cached_property
    def card(self) -> Card | None:
        return card()


class Missing(str):
    """What is found of a machine, or of data, that a dry run may yet be without: it only says so."""


def usable_rows(facts: Facts, where: str, option: str, **changes: Any) -> list[Row]:
    """The rows of a source, of which one at least can be used.  Raises TrainerError."""
    request = replace(facts.kind.request(facts.settings, where, **changes), multiple=1)  # which is looked at by itself
    report = Report()
    try:
        found = data.look(request, report)
    except TrainerError as error:
        raise TrainerError(f"{option}: {str(error).removeprefix('data: ')}") from None
    for row in found:
        try:
            for image in ([] if request.image_free else [row.target], row.references if request.edit else []):
                [size(own.read()) for own in image if own]
            return found
        except Broken as fault:
            report.skip("broken image", f"{row.name} ({fault})")
        except OSError as error:
            report.skip("image cannot be read", f"{row.name} ({error.strerror or error})")
    expected = request.expected(report)
    raise TrainerError(f"{option}: {request.dataset or where!r} holds no usable row ({report}); expected {expected}")
