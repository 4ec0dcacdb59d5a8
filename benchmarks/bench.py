"""All costs that have a bound, one table:  python benchmarks/bench.py [--only step_cost load] [--quick]

Runs the scripts beside this file one after the other, each comparing two things turn by turn in one process or in turns of
processes, since the machine may be busy.  Exit code 1 where a bound is missed by more than the noise, or a script fails.
What needs a ComfyUI (COMFYUI_PATH, ~/ComfyUI; its interpreter: COMFYUI_PYTHON, its .venv) is "not run" where there is none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from row import FILE, Row  # noqa: E402

OURS = {"step_cost": "--batch 16 --repeats 2 --draws 8", "cached_step": "--batch 4 --repeats 1", "sharded_memory": "",
        "large_files": ""}  # fmt: skip
IN_COMFYUI = {"sampler_overhead": "--turns 2 --layers 2", "load": "--turns 1 --layers 1", "start_up": "--turns 1"}
QUICK = OURS | IN_COMFYUI  # script -> its options where only a look is wanted


def comfyui() -> tuple[Path, str]:
    """The checkout, and its interpreter; "" where there is none."""
    checkout = Path(os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI"))
    own = [checkout / folder / "bin" / "python" for folder in (".venv", "venv")]
    python = os.environ.get("COMFYUI_PYTHON") or next((str(path) for path in own if path.exists()), "")
    return checkout, python if (checkout / "comfyui_version.py").is_file() else ""


def measured(name: str, options: str = "") -> list[Row] | str:
    """The rows of a script with these options, or why there are none."""
    checkout, python = comfyui()
    if name in IN_COMFYUI and not python:
        return f"not run: no ComfyUI with an interpreter at {checkout}; set COMFYUI_PATH (and COMFYUI_PYTHON)"
    command = [python if name in IN_COMFYUI else sys.executable, str(HERE / f"{name}.py")]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        environment = os.environ | {FILE: str(rows), "COMFYUI_PATH": str(checkout), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run([*command, *options.split()], env=environment, capture_output=True, text=True)
        if rows.exists():
            return [Row(**row) for row in json.loads(rows.read_text())]
    told = (ran.stdout + ran.stderr).strip().splitlines()
    return f"failed: {told[-1] if told else f'exit {ran.returncode}'}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=QUICK, default=[*QUICK], help="scripts to run [all]")
    parser.add_argument("--quick", action="store_true", help="a look, as the tests take it: far too short to judge by")
    given = parser.parse_args(argv)
    print("| measure | bound | here | noise | |\n|---|---|---|---|---|")
    good = True
    for name in given.only:
        found = measured(name, QUICK[name] if given.quick else "")
        if isinstance(found, str):
            print(f"| {name} | | {found} | | |", flush=True)
            good = good and not found.startswith("failed")
            continue
        for row in found:
            verdict = "kept" if row.ok else "**missed**"
            print(f"| {row.measure} | {row.bound:g} | {row.value:.3f} | {row.noise:.3f} | {verdict} |", flush=True)
            good = good and row.ok
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
