"""Runs browser.mjs: a headless Chromium with the real frontend.  Needs Debian's chromium, node, and npm's playwright-core."""

import json
import os
import shutil
import subprocess
from pathlib import Path

HOW = "apt install chromium; npm install --prefix ~/.cache/twinflow playwright-core (or name a folder by PLAYWRIGHT)"


def chromium() -> str | None:
    return (
        os.environ.get("CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


def playwright() -> Path | None:
    named = os.environ.get("PLAYWRIGHT")
    for folder in [Path(named)] if named else [Path.home() / ".cache" / "twinflow", Path.home()]:
        if (folder / "node_modules" / "playwright-core").is_dir():
            return folder
    return None


def missing() -> str | None:
    """What the browser test lacks, in one line; None where it can run."""
    lacks = [
        name
        for name, there in (("chromium", chromium()), ("node", shutil.which("node")), ("playwright-core", playwright()))
        if not there
    ]
    return f"no {', '.join(lacks)}: {HOW}" if lacks else None


def task(server, folder: Path, seconds: float = 900, **what) -> dict:
    """Hand the browser a task (see browser.mjs) and return what it found."""
    if lacks := missing():
        raise RuntimeError(lacks)
    file = folder / "task.json"
    file.write_text(json.dumps({"url": server.url, "chromium": chromium(), "playwright": str(playwright()), **what}))
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("browser.mjs")), str(file)], capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        raise RuntimeError(f"the browser failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else {}
