"""Who may import whom: nodes -> twinflow <- trainer, the trainer's rooms in their order, and only torch (safetensors where
files are read) below.  Imports inside functions count like those at the top, so no cycle hides in one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READ_FILES = {  # may need safetensors
    "twinflow.adapter", "twinflow.gguf_header", "twinflow.inspection", "twinflow.diffusers", "twinflow.weights",
    "twinflow.prompts", "twinflow.quantised", "twinflow.words",
}  # fmt: skip
OF_DIFFUSERS = "twinflow.scheduler"  # is diffusers' own kind: imported when twinflow.diffusers is used
HEAVY = ("diffusers", "peft", "accelerate", "transformers", "trainer", "pydantic", "sklearn", "matplotlib")
COMFY = (
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras"),
    *("folder_paths", "latent_preview", "server", "execution", "nodes"),
)
MAY_IMPORT = {  # what of the repository, or of the outside that one side only may touch
    "twinflow": {"twinflow"},
    "trainer": {"twinflow", "trainer"},
    "nodes": {"twinflow", "nodes"},
}
ROOMS = (
    "trainer", "seeds", "shell", "plain_yaml", "hints", "console", "tensors", "data", "backbones", "config", "weights",
    "training", "plan", "runs", "tools", "cli",
)  # fmt: skip
COMMANDS = (  # on top of all rooms
    "lora", "full", "base", "generate", "evaluate", "tutorial", "extract", "merge", "convert", "inspect",
)  # fmt: skip


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(name, path):
    """Absolute names of all that a module imports, wherever in it; relative ones resolved against the repository."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


@pytest.mark.parametrize("package", list(MAY_IMPORT))
def test_imports_run_one_way(package):
    found = 0
    for name, path in modules(package):
        for other in imported(name, path):
            found += 1
            top = other.split(".")[0]
            allowed = MAY_IMPORT[package]
            assert top in allowed or top not in MAY_IMPORT, f"{path}: imports {other}"
            assert package == "nodes" or top not in COMFY, f"{path}: imports {other}, ComfyUI's"
            assert top not in ("diffusers",) or name.startswith("trainer.") or name == OF_DIFFUSERS, f"{path}: imports {other}"
    assert found


def graph(package):
    """module -> the modules of the same package that it imports."""
    paths = dict(modules(package))
    found = {}
    for name, path in paths.items():
        edges = {other if other in paths else other.rpartition(".")[0] for other in imported(name, path)}
        found[name] = {other for other in edges if other in paths and other not in (name, "nodes")}  # that is ComfyUI's `nodes`
    return found


def room(module):
    """Of the trainer: the folder or file right below it; "trainer" for the package itself."""
    return (module.split(".") + ["trainer"])[1]


def test_the_trainer_s_rooms_import_downwards_only():
    order = [*ROOMS, *COMMANDS]
    edges = [(module, other) for module, others in graph("trainer").items() for other in others]
    assert {room(module) for edge in edges for module in edge} <= set(order), "a room without a place in the order"
    assert len(edges) > 50
    for module, other in edges:
        assert room(module) == room(other) or order.index(room(other)) < order.index(room(module)), f"{module}: imports {other}"


@pytest.mark.parametrize("package", list(MAY_IMPORT))
def test_no_module_imports_itself_through_others(package):
    left = graph(package)
    while leaves := [module for module, others in left.items() if not others & left.keys()]:
        for module in leaves:
            del left[module]
    assert not left, f"in a cycle, or above one: {sorted(left)}"


def test_the_nodes_ask_records_and_no_backbone():
    """ComfyUI's classes of the backbones are found by the registry, and nobody names one."""
    for module, others in graph("nodes").items():
        if not module.startswith("nodes.backbones"):
            found = {other for other in others if other.startswith("nodes.backbones")}
            assert found <= ({"nodes.backbones"} if module == "nodes.registry" else set()), f"{module}: imports {found}"
            text = (ROOT / Path(*module.split("."))).with_suffix(".py")
            names = [path.stem for path in (ROOT / "nodes" / "backbones").glob("[a-z]*.py")]
            code = text.read_text() if text.is_file() else ""
            assert not [name for name in names if f"backbones.{name}" in code or f'"{name}"' in code], module


def test_twinflow_imports_itself_relatively():
    for _, path in modules("twinflow"):
        absolute = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and not n.level]
        assert not any(n.module.split(".")[0] == "twinflow" for n in absolute), f"{path}: ComfyUI gives it another name"


def python(code, cwd, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_core_needs_torch_only():
    names = [name for name, _ in modules("twinflow") if name != OF_DIFFUSERS]
    assert READ_FILES <= set(names)
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from importlib import import_module
for name in {names!r}:
    if name not in {READ_FILES!r}:
        import_module(name)
assert "torch" in sys.modules
print(*("early:" + m for m in ["safetensors"] if m in sys.modules))
for name in {sorted(READ_FILES)!r}:
    import_module(name)
print(*(m for m in {(*HEAVY, *COMFY)!r} if m in sys.modules))
"""
    assert python(code, "/") == []


# ComfyUI loads a pack by path, with a name that is no identifier.  Its own modules are stand-ins here: it imports
# transformers itself, which would hide that the pack does.
AS_COMFYUI = """
import collections, importlib.abc, importlib.machinery, importlib.util, sys, types
from unittest.mock import MagicMock

class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()

class StandIn(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = Anything(name, (), {}) if name[0].isupper() else MagicMock()
        setattr(self, name, value)
        return value

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in STAND_INS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return StandIn(spec.name)
    def exec_module(self, module):
        pass

root, STAND_INS = sys.argv[1], sys.argv[2:]
sys.meta_path.insert(0, Finder())
import comfy, folder_paths
folder_paths.models_dir, folder_paths.folder_names_and_paths = "/models", collections.defaultdict(lambda: ([], set()))
before = set(sys.modules)
name = "/custom_nodes/Twin Flow-1_x_0"
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert callable(module.comfy_entrypoint), dir(module)
assert any(m.startswith(name + ".nodes.") for m in sys.modules)
print(*sorted({m.split(".")[0] for m in set(sys.modules) - before if not m.startswith(name)}), sep="\\n")
"""


def test_the_pack_loads_as_comfyui_loads_it_and_brings_in_nothing_heavy(tmp_path):
    loaded = python(AS_COMFYUI, tmp_path, str(ROOT), *COMFY)
    assert "torch" in loaded and not set(loaded) & {*HEAVY, "twinflow"}, loaded


def test_without_comfyui_the_root_is_an_empty_module(tmp_path):
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("pack", {str(ROOT / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
assert not hasattr(module, "comfy_entrypoint")
print(*(m for m in ("torch", "pack.nodes") if m in sys.modules))
"""
    assert python(code, tmp_path) == []
