"""Train TwinFlow: `python -m trainer.lora --model digits` and `python -m trainer.full --model digits` (see --help)."""

import logging

from twinflow.plain_json import LONGEST, one_line

# On import these warn of kernels for GPUs that are not here, and of packages that nothing here needs.
for _name in (
    "torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer", "bitsandbytes",
    "transformers.utils.import_utils",
):  # fmt: skip
    logging.getLogger(_name).setLevel(logging.ERROR)


SEVERAL = 1000  # characters of an error that names several places, or holds options to paste


class TrainerError(Exception):
    """Bad input: one line that names the value, what was expected and what to do; or several, each an argument.

    The entry points exit with 2.  Each is cut in its middle to so many characters where a name or value makes it longer, and is
    without a line break or anything that a terminal obeys.
    """

    code = 2

    def __init__(self, *faults: object, most: int = LONGEST):
        super().__init__(*(one_line(str(fault), most) for fault in faults))

    def __str__(self) -> str:
        return "\nerror: ".join(map(str, self.args))


class Diverged(TrainerError):
    """Training broke down; nothing was wrong with the input's form."""

    code = 1


class Lost(TrainerError):
    """What was being written to is full, read-only or gone; nothing was wrong with the input."""

    code = 1


class Stopped(Exception):
    """The user asked to stop; what was trained is saved."""
