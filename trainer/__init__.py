"""Train TwinFlow: `python -m trainer.lora --model digits` and `python -m trainer.full --model digits` (see --help)."""


class TrainerError(Exception):
    """Bad input: one line that names the value, what was expected and what to do.  The entry points exit with 2."""
