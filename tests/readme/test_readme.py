"""What the README says, in both languages, is so: messages, commands, files, nodes, the registry's fields."""

import ast
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))


@cache
def said() -> str:
    """Every text in the nodes and the library, with what is filled in left out."""
    texts = []
    for path in [*(ROOT / "nodes").glob("*.py"), *(ROOT / "twinflow").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def is_said(message: str) -> bool:
    """Dots stand for what is filled in; a line break in the code's text is none."""
    return re.search(r"[^\n]*".join(re.escape(part.strip(" ,")) for part in message.split("...")), said()) is not None


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with this word."""
    lines = text.split(f"\n| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def messages(text: str) -> list[str]:
    head = "message" if text is ENGLISH else "消息"
    return [message for row in rows(text, head) for message in re.findall(r"\*([^*]+)\*", row[0])]


@pytest.mark.parametrize("message", messages(ENGLISH))
def test_message_is_one_of_ours(message):
    assert is_said(message)


def help_messages() -> list[tuple[str, str]]:
    pages = sorted((ROOT / "web" / "docs").glob("*/*.md"))
    part = {path: re.split(r"^## (?:Messages|提示信息)$", path.read_text(encoding="utf-8"), flags=re.M)[1:] for path in pages}
    return [
        (f"{path.parent.name}/{path.name}", m)
        for path in pages
        for text in part[path]
        for m in re.findall(r"\*([^*\n]+)\*", text)
    ]


@pytest.mark.parametrize(("page", "message"), help_messages())
def test_message_of_a_help_page_is_one_of_ours(page, message):
    assert is_said(message), page


def test_the_languages_are_in_step():
    """The same messages, commands of training and of ComfyUI, nodes and links to files; the Chinese text may say less."""
    assert messages(CHINESE) == messages(ENGLISH)
    fenced = [re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) for text in (ENGLISH, CHINESE)]
    blocks = [[code for language, code in own if not language] for own in fenced]
    assert blocks[1] == blocks[0][: len(blocks[1])] and len(blocks[1]) == 4
    assert [row[0] for row in rows(CHINESE, "节点")] == [row[0] for row in rows(ENGLISH, "node")]
    for name, place in ((row[0], row[1]) for row in rows(CHINESE, "文件")[:-1]):
        for file in re.findall(r"`([^`]+\.safetensors)`", name):
            assert f"`{file}`" in ENGLISH
        assert re.search(r"\]\((.+)\)", place)[1] in ENGLISH
    assert "(README_zh.md)" in ENGLISH and "(README.md)" in CHINESE


def test_counts_its_templates():
    number = {12: "Twelve", 13: "Thirteen", 14: "Fourteen", 15: "Fifteen", 16: "Sixteen"}[
        len(list((ROOT / "example_workflows").glob("*.json")))
    ]
    assert f"{number} workflows are then under Templates" in ENGLISH


def test_links_lead_somewhere():
    for text in (ENGLISH, CHINESE):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_tree_is_there():
    tree = ENGLISH.split("## The tree")[1].split("```")[1]
    for line in re.findall(r"^\S+.*?(?=  )", tree, re.M):
        for name in line.split(", "):
            assert (ROOT / name).exists(), name


def test_registry_fields():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    comfy, home = project["tool"]["comfy"], project["project"]["urls"]["Repository"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"] == ">=0.3.64"
    icon = ROOT / comfy["Icon"].removeprefix(f"{home}/raw/main/")
    width, height = (int(re.search(rf'<svg[^>]* {side}="(\d+)"', icon.read_text())[1]) for side in ("width", "height"))
    assert width <= 800 and height <= 400
    assert "Operating System :: OS Independent" in project["project"]["classifiers"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])


def test_chinese_texts_for_every_input():
    """The interface's nodes and inputs, each with a name and a tooltip; the page has no place for the values of lists, so the
    tooltips explain those."""
    interface = json.loads((ROOT / "tests" / "comfyui" / "interface.json").read_text())
    texts = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(texts) == set(interface)
    for node, spec in interface.items():
        assert set(texts[node]["inputs"]) == set(spec["inputs"]), node
        for name, entry in texts[node]["inputs"].items():
            assert entry["name"] and entry["tooltip"], (node, name)
            values = [v for v in spec["inputs"][name].get("options", []) if not re.search(r"\d|float|default|sde", v)]
            for value in values:
                assert value.split(" (")[0].split()[0] in entry["tooltip"], (node, name, value)
