"""The command line of trainer.lora and trainer.full: every setting of Config as an option."""

import argparse
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
import yaml

from twinflow.weights import WeightsError

from . import Stopped, TrainerError
from .backbones import BACKBONES, backbone
from .config import Config, resolve

CONFIGS = Path(__file__).parent / "configs"
LORA_ONLY = ("time", "rank", "alpha", "rslora", "dropout", "targets", "base_time", "quantize", "block_swap")


def main(mode: str, argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 diverged or out of memory, 2 bad input, 130 interrupted (and saved)."""
    argv = sys.argv[1:] if argv is None else argv
    given = vars(parser(mode, asked_model(argv), {"-h", "--help"} & set(argv)).parse_args(argv))
    dry_run, cards, file = given.pop("dry_run", False), given.pop("plan", None), given.pop("config", None)
    try:
        config = resolve(mode, (read_file(file, mode) if file else {}) | given)
        if dry_run:
            print(config.model_dump_json(indent=2))
        elif cards is not None:
            from .plan import sizes
            from .plan import table as plan

            print(plan.table(config.model, sizes.size(config.model), plan.setup_of(config, cards)))
        else:
            from .runs.run import run  # only now: diffusers and peft take seconds to import

            run(config)
    except (TrainerError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "code", 2)
    except torch.cuda.OutOfMemoryError as error:
        print(
            f"error: out of memory ({str(error).splitlines()[0]})\n--plan says what needs how much, and flags that fit.",
            file=sys.stderr,
        )
        return 1
    except Stopped as stopped:
        print(f"{stopped}\nTo go on, run the same command again.", file=sys.stderr)
        return 130
    return 0


def asked_model(argv: list[str]) -> str:
    """The model whose recipe --help shows as the defaults."""
    p = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    p.add_argument("--model")
    p.add_argument("--config")
    asked = p.parse_known_args(argv)[0]
    named = CONFIGS / f"{asked.config}.yaml"
    ours = yaml.safe_load(named.read_text())["model"] if named.exists() else Config.model_fields["model"].default
    model = asked.model or ours
    return model if model in BACKBONES else ""


def parser(mode: str, model: str, help_wanted=True) -> argparse.ArgumentParser:
    """Options for every setting; what is not given stays absent, so that it overrides nothing."""
    p = argparse.ArgumentParser(
        prog=f"python -m trainer.{mode}",
        usage=f"python -m trainer.{mode} --model NAME [options]",
        description=f"Distil a flow model to 1-4 steps with TwinFlow: {'a LoRA' if mode == 'lora' else 'all weights'}."
        + (f" The values in brackets are those that apply to {model} when you give none." if model else ""),
        epilog=f"Try it now, on any CPU: python -m trainer.{mode} --model digits",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    p.add_argument(
        "--config", metavar="FILE", help="settings from a YAML or JSON file, under the names of these options; or one of ours: "
        + ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml"))),
    )  # fmt: skip
    p.add_argument("--dry-run", action="store_true", help="print the resolved configuration and exit")
    p.add_argument(
        "--plan",
        nargs="?",
        const=1,
        type=int,
        metavar="CARDS",
        help="print the memory it takes, on so many cards with FSDP, and exit",
    )
    shown = _Defaults(mode, model if help_wanted else "")
    groups: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        if name == "mode" or (mode == "full" and name in LORA_ONLY):
            continue
        title = field.json_schema_extra["group"]
        if title not in groups:
            groups[title] = p.add_argument_group(title)
        flag, help = "--" + name.replace("_", "-"), field.description.replace("%", "%%") + shown.of(name)
        if {name, title} & shown.unread:
            help = argparse.SUPPRESS
        if field.annotation is bool:
            groups[title].add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=help)
        elif get_origin(field.annotation) is Literal:
            groups[title].add_argument(flag, dest=name, choices=get_args(field.annotation), help=help)
        else:
            groups[title].add_argument(flag, dest=name, metavar=name.upper(), help=help)
    return p


class _Defaults:
    """The bracketed defaults; a backbone is asked for its own only where one is named, for it takes seconds to import."""

    def __init__(self, mode: str, model: str):
        self.recipe = backbone(model).recipe(mode) if model else {}
        self.unread = set(backbone(model).unread) if model else set()

    def of(self, name: str) -> str:
        value = self.recipe.get(name, Config.model_fields[name].default)
        if isinstance(value, dict):
            text = ",".join(f"{k}={v:g}" for k, v in value.items())
        elif isinstance(value, tuple):
            text = ",".join(f"{v:g}" for v in value)
        else:
            text = "" if value in (None, "") else str(value)
        return f" [{text}]".replace("%", "%%") if text else ""


def read_file(path: str, mode: str) -> dict:
    """Settings from a YAML (or JSON) file, or from one of ours by name.  Raises TrainerError."""
    own = CONFIGS / f"{path}.yaml"
    try:
        values = yaml.safe_load((own if own.exists() and not Path(path).exists() else Path(path)).read_text())
    except OSError as error:
        raise TrainerError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainerError(f"--config {path}: is not YAML or JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise TrainerError(f"--config {path}: holds {type(values).__name__}; expected settings, one `name: value` a line")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    if values.pop("mode", mode) != mode:
        raise TrainerError(
            f"--config {path}: is for the other command; expected python -m trainer.{'full' if mode == 'lora' else 'lora'}"
        )
    return values
