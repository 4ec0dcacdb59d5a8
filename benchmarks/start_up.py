"""The seconds by which the pack makes ComfyUI start later: its import by ComfyUI's own loader, when core is there already.

    COMFYUI_PATH=... python benchmarks/start_up.py        (with an interpreter that has ComfyUI's requirements)

Each turn is a process of its own that counts its own time on the processor; the fastest counts.  Above the limit the exit
status is 1.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from row import Row, end  # noqa: E402

LIMIT = 0.2


def once() -> None:
    """In a process of its own: print the seconds."""
    import sampler_overhead  # beside this file

    load = asyncio.run
    took = []

    def timed(action):
        began = time.process_time()
        found = load(action)
        took.append(time.process_time() - began)
        return found

    sampler_overhead.asyncio.run = timed
    sampler_overhead.start(Path(os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI")))
    print(took[-1])  # the pack is what is loaded last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", default=3, type=int)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        once()
        return 0
    command = [sys.executable, __file__, "--once"]
    run = lambda: float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    took = sorted(run() for _ in range(given.turns + 1))  # the first may write byte code
    return end([Row("start-up of the pack, seconds", LIMIT, took[0], took[1] - took[0])])


if __name__ == "__main__":
    sys.exit(main())
