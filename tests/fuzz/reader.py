"""What is fuzzed: a reader of files that somebody else may have written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations


@dataclass
class Reader:
    """suffix: of its files.  sound: writes one.  read: raises one of the errors that are ours.  mutate: besides bytewise.

    share: of the inputs of a test, where each takes long.
    """

    suffix: str
    sound: Callable[[Path], object]
    read: Callable[[Path], object]
    mutate: Callable[[bytes, Any], bytes] = mutations.bytewise
    share: float = 1.0
