"""The repository as a package: `python -m trainer.lora`, pytest from anywhere, and what pip installs."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_trainer_runs_as_a_module_from_the_root():
    assert "--model" in run("-m", "trainer.lora", "--help", cwd=ROOT)


@pytest.mark.parametrize("start", ["root", "elsewhere"])
def test_pytest_collects_and_passes_from_anywhere(start, tmp_path):
    assert (ROOT / "__init__.py").is_file()  # what pytest could take for a package, and import
    cwd, test = (ROOT, "tests/core/test_path.py") if start == "root" else (tmp_path, ROOT / "tests/core/test_path.py")
    script = Path(sys.executable).with_name("pytest")  # unlike `python -m pytest` it puts no folder on sys.path
    assert run(script, "-rp", test, cwd=cwd).count("PASSED") == 3


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip has installed a copy of the repository; the copy keeps the checkout free of build/."""
    work = tmp_path_factory.mktemp("install")
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py"):
        (work / "source").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, work / "source")
    for name in ("twinflow", "trainer", "nodes"):
        shutil.copytree(ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-deps", "--no-index", "--no-build-isolation")  # torch brings the setuptools that it takes
    run("-m", "pip", "install", "-q", *offline, "--target", work / "site", work / "source", cwd=work)
    return work / "site"


def test_pip_installs_twinflow_and_trainer_and_no_nodes(installed):
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names - {"bin"} == {"twinflow", "trainer"}  # a top-level `nodes` would hide ComfyUI's own module
    for package in names - {"bin"}:
        for files in ("*.py", "*.yaml", "*.html"):
            source = {p.relative_to(ROOT) for p in (ROOT / package).rglob(files)}
            assert {p.relative_to(installed) for p in (installed / package).rglob(files)} == source


def test_the_installed_packages_are_the_ones_that_run(installed, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import twinflow.sampler, trainer; print(trainer.__file__)"
    assert run("-c", code, cwd=tmp_path).startswith(str(installed))


def test_types_and_entry_points_are_installed(installed):
    assert all((installed / package / "py.typed").is_file() for package in ("twinflow", "trainer"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    commands = ("lora", "full", "base", "generate", "evaluate", "extract", "merge", "convert", "inspect")
    assert set(scripts) == {f"twinflow-{command}" for command in commands}
    told = run("-c", HELP_OF_ALL, *scripts.values(), cwd=ROOT).split("== ended with ")  # in one process: imports take seconds
    assert [part[:2] for part in told[1:]] == ["0\n"] * len(scripts)
    for script, part in zip(scripts, told):
        assert f"usage: python -m trainer.{script.removeprefix('twinflow-')} " in part.lower()


HELP_OF_ALL = """
import sys
from importlib import import_module
targets, sys.argv = sys.argv[1:], ["x", "--help"]
for target in targets:
    module, _, function = target.partition(":")
    try:
        code = getattr(import_module(module), function)()
    except SystemExit as end:
        code = end.code
    print("== ended with", code or 0, flush=True)
"""


def test_the_shipped_weights_and_their_licence_are_in_both_archives(installed):
    """pip's wheel, and the registry's archive: what git tracks, without what .comfyignore names."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    left_out = tuple((ROOT / ".comfyignore").read_text().split())
    archive = {path for path in tracked if not path.startswith(left_out)}
    shipped = [path for path in archive if path.startswith("twinflow/models/") and path.endswith(".safetensors")]
    assert {"twinflow/models/emoji/base.safetensors", "twinflow/models/emoji/words.safetensors"} <= set(shipped)
    for path in shipped:
        note = Path(path).with_name("README.md")
        assert note.as_posix() in archive
        text = (ROOT / note).read_text("utf-8")
        assert "Licence: CC-BY 4.0" in text and "Twemoji" in text and Path(path).name in text
        assert (installed / path).stat().st_size == (ROOT / path).stat().st_size and (installed / note).is_file()
        assert (ROOT / path).stat().st_size < 16 << 20
    assert "twinflow/known_files.json" in archive and (installed / "twinflow" / "known_files.json").is_file()
    assert {path.split("/")[0] for path in archive} >= {"nodes", "twinflow", "web", "locales", "example_workflows", "LICENSE"}


NAMES = {"yaml": "PyYAML", "sklearn": "scikit-learn", "PIL": "pillow"}  # of modules that are not named as their packages


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = lambda requirement: re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")
    extras = {extra: {name(r) for r in wanted} for extra, wanted in project["optional-dependencies"].items()}
    core = {name(r) for r in project["dependencies"]}
    imported = {package: outside(package) for package in ("twinflow", "trainer")}
    assert imported["twinflow"] == core - {"comfyui-frontend-package"} | {"diffusers"}  # of the pipelines that the caller has
    optional = extras["memory"] | extras["log"] | extras["evaluate"] | {"wandb"}
    assert imported["trainer"] - optional <= extras["trainer"] | core
    assert extras["trainer"] - {"pyarrow", "transformers", "peft"} <= imported["trainer"] | core
    assert extras["memory"] | extras["evaluate"] <= imported["trainer"]


def outside(package):
    """The packages that a package imports, anywhere in it, apart from the standard library and our own."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    found -= {"twinflow", "trainer", "__future__"} | set(sys.stdlib_module_names)
    return {NAMES.get(module, module).lower().replace("_", "-") for module in found}


def test_what_the_workflows_call_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        assert yaml.safe_load(text)["jobs"], path
        for target in re.findall(r"\bmake ([\w-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
