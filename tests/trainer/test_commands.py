"""Every command that is printed runs when it is pasted: in summary.md, in --help, in errors and in the documents."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from trainer import cli, generate, hints, shell
from trainer.config.resolving import resolve
from trainer.config.settings import Settings
from trainer.runs import summary

from .conftest import ROOT, TINY

DOCUMENTS = [ROOT / name for name in ("README.md", "README_zh.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))]
WITHOUT_SETTINGS = ("generate", "evaluate", "extract", "merge", "convert", "inspect")  # commands that train nothing
SETTINGS = [
    ("lora", dict(model="qwen-image", data='it\'s a "folder"; $HOME `x`', caption="-1 degree", name="run of mine")),
    ("lora", dict(model="qwen-image", times="logit-normal", time_normal=[-0.8, 1.0], lr=1.23456789e-4, checkpointing=False)),
    ("lora", dict(model="z-image", roles=dict(one_step=1, fake=0.123456789), guidance_ratio=0.37, cache="a b/c")),
    ("lora", dict(model="digits", guidance=3, preset="rcgm", time="fold", alpha=7.5)),
    ("lora", dict(model="emoji", weights_ema=0.9, base="x y.safetensors")),
    ("lora", dict(model="qwen-image-edit", prompts=["a cat", {"prompt": "-2 °C", "seed": 3}], guidance_prompt="猫\nund so")),
    ("full", dict(model="sana", out="/tmp/été x", data="a,b", source="-odd")),
    ("base", dict(model="emoji", base_betas=None, seed=7)),
]


def words(text: str) -> list[list[str]]:
    """The commands in a text: blocks and inline code of Markdown."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    code = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + re.findall(r"`([^`\n]+)`", text)
    found = [
        shlex.split(line, comments=True) for line in code if re.search(r"(python|-) ?-?m trainer\.|^twinflow-|-m trainer", line)
    ]
    return [words for words in found if words]


def understood(command: list[str]) -> Settings | None:
    """The settings that a command of the trainer asks for; of one that trains nothing, none.  Raises what it would say."""
    at = next(i for i, word in enumerate(command) if word.startswith("trainer."))
    assert command[at - 1] == "-m", command
    mode, rest = command[at].removeprefix("trainer."), command[at + 1 :]
    if mode in WITHOUT_SETTINGS:
        if {"-h", "--help"} & set(rest):
            return None
        import_module(f"trainer.{mode}").parser().parse_args(rest)
        return None
    given = cli.parse(mode, rest)
    if given is None:  # --help
        return None
    file = given.pop("config", None)
    for name in ("plan", "dry_run"):
        given.pop(name, None)
    return resolve(mode, (cli.read_file(file, mode) if file else {}) | given)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents(path):
    for command in words(path.read_text("utf-8")):
        if any(word.startswith("trainer.") for word in command):
            understood(command)


def test_there_are_commands_in_the_documents():
    assert sum(len(words(path.read_text("utf-8"))) for path in DOCUMENTS) > 12


@pytest.mark.parametrize("file", sorted((ROOT / "trainer" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations(file):
    lines = [line.removeprefix("#").strip() for line in file.read_text("utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    (command,) = [line for line in text.splitlines() if "-m trainer." in line]
    assert understood(shlex.split(command)) is not None


@pytest.mark.parametrize(("mode", "given"), SETTINGS)
def test_the_command_of_a_summary_means_the_same_settings(mode, given):
    settings = resolve(mode, {name: value for name, value in given.items() if value is not None}, notify=lambda line: None)
    text = shell.lines(summary.command(settings))
    again = understood(shlex.split(text.replace("\\\n", " ")))
    assert again is not None and again.flat() == settings.flat()


def test_a_summary_is_pasted_into_a_shell(tmp_path, capsys):
    """In a folder with all that a shell reads as its own: the words that it makes of a command are those that were meant."""
    out, name = tmp_path / "it's $HOME & `x`; 猫", '-1 "run"'
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"

    def call(text: str) -> tuple[int, str]:
        """What comes of a command of `python -m trainer.MODULE`, whose words a shell has read."""
        told = text.replace("python -m", shlex.join([sys.executable, "-c", code]))
        done = subprocess.run(["sh", "-c", told], capture_output=True, text=True, timeout=100)
        module, *words = json.loads(done.stdout)
        run = generate.main if module == "trainer.generate" else functools.partial(cli.main, module.removeprefix("trainer."))
        ended = run(words)
        printed = capsys.readouterr()
        return ended, printed.out + printed.err

    made, said = call(shell.join(["python", "-m", "trainer.lora", *TINY, "--out", str(out), f"--name={name}"]))
    assert made == 0, said
    text = (out / name / "summary.md").read_text("utf-8")
    train, draw = re.findall(r"^```\n(python.*?)```", text, re.M | re.S)
    again, said = call(train)
    assert again == 0 and "is finished" in said, said
    drawn, said = call(draw.strip() + " " + shell.join(["--each", "1", "--output", str(tmp_path / "a b")]))
    assert drawn == 0 and (tmp_path / "a b" / "grid.png").exists(), said


@pytest.mark.parametrize("module", ["lora", "full", "base", *WITHOUT_SETTINGS])
def test_help(module, capsys):
    own = import_module(f"trainer.{module}")
    with pytest.raises(SystemExit) if module in WITHOUT_SETTINGS else pytest.MonkeyPatch.context():
        own.parser().parse_args(["--help"]) if module in WITHOUT_SETTINGS else cli.parse(module, ["--help"])
    text = capsys.readouterr().out
    found = re.findall(r"^  (python -m trainer\.\w+ .*)", text, re.M)
    found = found or re.findall(
        r"python -m trainer\.\w+ --?[^\n]*|python -m trainer\.(?:generate|inspect) \w[^\n]*", " ".join(text.split())
    )
    assert found
    for command in found:
        if "[options]" not in command and "[-h]" not in command:
            understood(shlex.split(command, comments=True))


def test_errors_name_options_as_they_are_typed(tmp_path, capsys):
    assert hints.option("--output_name", "my run", ["name"], flag=True).endswith("here it is called --name 'my run'")
    assert hints.option("--network_alpha", "-1", ["alpha"], flag=True).endswith("here it is called --alpha=-1")
    assert summary.option("caption", "it's") == "--caption 'it'\"'\"'s'"
    assert summary.option("guidance_prompt", "-x") == "--guidance-prompt=-x"


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain", "plain"), ("C:\\my data\\x", '"C:\\my data\\x"'), ("C:\\new\\", "C:\\new\\"),
        ("C:\\my data\\", '"C:\\my data\\\\"'),
        ('say "hi"', '"say \\"hi\\""'), ("a&b", '"a&b"'), ("", '""'), ("猫", '"猫"'), ("it's", '"it\'s"'), ("100%", '"100%"'),
    ],
)  # fmt: skip
def test_windows(monkeypatch, word, quoted):
    """cmd.exe knows double quotes only, and the programs that it starts read backslashes before them."""
    monkeypatch.setattr(os, "name", "nt")
    assert shell.quote(word) == quoted
    assert shell.lines([["python", "-m", "x"], ["--a", word]]) == f"python -m x --a {quoted}"


def test_windows_programs_get_the_same_words(monkeypatch):
    """By the rules of subprocess, which are those of Windows' C library, read backwards."""
    monkeypatch.setattr(os, "name", "nt")
    for word in ("a b\\", 'a"b', 'a\\"b c', "\\\\server\\a b", "ends\\\\"):
        text, found, i = shell.quote(word), "", 0
        inner = text[1:-1] if text.startswith('"') else None
        if inner is None:
            assert text == word
            continue
        while i < len(inner):
            slashes = len(inner[i:]) - len(inner[i:].lstrip("\\"))
            quote = inner[i + slashes : i + slashes + 1] == '"'
            end = i + slashes == len(inner)
            found += "\\" * (slashes // 2 if quote or end else slashes)
            i += slashes
            if quote:
                assert slashes % 2
                found += '"'
                i += 1
            elif not end:
                found += inner[i]
                i += 1
        assert found == word


def test_a_path_is_no_option():
    assert shell.path(Path("-x")) == os.path.join(".", "-x") and shell.path(Path("x")) == "x"
