"""The command line of trainer.lora and trainer.full: every setting as an option, the most used ones first in --help."""

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import yaml

from twinflow.backbones import canonical, models

from . import TrainerError, console, hints, plain_yaml
from .config.options import RENAMED, Option, flag
from .config.resolving import BY_MODE, meaningless, resolve
from .config.settings import OPTIONS, Settings

CONFIGS = Path(__file__).parent / "configs"
Mode = Literal["lora", "full", "base"]
DOES = {
    "lora": "Distil a flow model to 1 to 4 steps with TwinFlow: a LoRA",
    "full": "Distil a flow model to 1 to 4 steps with TwinFlow: all weights",
    "base": "Train the base of a small model by flow matching, from nothing",
}
TOP = "most used"
OWN = "some models have others: --model NAME --help lists those, and only what such a model reads"
EXTRA: dict[str, dict[str, Any]] = {  # options that are not settings
    "config": dict(metavar="FILE", help="settings from a YAML or JSON file, under these options' names; or one of ours: "),
    "plan": dict(metavar="CARDS", type=int, is_flag=False, flag_value=1, help=(
        "print the memory that the run takes, on one card or on so many with FSDP, and exit")),
    "dry_run": dict(is_flag=True, help="print the resolved settings, check all that can be checked before work, and exit"),
}  # fmt: skip
FIRST = ("model", "data", "config")  # of the most used ones


def main(mode: Mode, argv: list[str] | None = None) -> int:
    """Returns the exit code (see console.guarded)."""
    if argv is None:
        console.utf8()
    return console.guarded(lambda: command(mode, sys.argv[1:] if argv is None else argv))


def command(mode: Mode, argv: list[str]) -> None:
    given = parse(mode, argv)
    if given is None:  # --help
        return
    dry_run, cards, file = (given.pop(name, None) for name in ("dry_run", "plan", "config"))
    settings = resolve(mode, ({} if file is None else read_file(file, mode)) | given)
    if dry_run:
        print(printed(settings), flush=True)
        from .runs.run import dry_run as look

        look(settings)
    elif mode == "base":
        from .runs.run import run_base

        run_base(settings)
    elif cards is not None:
        from .plan import table

        print(table.plan_text(settings, cards))
    else:
        from .runs.run import run  # only now: diffusers and peft take seconds to import

        run(settings)


def parse(mode: Mode, argv: list[str]) -> dict[str, Any] | None:
    """What was given, by option name; None where --help was asked for, and printed.  Raises TrainerError."""
    command = Command(mode, asked_model(argv) if {"-h", "--help"} & set(argv) else "")
    try:
        context = command.make_context(f"python -m trainer.{mode}", list(argv))
    except click.exceptions.Exit:
        return None
    except click.NoSuchOption as error:
        raise TrainerError(hints.option(error.option_name, following(error.option_name, argv), named(), flag=True)) from None
    except click.UsageError as error:
        raise TrainerError(explain(error)) from None
    return {name: value for name, value in context.params.items() if value is not None}


def named() -> tuple[str, ...]:
    return (*OPTIONS.keys() - {"mode"}, *EXTRA)


def following(asked: str, argv: list[str]) -> str | None:
    """The value that stands behind an option."""
    for i, text in enumerate(argv):
        name, equals, value = text.partition("=")
        if name == asked:
            return value if equals else next((v for v in argv[i + 1 : i + 2] if not v.startswith("--")), None)
    return None


def explain(error: click.UsageError) -> str:
    """One line: option, value, what was expected."""
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{flag(error.param.name or '')}: {error.message.rstrip('.')} (see --help)"
    text = error.format_message().rstrip(".")
    return f"{text}; options begin with --, see --help" if "unexpected extra argument" in text else f"{text} (see --help)"


def asked_model(argv: list[str]) -> str:
    """The model whose defaults --help shows: the one that is named, itself or by one of our files; "" where none is."""
    config = following("--config", argv)
    own = CONFIGS / f"{config}.yaml"
    listed = plain_yaml.loads(own.read_text("utf-8"))["model"] if config and own.exists() else ""
    model = following("--model", argv) or listed
    return canonical(model) if canonical(model) in models() else ""


def printed(settings: Settings) -> str:
    """The settings that mean something to this run, as JSON that --config takes."""
    unread = {*meaningless(settings.mode, settings.model), *(["steps"] if settings.training.epochs is not None else [])}
    return json.dumps({name: value for name, value in settings.flat().items() if name not in unread}, indent=2)


