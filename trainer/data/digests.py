"""Hash and size of every image, remembered by its file's date, so that a second run need not read them all again."""

import hashlib
from pathlib import Path
from typing import Any

from twinflow.atomic import write_json
from twinflow.plain_json import loads

from .image_files import remarks, size
from .row import ImageFile


class Digests:
    """A JSON file of what was seen; a lost or stale entry only costs the time to read the image again."""

    def __init__(self, path: Path):
        self.path, self.fresh = path, False
        try:
            seen = loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            seen = None
        self.seen = {name: own for name, own in seen.items() if usable(own)} if isinstance(seen, dict) else {}

    def __call__(self, image: ImageFile) -> tuple[str, tuple[int, int]]:
        """Digest of the bytes, and (height, width).  Raises OSError and image_files.Broken."""
        own = self._entry(image)
        return own["digest"], tuple(own["size"])

    def remarks(self, image: ImageFile) -> list[str]:
        """Raises OSError and image_files.Broken."""
        return self._entry(image)["remarks"]

    def _entry(self, image: ImageFile) -> dict[str, Any]:
        stat = image.path.stat()
        name = f"{image.path.resolve()}:{image.column}:{image.row}" + ("" if image.item is None else f":{image.item}")
        stamp = [stat.st_size, stat.st_mtime_ns]
        if self.seen.get(name, {}).get("stamp") != stamp:
            data = image.read()
            self.seen[name] = dict(stamp=stamp, digest=hashlib.sha256(data).hexdigest(), size=size(data), remarks=remarks(data))
            self.fresh = True
        return self.seen[name]

    def save(self) -> None:
        if self.fresh:
            write_json(self.seen, self.path)


def usable(entry: object) -> bool:
    """Whether it is as it was written: the file may have been changed or cut by others."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("digest"), str)
        and isinstance(own := entry.get("size"), list)
        and len(own) == 2
        and all(isinstance(side, int) and side > 0 for side in own)
        and isinstance(entry.get("remarks"), list)
    )
