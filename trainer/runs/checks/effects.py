"""Checks of settings that have no effect, or another than it seems."""

from collections.abc import Callable

from ...config.options import flag
from ...config.settings import OPTIONS
from .facts import Facts


def schedules(facts: Facts, notify: Callable) -> None:
    """What is given and has no effect, or another than it seems."""
    training, objective = facts.settings.training, facts.settings.objective
    if training.epochs is None and training.warmup >= training.steps:
        notify(
            f"--warmup {training.warmup} is not over within --steps {training.steps}: the learning rate never reaches its peak"
        )
    unread = {"beta": "time_normal", "logit-normal": "time_beta"}[objective.times]
    if tuple(getattr(objective, unread)) != OPTIONS[unread].default:
        notify(f"{flag(unread)} is not read: --times is {objective.times}")
