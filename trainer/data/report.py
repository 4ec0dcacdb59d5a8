"""What became of the rows: how many are used, which were skipped and why, and what is worth knowing of the others."""

from dataclasses import dataclass, field
from pathlib import Path

from twinflow.atomic import write_json
from twinflow.plain_json import loads, printable

SHOWN = 3  # names a reason in the printed line; the file has all


@dataclass
class Report:
    used: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)  # names by reason
    buckets: dict[str, int] = field(default_factory=dict)  # rows by size
    noted: dict[str, list[str]] = field(default_factory=dict)  # names by what was noticed; these rows may be used
    content: str = ""  # a hash of the rows that are used

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
        write_json(vars(self), path)

    def change(self, path: Path) -> str:
        """What is other than in the report that lies there, in words; "" where nothing is, or none lies there."""
        try:
            before = loads(path.read_text("utf-8"))
            if before["content"] == self.content:
                return ""
            return f"{self.used} rows, were {before['used']}" if before["used"] != self.used else f"{self.used} rows, others"
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def listing(names_by_reason: dict[str, list[str]]) -> str:
    parts = []
    for why, names in names_by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{len(names)} {why} ({', '.join(map(printable, names[:SHOWN]))}{more})")
    return "; ".join(parts)
