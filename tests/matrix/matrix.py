"""Oldest and newest of all that the project stands on:  python tests/matrix/matrix.py [--only "python*" ...]

Prints a line for each with what was run and its outcome, then a table; exits 1 where one fails.  A line is

    python X.Y      every file compiled by that Python, warnings being errors, and the tests that need no PyTorch, in an
                    environment of its own: PyPI's PyTorch for other Pythons than .venv's is CUDA's, of half a gigabyte and
                    more, and is not fetched
    features        the oldest Python that has all that the code uses, by vermin
    NAME VERSION    some tests under .venv, with other versions laid over it
    comfyui X       some tests of the nodes in a checkout that is there (~/ComfyUI*), in its own environment

Pythons are those of pyenv and of PATH.  Needs PyPI.
"""

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = "trainer", "twinflow", "nodes", "__init__.py"
PIP = "-m", "pip", "install", "-q", "--disable-pip-version-check"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLAIN = ["pytest", "numpy>=1.26", "pyyaml>=6", "pydantic>=2.7", "click>=8.1", "pillow>=10.1", "pyarrow>=15", "psutil>=5.9",
         "tomli>=2; python_version < '3.11'"]  # fmt: skip
WITHOUT_TORCH = ["tests/matrix/test_plain.py"]
WITH_LIBRARIES = ["tests/core/test_time_embedding.py", "tests/imports/test_imports.py", "tests/backbones/test_step.py",
                  "tests/backbones/test_late.py", "tests/trainer/test_adapters.py"]  # fmt: skip
IN_COMFYUI = ["tests/comfyui/test_node_parity.py"]
LAID_OVER = {  # name -> what pip lays over .venv; what the newest of another would refuse is not tried
    "diffusers oldest": ["diffusers==0.36.0"],
    "peft oldest": ["peft==0.18.0"],
    "accelerate oldest": ["accelerate==1.10.0"],
    "all oldest": ["diffusers==0.36.0", "peft==0.18.0", "accelerate==1.10.0", "transformers==4.51.0", "tokenizers==0.21.4",
                   "huggingface_hub==0.36.0", "safetensors==0.4.3", "click==8.1.0", "pydantic==2.7.0", "pydantic_core==2.18.1"],
    "all newest": ["diffusers", "peft", "accelerate", "transformers", "tokenizers", "huggingface_hub", "safetensors"],
}  # fmt: skip


def outcome(command: list, environment: dict[str, str] | None = None, cwd: Path = ROOT) -> tuple[bool, str]:
    """Whether it went well, and its last line."""
    ran = subprocess.run([*map(str, command)], env=os.environ | (environment or {}), cwd=cwd, capture_output=True, text=True)
    lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    return ran.returncode == 0, lines[-1].strip("= ") if lines else f"exit {ran.returncode}"


def interpreter(version: str) -> str:
    """Of pyenv or PATH; "" where there is none."""
    own = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(own[-1]) if own else shutil.which(f"python{version}") or ""


def under_python(version: str, folder: Path) -> tuple[bool | None, str]:
    if not (python := interpreter(version)):
        return None, "not run: no such Python here"
    good, told = outcome([python, "-m", "venv", folder])
    own = folder / "bin" / "python"
    if good:
        good, told = outcome([own, *PIP, *PLAIN])
    if good:
        good, told = outcome([own, "-W", "error", "-m", "compileall", "-q", "-f", *CODE])
    return outcome([own, "-m", "pytest", *WITHOUT_TORCH], {"PYTHONPATH": str(ROOT)}) if good else (good, told)


def features(folder: Path) -> tuple[bool, str]:
    good, told = outcome([sys.executable, *PIP, "--target", folder, "vermin"])
    command = [sys.executable, "-m", "vermin", "-t=3.10-", "--backport", "tomli", "--no-tips", "--no-parse-comments", *CODE]
    return outcome(command, {"PYTHONPATH": str(folder)}) if good else (good, told)


def with_libraries(packages: list[str], folder: Path) -> tuple[bool, str]:
    good, told = outcome([sys.executable, *PIP, "--no-deps", "--target", folder, *packages])
    if not good:
        return good, told
    return outcome([sys.executable, "-m", "pytest", *WITH_LIBRARIES], {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"})


def in_comfyui(checkout: Path) -> tuple[bool, str]:
    environment = {"COMFYUI_PATH": str(checkout), "TWINFLOW_REQUIRE_COMFYUI": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return outcome([checkout / ".venv" / "bin" / "python", "-m", "pytest", *IN_COMFYUI], environment)


def version_of(checkout: Path) -> str:
    return (checkout / "comfyui_version.py").read_text().rpartition("=")[2].strip(" \n\"'")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="lines, as file names are matched")
    given = parser.parse_args()
    lines = {f"python {version}": lambda to, v=version: under_python(v, to) for version in PYTHONS}
    lines["features"] = features
    lines |= {name: lambda to, p=packages: with_libraries(p, to) for name, packages in LAID_OVER.items()}
    for checkout in sorted(Path.home().glob("ComfyUI*")):
        if (checkout / ".venv").exists():
            lines[f"comfyui {version_of(checkout)}"] = lambda to, c=checkout: in_comfyui(c)
    table = []
    for name, run in lines.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in given.only):
            with tempfile.TemporaryDirectory() as folder:
                good, told = run(Path(folder))
            table.append((name, good, told))
            print(f"{name}: {told}", flush=True)
    print("\n| | outcome |\n|---|---|")
    for name, good, told in table:
        print(f"| {name} | {told if good is not False else f'**failed**: {told}'} |")
    return int(any(good is False for _, good, _ in table))


if __name__ == "__main__":
    sys.exit(main())
