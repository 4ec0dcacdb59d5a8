"""Train TwinFlow: `python -m trainer.lora --model digits` and `python -m trainer.full --model digits` (see --help)."""


class TrainerError(Exception):
    """Bad input: one line that names the value, what was expected and what to do.  The entry points exit with 2."""

    code = 2


class Diverged(TrainerError):
    """Training broke down; nothing was wrong with the input's form."""

    code = 1


class Stopped(Exception):
    """The user asked to stop; what was trained is saved."""
