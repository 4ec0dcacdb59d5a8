"""A pretend GPU: its tensors compute on the CPU, and like a GPU's they refuse to meet CPU tensors of one dimension or more.

    python tests/scale/pretend.py lora --model digits ...     (trainer.lora's options, on the device "pretend")

Built on PyTorch's hooks for backends written in Python, which are experimental: where they are gone, so is this.
"""

import sys
from pathlib import Path

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

MOVES = ("aten::copy_", "aten::_to_copy", "aten::_foreach_copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def get_rng_state(self, device=None):
        return torch.zeros(1)

    def set_rng_state(self, state, device=None):
        pass

    def manual_seed_all(self, seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def _is_in_bad_fork(self):
        return False


_setup_privateuseone_for_python_backend("pretend", backend_module=Backend())
DEVICE = torch.device("pretend:0")


class Pretend(torch.Tensor):
    """A tensor of the device; held: its numbers, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        about = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE)
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), **about)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Pretend(inner["held"])


def run(function, args, kwargs):
    """The function on the held numbers.  Raises RuntimeError where devices meet."""
    flat, spec = tree.tree_flatten((args, kwargs))
    here = any(isinstance(a, Pretend) for a in flat)
    strangers = [a for a in flat if isinstance(a, torch.Tensor) and not isinstance(a, Pretend) and a.ndim]
    name = function.name().split(".")[0]
    if here and strangers and name not in MOVES:
        raise RuntimeError(f"devices meet in {function}: the CPU's are {[tuple(a.shape) for a in strangers]}")
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type == DEVICE.type
    args_held, kwargs_held = tree.tree_unflatten([held(a) for a in flat], spec)
    with torch.no_grad():
        out = function(*args_held, **kwargs_held)
    if name.endswith("_") or any(r.alias_info is not None and r.alias_info.is_write for r in function._schema.returns):
        return None if isinstance(args[0], (list, tuple)) else args[0]
    return tree.tree_map(lambda t: Pretend(t) if here and type(t) is torch.Tensor else t, out)


def held(value):
    if isinstance(value, Pretend):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


class Factories(TorchDispatchMode):
    """New tensors of the device, before they are taken apart into steps that a wrapper cannot follow."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == DEVICE.type
        return run(function, args, kwargs) if ours else function(*args, **kwargs)


def patch() -> None:
    """What torch does in C++ alone."""
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda function, *args, **kwargs: run(function, args, kwargs), "PrivateUse1")
    Factories().__enter__()
    patch.library = library  # it is undone when nobody holds it
    to_list, make = torch.Tensor.tolist, torch.tensor
    torch.Tensor.tolist = lambda self: to_list(held(self))
    torch.tensor = lambda data, *, device=None, **options: make(data, **options).to(device or "cpu")
    torch.as_tensor = lambda data, dtype=None, device=None: (
        data.to(device or data.device, dtype or data.dtype)
        if isinstance(data, torch.Tensor)
        else torch.tensor(data, dtype=dtype, device=device)
    )


def main(mode: str, argv: list[str]) -> int:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from accelerate.state import AcceleratorState, PartialState

    import trainer.runs.run
    from trainer.cli import main as train
    from trainer.runs import digits, judge

    patch()
    shown, fit = digits.DigitsRun.shown, judge.train_classifier  # a hundredth of a GPU's speed: less is drawn and judged
    digits.DigitsRun.shown = lambda *args: shown(*args)[:2]
    judge.train_classifier = lambda *args, **options: fit(*args, **options | {"steps": 5})
    start = trainer.runs.run.start_accelerator

    def on_the_device(config, folder):
        accelerator = start(config, folder)
        for state in (PartialState, AcceleratorState):  # the second copies the first whenever it likes
            state._shared_state["device"] = DEVICE
        assert accelerator.device == DEVICE
        return accelerator

    trainer.runs.run.start_accelerator = on_the_device
    return train(mode, argv)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
