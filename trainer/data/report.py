"""What became of the rows: how many are used, which were skipped and why, and what is worth knowing of the others."""

from dataclasses import dataclass, field
from pathlib import Path

from twinflow.weights import write_json

SHOWN = 3  # names a reason in the printed line; the file has all


@dataclass
class Report:
    used: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)  # names by reason
    buckets: dict[str, int] = field(default_factory=dict)  # rows by size
    noted: dict[str, list[str]] = field(default_factory=dict)  # names by what was noticed; these rows may be used

    def skip(self, why: str, name: str) -> None:
        self.skipped.setdefault(why, []).append(name)

    def note(self, what: str, name: str) -> None:
        self.noted.setdefault(what, []).append(name)

    def __str__(self) -> str:
        lost = sum(map(len, self.skipped.values()))
        text = f"{self.used} rows in {len(self.buckets)} buckets; {lost} skipped"
        text += f": {listing(self.skipped)}" if self.skipped else ""
        return text + (f"; noted: {listing(self.noted)}" if self.noted else "")

    def write(self, path: Path) -> None:
        write_json(dict(used=self.used, buckets=self.buckets, skipped=self.skipped, noted=self.noted), path)


def listing(names_by_reason: dict[str, list[str]]) -> str:
    parts = []
    for why, names in names_by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{len(names)} {why} ({', '.join(map(shown, names[:SHOWN]))}{more})")
    return "; ".join(parts)


def shown(name: str) -> str:
    """On one line, and without what a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
