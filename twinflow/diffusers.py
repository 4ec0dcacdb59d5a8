"""TwinFlow files in a pipeline of diffusers, which is imported when it is used:

pipe = QwenImagePipeline.from_pretrained("Qwen/Qwen-Image", torch_dtype=torch.bfloat16)
twinflow.diffusers.load(pipe, "qwen-image-lora.safetensors")
image = pipe("a cat, at night", num_inference_steps=2).images[0]
"""

import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from .adapter import merge, read_adapter
from .backbones import Backbone, all_backbones, is_second_embedder
from .lora_names import is_part
from .presets import SAMPLING, Sampling
from .time_embedding import Pair
from .weights import Provenance, WeightsError, read_header, shards
from .weights import load as load_file

if TYPE_CHECKING:
    from .scheduler import TwinFlowScheduler

MARK = "_twinflow"  # on a transformer: what was loaded into it
GUIDANCE = ("guidance_scale", "true_cfg_scale")  # 0 is off, however a pipeline counts


class Loaded(NamedTuple):
    path: Path
    scheduler: Any
    hooks: tuple[Any, ...]


def __getattr__(name: str) -> Any:
    """TwinFlowScheduler; and the base by which diffusers knows, when it loads a pipeline, that a class here is a scheduler."""
    if name in ("TwinFlowScheduler", "SchedulerMixin"):
        from . import scheduler

        return getattr(scheduler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(pipe: Any, file: str | Path, *, sampling: Sequence[Sampling] | None = None) -> Any:
    """Make a pipeline of diffusers sample as the TwinFlow file does; returns the same pipeline.

    file: a checkpoint with all weights (one .safetensors, or the folder of its shards), which take the place of the
    transformer's, or an adapter or LoRA, which is merged into them.  sampling: settings in place of those that the file names,
    best first; a call without num_inference_steps takes the first.  Guidance is trained in, so a call without a scale has none.
    Raises ValueError for a pipeline that cannot take the file, and WeightsError, which is one, for a file that cannot be used.
    """
    known, path = backbone_of(pipe), Path(file).expanduser()
    model = pipe.transformer
    before: Loaded | None = getattr(model, MARK, None)
    if before and before.path == path.resolve() and sampling is None:  # another pipeline of the same parts
        return placed(pipe, before.scheduler)
    check_model(model)
    files = files_of(path)
    headers = [read_header(own) for own in files]
    names, metadata = [name for header in headers for name in header.tensors], headers[0].metadata
    provenance = Provenance.from_metadata(metadata)
    if provenance and provenance.base_model != known.name:
        raise WeightsError(
            f"{path}: is of {provenance.base_model}; expected a file of {known.name}, as {type(pipe).__name__} is"
        )
    if any(map(is_part, names)):
        if before:
            raise ValueError(
                f"the pipeline has {before.path.name} already; expected a new one (from_pretrained) for another adapter"
            )
        rule = adapted(known, model, path)
    elif any(map(is_second_embedder, names)):
        rule = replaced(known, model, files, path)
    else:
        raise WeightsError(
            f"{path}: has neither a second time embedder nor a LoRA ({', '.join(names[:2])}, ...); expected a TwinFlow file"
        )
    for hook in before.hooks if before else ():
        hook.remove()
    from .scheduler import TwinFlowScheduler

    saved = pipe.scheduler.sampling if isinstance(pipe.scheduler, TwinFlowScheduler) else ()  # what save_pretrained kept
    settings = sampling or (provenance and provenance.sampler) or saved or tuple(SAMPLING.values())
    scheduler = TwinFlowScheduler(sampling=[s.to_json() for s in settings], time=rule)
    setattr(model, MARK, Loaded(path.resolve(), scheduler, connected(known, model, scheduler)))
    return placed(pipe, scheduler)


def backbone_of(pipe: Any) -> Backbone:
    """Raises ValueError for a pipeline that no TwinFlow model has."""
    names = [cls.__name__ for cls in type(pipe).__mro__]
    for known in all_backbones().values():
        if known.pipelines and any(re.fullmatch(known.pipelines, name) for name in names):
            if isinstance(getattr(pipe, "transformer", None), nn.Module):
                return known
            raise ValueError(f"the {names[0]} has no transformer; expected it whole")
    titles = ", ".join(known.title for known in all_backbones().values() if known.pipelines)
    raise ValueError(f"pipe is a {names[0]}; expected diffusers' pipeline of {titles}")


def check_model(model: nn.Module) -> None:
    """Raises ValueError for weights that cannot be changed in place."""
    for name, p in model.named_parameters():
        if ".base_layer." in name:
            raise ValueError(
                "the transformer has LoRAs already; expected pipe.unload_lora_weights() first, and them afterwards"
            )
        if p.is_meta:
            raise ValueError(
                f"{name} is not here: the transformer is offloaded layer by layer; expected twinflow.diffusers.load first, and "
                "enable_sequential_cpu_offload behind it (enable_model_cpu_offload may come before)"
            )
        if type(p) is not nn.Parameter or type(p.data) is not Tensor or not p.is_floating_point() or p.element_size() < 2:
            raise ValueError(
                f"{name} is quantised ({type(p.data).__name__}, {p.dtype}), and cannot be changed; expected a bf16 pipeline, "
                "twinflow.diffusers.load, and then quantisation (torchao's quantize_, enable_layerwise_casting)"
            )


def files_of(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint; of a folder all of them, with transformer/ before what lies beside.

    Raises WeightsError.
    """
    if not path.is_dir():
        if path.suffix.lower() not in (".safetensors", ".sft"):
            raise WeightsError(
                f"{path}: is no .safetensors file or folder of them; expected one (trainer.generate reads GGUF, too)"
            )
        return shards(path)
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise WeightsError(f"{folder}: holds no .safetensors file; expected a checkpoint's")
    numbered = [match for file in files if (match := re.fullmatch(r".*-\d{5}-of-(\d{5})\.safetensors", file.name))]
    if len(files) > 1 and not (len(numbered) == len(files) == int(numbered[0][1])):
        raise WeightsError(f"{folder}: holds {len(files)} .safetensors files; expected one, or all shards of one checkpoint")
    return files


def adapted(known: Backbone, model: nn.Module, path: Path) -> str:
    """Merge an adapter or a LoRA; returns its time rule."""
    if path.is_dir():
        raise WeightsError(f"{path}: is the folder of an adapter; expected the file")
    return merge(known, model, read_adapter(path, known, model).tensors(), path)


def replaced(known: Backbone, model: nn.Module, files: list[Path], path: Path) -> str:
    """Put a checkpoint's weights in place of the model's; returns the time rule."""
    read: dict[str, Tensor] = {}
    for file in files:
        read |= load_file(file)
    tensors = {name: t for name, t in known.layout.from_file(read).items() if not name.startswith("__")}
    wanted: dict[str, Tensor] = model.state_dict()
    first, second = f"{known.time.embedder}.", f"{known.time.name}."
    wanted |= {second + name.removeprefix(first): t for name, t in wanted.items() if name.startswith(first)}
    check_fits(tensors, wanted, path, type(model).__name__)
    if not known.time.installed(model):
        known.time.install(model)
    model.load_state_dict({name: t for name, t in tensors.items() if name in model.state_dict()})
    return "two"


def check_fits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, cls: str) -> None:
    """Raises WeightsError unless the tensors are exactly those wanted, in their shapes."""
    if missing := [name for name in wanted if name not in tensors]:
        raise WeightsError(
            f"{path}: has no {missing[0]!r} ({len(missing)} such); expected a {cls} of this size: it is of another"
        )
    if other := [name for name in wanted if tensors[name].shape != wanted[name].shape]:
        found, size = tuple(tensors[other[0]].shape), tuple(wanted[other[0]].shape)
        raise WeightsError(f"{path}: {other[0]!r} is {found}; expected {size}: it is of another size")
    if more := [name for name in tensors if name not in wanted]:
        raise WeightsError(
            f"{path}: holds {more[0]!r} ({len(more)} such), unknown to {cls}; expected its weights in bf16, fp16 or fp32 "
            "(trainer.generate reads quantised files, too)"
        )


def connected(known: Backbone, model: nn.Module, scheduler: "TwinFlowScheduler") -> tuple[Any, ...]:
    """Hooks that tell the transformer t and r of the scheduler's step for the length of a forward."""
    embedder = known.time.of(model) if scheduler.time == "two" else None

    def before(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        assert x is not None
        pair = scheduler.ask(len(x), x[0].device)
        if embedder:
            embedder.expect(Pair(*pair))

    def after(*_: Any) -> None:
        if embedder:
            embedder.expect(None)

    return (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, always_call=True),
    )


def placed(pipe: Any, scheduler: "TwinFlowScheduler") -> Any:
    """Put the scheduler into the pipeline, whose class gets the defaults of a TwinFlow model."""
    pipe.register_modules(scheduler=scheduler)
    if "sample_sigmas" in pipe.config:  # of Qwen-Image-2.1-Turbo: would take the place of the file's steps
        pipe.register_to_config(sample_sigmas=None)
    cls = getattr(type(pipe), MARK, type(pipe))
    signature = inspect.signature(cls.__call__)
    usual: dict[str, Any] = {"num_inference_steps": scheduler.sampling[0].steps}
    usual |= {name: 0.0 for name in GUIDANCE if name in signature.parameters and signature.parameters[name].default}

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(self, *args, **kwargs).arguments
        return cls.__call__(self, *args, **{n: v for n, v in usual.items() if n not in given}, **kwargs)

    about = {"__call__": call, "__module__": cls.__module__, "__doc__": cls.__doc__, MARK: cls}
    pipe.__class__ = type(cls.__name__, (cls,), about)  # a pipeline's defaults stand in its class alone
    return pipe
