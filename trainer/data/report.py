"""What became of the rows: how many are used, which were skipped and why."""

from dataclasses import dataclass, field
from pathlib import Path

from twinflow.weights import write_json

SHOWN = 3  # names a reason in the printed line; the file has all


@dataclass
class Report:
    used: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)  # names by reason
    buckets: dict[str, int] = field(default_factory=dict)  # rows by size

    def skip(self, why: str, name: str) -> None:
        self.skipped.setdefault(why, []).append(name)

    def __str__(self) -> str:
        parts = []
        for why, names in self.skipped.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{len(names)} {why} ({', '.join(names[:SHOWN])}{more})")
        lost = sum(map(len, self.skipped.values()))
        return f"{self.used} rows in {len(self.buckets)} buckets; {lost} skipped" + (": " + "; ".join(parts) if parts else "")

    def write(self, path: Path) -> None:
        write_json(dict(used=self.used, buckets=self.buckets, skipped=self.skipped), path)
