"""What the backbones made of diffusers' classes share: loading from any source, LoRA targets, names in files.

Prompts are encoded by the encode_prompt of diffusers' own pipeline, of which only the text encoders are loaded.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from twinflow.backbones import Backbone as Known
from twinflow.objective import Condition
from twinflow.presets import SAMPLING, Sampling
from twinflow.prompts import Prompt

from .. import SEVERAL, TrainerError
from . import encoder_sources, single_files, sources
from .images import ImageCodec
from .shifts import Shift
from .sizes import LONGEST, Size
from .sources import class_of

FRAME = 256  # bytes around a caption, at most: a template, start and end


class PipelineEncoder:
    """A model's text encoders; drop it to free their memory.  Made on the CPU; whoever moves `modules` sets `device`.

    Prompts are encoded one by one, so that an embedding never depends on its neighbours.
    """

    def __init__(self, pipeline: Any, encode: Callable[..., Prompt]):
        self.pipeline, self.encode, self.device = pipeline, encode, torch.device("cpu")
        parts = [pipeline] if isinstance(pipeline, nn.Module) else pipeline.components.values()
        self.modules = [part for part in parts if isinstance(part, nn.Module)]

    def to(self, device: Any) -> "PipelineEncoder":
        self.device = torch.device(device)
        for module in self.modules:
            module.to(self.device)
        return self

    @torch.no_grad()
    def encode_text(self, prompts: list[str], references: list[list[Tensor]] | None = None) -> list[Prompt]:
        """Embeddings without padding, on the CPU; "" is the unconditional prompt.

        references: for an edit model, the images (3, H, W) in [-1, 1] that belong to each prompt.
        """
        seen = [()] * len(prompts) if references is None else [(images,) for images in references]
        with quiet():  # of a text that is cut: the report counts these
            made = [self.encode(self.pipeline, text, self.device, *images) for text, images in zip(prompts, seen, strict=True)]
        return [Prompt(p.text, p.embeds.cpu(), None if p.pooled is None else p.pooled.cpu()) for p in made]


class DiffusersBackbone:
    """A Backbone (see the package) whose parts are diffusers' classes; a subclass names them.

    codec: between pixels and its latents.  sizes: of the published models, by name.  flags: settings without which the
    transformer is another: not every diffusers has them.  single: the parts that ComfyUI has as single files, and their kinds
    there (see single_files).  vae_config: settings that such an autoencoder does not tell.  markers: tensors of a file that say
    something of the model and are not its weights.
    presets: of LoRA targets, a regular expression of the full names of linear layers.  limits: how many tokens of a caption are
    read, by what reads them, where the pipeline cuts it.
    """

    core: ClassVar[Known]
    pixels, factor = 16, 8
    prefix = "diffusion_model."
    chunk = 1
    edits = False
    unread: tuple[str, ...] = ("base", "evaluate")
    license = ""
    sampling: tuple[Sampling, ...] = tuple(SAMPLING.values())
    transformer_class: ClassVar[str]
    pipeline_class: ClassVar[str]
    vae_class: ClassVar[str]
    codec: ClassVar[type[ImageCodec]] = ImageCodec
    text_parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    single: ClassVar[dict[str, str]] = {}
    vae_config: ClassVar[dict[str, Any]] = {}
    limits: ClassVar[dict[str, int]] = {}
    flags: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    presets: ClassVar[dict[str, str]]
    sizes: ClassVar[dict[str, Size]]
    shift: Shift | None = None

    def __init__(self, name: str):
        self.name = name
        self.repository = self.core.models[name]
        self.size = self.sizes[name]

    def recipe(self, mode: str) -> dict[str, Any]:
        return {}

    def velocity(self, model: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        raise NotImplementedError

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """The settings of the transformer's class, read off its tensors.  Raises KeyError for those of another model."""
        raise NotImplementedError

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        """One prompt through the pipeline's own encode_prompt, without padding that the transformer would not use.

        device: where the text encoders compute; their weights may rest elsewhere.
        """
        raise NotImplementedError

    def count_tokens(self, pipeline: Any, text: str) -> dict[str, int]:
        """As its limits count them, by their names; the pipeline may have tokenizers alone."""
        raise NotImplementedError

    def inputs(self, model: nn.Module, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        raise NotImplementedError

    def load(self, source: str = "", *, dtype: torch.dtype | None = None, distilled: Path | str | None = None) -> nn.Module:
        """The plain transformer, frozen, from a source (see sources; "" is the published model).  Raises TrainerError.

        distilled: a file or another source with all weights of a TwinFlow model, which stand in place of the source's.
        """
        if distilled:
            tensors, own = self.read(str(distilled), dtype)
            folder, source = own or sources.described(source), str(distilled)
        else:
            source = source or self.repository
            tensors, folder = self.read(source, dtype)
        tensors = self.from_file(tensors)
        config = sources.read_config(folder) if folder else self.settings_of(tensors, source)
        if (found := config.get("_class_name", self.transformer_class)) != self.transformer_class:
            raise TrainerError(f"model source {source!r}: is a {found}; expected a {self.transformer_class} ({self.name})")
        cls = class_of(self.transformer_class)
        for flag in self.flags:
            if config.get(flag) and flag not in inspect.signature(cls.__init__).parameters:
                raise TrainerError(
                    f"model source {source!r}: needs {flag}, which diffusers {diffusers.__version__} does not know; "
                    "expected a newer one (pip install -U diffusers)"
                )
        own = {name: t for name, t in tensors.items() if name not in self.markers}
        return sources.build(cls, config, own, dtype, source, self.core.time if distilled else None)

    def outline(self, source: str = "", *, fetch: bool = False, distilled: Path | str | None = None) -> nn.Module | None:
        """The transformer of a source without values, from the headers of its files; None where it is not here.

        fetch: from the hub, if need be.  distilled: as load has it.  Raises TrainerError for whatever load would refuse.
        """
        source = source or ("" if distilled else self.repository)
        try:
            with sources.headers_only(fetch=fetch):
                return self.load(source, distilled=distilled) if distilled else self.load(source)
        except sources.NotHere:
            return None
        except TrainerError:
            if sources.is_hub_id(source) and not fetch and not distilled:  # it may be here in part
                return None
            raise

    def marks(self, model: nn.Module) -> dict[str, Tensor]:
        """The markers that a file of this model has."""
        return {}

    def sized(self, model: nn.Module) -> Any:
        """This backbone, but of the size of a model that load or outline gave."""
        config: Any = getattr(model, "config", None)
        if config is None:
            return self
        names = inspect.signature(type(model).__init__).parameters
        own = copy(self)
        config = {name: value for name, value in dict(config).items() if name in names}
        own.size = replace(self.size, config=config, channels=self.channels(model))
        return own

    def longest(self, model: nn.Module) -> int:
        """Pixels of the longest side of an image that the model can take."""
        return LONGEST

    def read(self, source: str, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], Path | None]:
        """The transformer's tensors by their names in the files, and the folder with its config.json if there is one.

        dtype: of those that are quantised in the files.
        """
        return sources.transformer_tensors(sources.fetch(source, ("transformer",)), source, dtype)

    def settings_of(self, tensors: dict[str, Tensor], source: str) -> dict:
        try:
            return self.architecture({name: tuple(t.shape) for name, t in tensors.items()})
        except (KeyError, ValueError):
            held = single_files.other(tensors)
            raise TrainerError(f"model source {source!r}: is not a transformer of {self.name}; it holds {held}") from None

    def text_encoder(self, source: str = "", *, dtype: torch.dtype = torch.bfloat16, device: Any = "cpu") -> PipelineEncoder:
        """The text encoders of a source (see encoder_sources), or of the published model where it has none.

        Raises TrainerError.
        """
        files = encoder_sources.single(source, self.text_kinds)
        rest = tuple(part for part in self.text_parts if part not in files)
        try:
            root = self.parts_of(source, rest)
        except TrainerError as error:
            if not files:
                raise
            names = ", ".join(file.name for file in files.values())
            told = f"--encoders: {names} hold no {', '.join(rest)}, and {error}"
            raise TrainerError(told, most=SEVERAL) from None
        made = {part: single_files.build(self.single[part], file, dtype, sees=self.edits) for part, file in files.items()}
        pipeline = load_part(lambda: self.pipeline(root, rest, torch_dtype=dtype, **made), root, rest)
        return PipelineEncoder(pipeline, self.encode_prompt).to(device)

    def pipeline(self, root: Path, parts: tuple[str, ...], **given: Any) -> Any:
        """diffusers' own, of these parts of a folder and what is given, without all others."""
        cls = class_of(self.pipeline_class)
        absent = dict.fromkeys(name for name in cls._get_signature_keys(cls)[0] if name not in (*parts, *given))
        return cls.from_pretrained(root, **absent, **given)

    def token_counter(self, source: str = "") -> Callable[[str], dict[str, tuple[int, int]]]:
        """Its tokenizers are loaded for the first caption that may be too long: a token is a byte or more."""
        short = min(self.limits.values(), default=0) - FRAME

        @cache
        def tokenizers() -> Any:
            parts = tuple(part for part in self.text_parts if part.startswith("tokenizer"))
            root = self.parts_of(source, parts)
            return load_part(lambda: self.pipeline(root, parts), root, parts)

        def count(text: str) -> dict[str, tuple[int, int]]:
            if not self.limits or len(text.encode()) <= short:
                return {}
            return {name: (number, self.limits[name]) for name, number in self.count_tokens(tokenizers(), text).items()}

        return count

    def image_codec(self, source: str = "", *, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> ImageCodec:
        """The autoencoder of a source, or of the published model where it has none.  Raises TrainerError."""
        if file := self.vae_file(source):
            return self.codec(single_files.build(self.single["vae"], file, dtype, vae=self.vae_config).to(device))
        root, cls = self.parts_of(source, ("vae",)), class_of(self.vae_class)
        return self.codec(load_part(lambda: cls.from_pretrained(root / "vae", torch_dtype=dtype), root, ("vae",)).to(device))

    def check_encoders(self, asked: str) -> None:
        """Raises TrainerError for a place among --encoders that holds nothing for this model."""
        encoder_sources.check(self.name, asked, self.single, (*self.text_parts, "vae"), self.size.channels)

    @property
    def text_kinds(self) -> dict[str, str]:
        return {part: kind for part, kind in self.single.items() if part != "vae"}

    def vae_file(self, source: str) -> Path | None:
        return encoder_sources.single(source, {p: k for p, k in self.single.items() if p == "vae"}).get("vae")

    def parts_of(self, source: str, parts: tuple[str, ...]) -> Path:
        """The folder that holds these parts: of the source where it has them, else the published one."""
        return encoder_sources.root_of(source, parts, self.repository)

    def text_files(self, source: str) -> list[Path]:
        """The files that decide what the text encoders give."""
        files = encoder_sources.single(source, self.text_kinds)
        rest = tuple(part for part in self.text_parts if part not in files)
        root = self.parts_of(source, rest)
        return [*files.values(), *(path for part in rest for path in (root / part).rglob("*"))]

    def image_files(self, source: str) -> list[Path]:
        """The files that decide what the autoencoder gives."""
        file = self.vae_file(source)
        return [file] if file else list((self.parts_of(source, ("vae",)) / "vae").rglob("*"))

    def channels(self, model: Any) -> int:
        """Of the latents."""
        return model.config.in_channels

    def shape(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
        return self.channels(model), size[0] // self.factor, size[1] // self.factor

    def skeleton(self) -> nn.Module:
        return sources.with_exact(class_of(self.transformer_class)(**self.size.config))

    def codec_skeleton(self) -> ImageCodec:
        """The published autoencoder without weights, for the plan; on the device and in the dtype that are the default here."""
        return self.codec(class_of(self.vae_class)(**self.size.vae))

    def text(self, width: int, dtype: torch.dtype) -> Tensor:
        """A long prompt's embeddings (1, L, width), for the plan."""
        return torch.zeros(1, self.size.tokens, width, dtype=dtype)

    def latents(self, pixels: int, dtype: torch.dtype) -> Tensor:
        """Of one square image, for the plan."""
        return torch.zeros(1, self.size.channels, pixels // self.factor, pixels // self.factor, dtype=dtype)

    def tokens(self, model: Any, latents: Tensor) -> int:
        patch = model.config.get("patch_size") or 2
        return (latents.shape[2] // patch) * (latents.shape[3] // patch)

    def idle(self, model: nn.Module) -> list[str]:
        """Modules whose output nothing uses; they never get a gradient."""
        return []

    def lora_targets(self, model: nn.Module, targets: str) -> list[str]:
        """Linear layers by full name: "all", a preset such as "attention", or names by their ends, comma-separated.

        Never one of the second embedder, which is trained whole, nor an idle one; "all" without those that ComfyUI's stock
        LoRA loader would drop (the record's `unnamed`).  Raises TrainerError for a name that fits nothing.
        """
        second, idle = self.core.time.name + ".", tuple(name + "." for name in self.idle(model))
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        linear = [name for name in linear if not name.startswith(second) and not f"{name}.".startswith(idle or ("\0",))]
        if targets == "all":
            return [name for name in linear if not re.fullmatch(self.core.unnamed, name)]
        if targets in self.presets:
            return [name for name in linear if re.fullmatch(self.presets[targets], name)]
        ends = tuple(t.strip() for t in targets.split(",") if t.strip())
        expected = f"expected all, {', '.join(self.presets)}, or ends of names such as {', '.join(linear[-2:])}"
        if not ends:
            raise TrainerError(f"targets is empty; {expected}")
        for end in ends:
            if not any(f".{name}".endswith("." + end) for name in linear):
                raise TrainerError(f"targets: {end!r} names no linear layer; {expected}")
        return [name for name in linear if any(f".{name}".endswith("." + end) for end in ends)]

    def collate(self, prompts: list[Prompt]) -> Condition:
        """Embeds (B, L, D) padded with zeros to the longest, and mask (B, L)."""
        embeds = nn.utils.rnn.pad_sequence([p.embeds for p in prompts], batch_first=True)
        lengths = torch.tensor([len(p.embeds) for p in prompts])
        return embeds, torch.arange(embeds.shape[1]) < lengths[:, None]

    def to_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.core.layout.to_native(tensors)

    def from_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.core.layout.from_file(tensors)


def load_part(load: Callable[[], Any], root: Path, parts: tuple[str, ...]) -> Any:
    """load(), with one line for whatever is wrong with the files.  Raises TrainerError."""
    for part in parts:
        if not (root / part).is_dir():
            raise TrainerError(f"{root}: has no {part}/ folder; expected a diffusers model with {', '.join(parts)}")
    try:
        with quiet():
            return load()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise TrainerError(f"{root}: its {', '.join(parts)} cannot be loaded ({str(error).splitlines()[0]})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of parts a pipeline is loaded without, of texts that are cut, and of torch_dtype, 0.38's only name."""
    before = [(kind, kind.get_verbosity()) for kind in (diffusers_logging, transformers_logging)]
    for kind, _ in before:
        kind.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for kind, level in before:
            kind.set_verbosity(level)
