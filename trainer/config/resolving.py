"""From what the user gave to the settings of a run: the mode, the recipe of the backbone and the preset fill in the rest."""

from collections.abc import Callable, Mapping
from typing import Any

from twinflow.backbones import all_backbones, canonical
from twinflow.presets import OBJECTIVES

from .. import TrainerError, hints
from ..backbones import backbone
from ..console import notice
from .flat import current, from_flat
from .options import flag
from .settings import OPTIONS, Settings

BY_MODE: dict[str, dict[str, Any]] = {
    "lora": dict(lr=1e-4),
    # no LoRA's settings are read here; these are what the first version recorded, whose runs can thus be gone on with
    "full": dict(lr=1e-5, rank=8, targets="all", keep_weights=1),
    "base": {},
}
READ_BY_BASE = {  # beside the section "base", of which path is for the others
    "model", "mode", "out", "name", "seed", "threads", "save_dtype",
    "log_every", "sample_every", "validate_every", "save_every", "keep", "keep_weights", "tracker", "evaluate",
}  # fmt: skip

# What a preset sets beside the objective, each to the default here; and what bears on the method, but is the recipe's.
METHOD, BESIDE = ("guide", "base_time", "ema"), ("time", "weights_ema", "caption_dropout", "guidance_prompt")


def meaningless(mode: str, model: str) -> dict[str, str]:
    """The options that nothing reads, each with what does not read it; model: "" for whichever."""
    unread = set(backbone(model).unread) if model else set()
    if mode == "base":
        read = READ_BY_BASE | {name for name, o in OPTIONS.items() if o.section == "base"} - {"base"}
        return {name: "trainer.base, which trains a base" for name in OPTIONS if name not in read}
    return {name: f"trainer.{mode}, which trains all weights" for name, o in OPTIONS.items() if mode == "full" and o.lora} | {
        name: model for name, o in OPTIONS.items() if {name, o.section} & unread
    }


def resolve(mode: str, given: Mapping[str, Any], notify: Callable[[str], None] = notice) -> Settings:
    """The settings for what the user gave (file and command line merged), by option name.  Raises TrainerError.

    notify: is given a line on every setting that is not what the words that were given lead to expect.
    """
    given = current(given, notify)
    model = known_model(given.get("model", OPTIONS["model"].default))
    known, given = backbone(model), dict(given) | ({"model": model} if "model" in given else {})
    if wrong := {name: why for name, why in meaningless(mode, model).items() if name in given}:
        name, why = next(iter(wrong.items()))
        raise TrainerError(f"{flag(name)} means nothing to {why}; leave it out (see --help --model {model})")
    if given.get("epochs") is not None and "steps" in given:
        raise TrainerError(f"--steps {given['steps']} and --epochs {given['epochs']}: expected one of them")
    recipe = BY_MODE[mode] | known.recipe(mode)
    values = {"mode": mode, "name": f"{model}-{mode}"} | recipe
    if preset := given.get("preset"):
        values |= published(preset)
        for name in BESIDE:
            if name not in given and (own := recipe.get(name, OPTIONS[name].default)) != OPTIONS[name].default:
                notify(
                    f"--preset {preset}: {flag(name)} stays {own} (recipe of {model}); the method's is "
                    f"{OPTIONS[name].default}; set {flag(name)} to change it"
                )
    if "guidance" in given:
        values.pop("guidance_ratio", None)
    return from_flat(values | given)


def known_model(name: str) -> str:
    """The model's name, also for an alias or a repository of it.  Raises TrainerError."""
    name = canonical(name) if isinstance(name, str) else name
    hub = {own: repository for known in all_backbones().values() for own, repository in known.models.items()}
    if not isinstance(name, str) or name not in hub:
        raise TrainerError(hints.model(str(name), hub))
    return name


def published(preset: str) -> dict[str, Any]:
    """All that defines a published method.  Raises TrainerError."""
    if not isinstance(preset, str) or preset not in OBJECTIVES:
        raise TrainerError(f"preset is {preset!r}; expected one of {', '.join(OBJECTIVES)}")
    return {name: OPTIONS[name].default for name in METHOD} | dict(vars(OBJECTIVES[preset]))