class Command(click.Command):
    """One option a setting; what is not given stays absent, so that it overrides nothing."""

    def __init__(self, mode: Mode, model: str):
        self.defaults = {n: o.default for n, o in OPTIONS.items()} | (recipe(mode, model) if model else BY_MODE[mode])
        self.unread = meaningless(mode, model)
        options = [self.option(name, setting) for name, setting in OPTIONS.items() if name != "mode"]
        options += [click.Option([flag(name)], **extra) for name, extra in EXTRA.items() if (name, mode) != ("plan", "base")]
        options += [click.Option([flag(old)], hidden=True, metavar=new) for old, new in RENAMED.items()]
        super().__init__(
            name=mode,
            params=[*options],
            help=f"{DOES[mode]}. The values in brackets apply where you "
            + (f"give none; these are for {model}." if model else f"give none, and {OWN}."),
            epilog=f"Try it now, on any CPU: python -m trainer.{mode} --model digits",
            context_settings=dict(help_option_names=["-h", "--help"], max_content_width=120),
            options_metavar="--model NAME [options]",
        )

    def option(self, name: str, setting: Option) -> click.Option:
        text = setting.help + shown(self.defaults[name])
        if setting.kind is bool:
            return click.Option([f"{flag(name)}/{flag('no_' + name)}"], default=None, help=text, hidden=name in self.unread)
        choices = get_args(setting.kind) if get_origin(setting.kind) is Literal else None
        kind = click.Choice(choices) if choices else None
        metavar = None if choices else setting.metavar or placeholder(setting.kind)
        return click.Option([flag(name)], type=kind, metavar=metavar, help=text, hidden=name in self.unread)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The most used options first, the others by section."""
        ours = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        sections: dict[str, dict[str, tuple[str, str]]] = {TOP: {}}
        for parameter in self.get_params(ctx):
            record, name = parameter.get_help_record(ctx), parameter.name or ""
            if record is None:
                continue
            if name == "config":
                record = record[0], record[1] + ours
            sections.setdefault(heading(name), {})[name] = record
        top = sections[TOP]
        sections[TOP] = {name: top[name] for name in (*FIRST, *top) if name in top}
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(list(records.values()))


def heading(name: str) -> str:
    if name in EXTRA or (name in OPTIONS and OPTIONS[name].top):
        return TOP
    section = OPTIONS[name].section if name in OPTIONS else ""
    return (Settings.model_fields[section].description or section) if section else "other"


def recipe(mode: Mode, model: str) -> dict[str, Any]:
    """The defaults that apply to a model, by option name."""
    return resolve(mode, {"model": model}, notify=lambda line: None).flat() | {"name": None}


def placeholder(kind: Any) -> str:
    """What stands for a value of this type in --help; of an optional one, for the value that it may have."""
    if get_origin(kind) is tuple:
        return "X,X"
    if get_origin(kind) is Mapping:
        return "NAME=X,..."
    kinds = {kind, *get_args(kind)}
    return next((text for own, text in ((int, "N"), (float, "X"), (Path, "PATH")) if own in kinds), "TEXT")


def shown(value: Any) -> str:
    """A default, in brackets."""
    if isinstance(value, bool):
        text = "on" if value else "off"
    elif isinstance(value, dict):
        text = ",".join(f"{k}={v:g}" for k, v in value.items())
    elif isinstance(value, (tuple, list)):
        text = ",".join(f"{v:g}" for v in value)
    else:
        text = "" if value in (None, "") else str(value)
    return f" [{text}]" if text else ""


def read_file(path: str, mode: str) -> dict[str, Any]:
    """Settings from a YAML (or JSON) file, or from one of ours by name.  Raises TrainerError."""
    own = CONFIGS / f"{path}.yaml"
    try:
        values = plain_yaml.loads((own if own.exists() and not Path(path).exists() else Path(path)).read_text("utf-8"))
    except OSError as error:
        names = [file.stem for file in CONFIGS.glob("*.yaml")]
        near = difflib.get_close_matches(path, names, 3, 0.8)
        expected = f"expected a YAML or JSON file, or one of {', '.join(sorted(names))}"
        hint = f"did you mean {' or '.join(near)}?" if near else expected
        raise TrainerError(f"--config {path}: cannot be read ({error.strerror}); {hint}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise TrainerError(f"--config {path}: is not YAML or JSON ({hints.fault(error)})") from None
    if not isinstance(values, dict):
        held = "nothing" if values is None else type(values).__name__
        raise TrainerError(f"--config {path}: holds {held}; expected settings, one `name: value` a line")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    if (meant := values.pop("mode", mode)) != mode:
        raise TrainerError(f"--config {path}: is for the other command; expected python -m trainer.{meant}")
    for name, value in values.items():
        paths = value if isinstance(value, list) and name != "prompts" else [value]  # a list of prompts is of texts
        if name in OPTIONS and OPTIONS[name].is_path and any(map(hints.escaped, paths)):
            raise TrainerError(f"--config {path}: {name} is {value!r}; expected no control characters ({hints.ESCAPED})")
    return values
