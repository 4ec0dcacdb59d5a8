"""Everything that can be known before work: one list of checks, each a small function; a run and --dry-run go through the same.

A check yields what it finds, or raises TrainerError; nothing is fetched, made, encoded or loaded, and all is said in one go.
"""

from collections.abc import Callable

from twinflow.weights import WeightsError

from ... import SEVERAL, TrainerError
from ...config.settings import Settings
from ...console import notice
from . import data, effects, environment, model, space
from .facts import Facts, Missing

CHECKS = (
    environment.machine, environment.packages, environment.launch, model.source, model.encoders, data.training_data,
    data.validation_data, data.prompts, data.resolution, effects.schedules, model.targets, model.init, model.block_swap,
    environment.libraries, space.cache_folder, space.on_disk, space.on_the_card, space.in_host_memory,
)  # fmt: skip


def check(settings: Settings, notify: Callable[[str], None] = notice, *, dry: bool = False) -> None:
    """Raises TrainerError with all that is found, a line each.  notify: is told what may be meant, or is yet missing."""
    facts, found = Facts(settings), list[str]()
    for own in CHECKS:
        try:
            for text in own(facts, notify) or ():
                if dry and isinstance(text, Missing):
                    notify(f"a run would end here: {text}")
                else:
                    found.append(text)
        except (TrainerError, WeightsError) as error:
            found.append(str(error))
        if found and own is environment.machine:  # all else is for another machine
            break
    if found := list(dict.fromkeys(found)):
        raise TrainerError(*found, most=SEVERAL)
