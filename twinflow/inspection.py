"""What a file or a folder is, and what will become of it in ComfyUI, in our nodes and in diffusers: from headers alone.

What ComfyUI's own loaders do is that of its newest version here (tests/comfyui/test_node_inspect.py compares the two).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import lora_names
from .backbones import Backbone, Modules, all_backbones, find, is_second_embedder, of_modules
from .gguf_header import read_gguf
from .known_files import recognise
from .layouts import PREFIXES, bare
from .plain_json import loads
from .quantised import COMPANIONS, METADATA, OLD_MARK, foreign_format
from .weights import Provenance, WeightsError, read_header, shards

SHORT = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8 e5m2", "F64": "fp64"}
BESIDE = ("text_encoders.", "first_stage_model.", "cond_stage_model.", "conditioner.", "vae.")
FLAT = "lora_unet_", "lora_transformer_", "lycoris_"  # prefixes that underscores follow
NATIVE = "diffusion_model.", "lora_unet_"  # that ComfyUI's stock LoRA loader reads before its own modules' names
INDEX = "diffusion_pytorch_model.safetensors.index.json"
CONVERT = "python -m trainer.convert"


@dataclass
class Inspected:
    """verdict: what it is, in a line.  details: the rest, a line each."""

    verdict: str
    details: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "\n".join([self.verdict, *self.details])


@dataclass
class Headers:
    """files: the one, or all shards.  entries: name in the file -> (dtype, shape).  folder: whether a diffusers folder was
    named.  architecture: a GGUF's field, None of all else."""

    path: Path
    files: list[Path]
    entries: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]
    folder: bool = False
    architecture: str | None = None

    def __post_init__(self) -> None:
        own = {name for name in self.entries if name != OLD_MARK and name.rpartition(".")[2] not in COMPANIONS}
        whole = any(name.startswith(PREFIXES[0]) for name in own)
        self.beside = sorted(n for n in own if n.startswith(BESIDE) or (whole and not n.startswith(PREFIXES[0])))
        own -= {*self.beside}
        self.lora = sorted(filter(lora_names.is_part, own))
        self.second = sorted(name for name in own if is_second_embedder(name) and name not in {*self.lora})
        self.weights = sorted(own - {*self.lora, *self.second})
        self.bares = {bare(name) for name in own}
        self.provenance = Provenance.from_metadata(self.metadata)

    @property
    def records(self) -> list[Backbone]:
        """Whose it may be."""
        said = self.metadata.get("twinflow.base_model", "")
        named = [record for record in all_backbones().values() if record.name == said]
        found = find(self.bares)
        return named or ([found] if found else of_modules(self.lora) if self.lora else [])

    @property
    def prefixes(self) -> list[str]:
        before = {name[: len(name) - len(bare(name))] for name in self.weights}
        return sorted(before)


def inspect(path: str | Path) -> Inspected:
    """A safetensors or GGUF file (a shard stands for all), a diffusers folder, or the folder of a run.  Raises WeightsError."""
    path = Path(path)
    try:
        if path.is_dir() and (run := run_config(path)) is not None:
            return of_run(path, run)
        headers = opened(path)
        lines = [*held(headers), *quantisation(headers), *described(headers.metadata), *recognised(headers)]
        verdict = f"{path.name}: {what_is(headers)}"
    except WeightsError as error:
        text = str(error)
        raise WeightsError(text if str(path) in text else f"{path}: {text}") from None
    return Inspected(verdict, [*lines, *fates(headers)])


def opened(path: Path) -> Headers:
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        return of_files(path, listed(folder), folder=True)
    if path.suffix.lower() == ".gguf":
        found = read_gguf(path)
        texts = {name: value for name, value in found.fields.items() if isinstance(value, str)}
        return Headers(path, [path], found.tensors, texts, architecture=found.architecture)
    if not path.exists():
        raise WeightsError(f"{path}: is not there; expected a .safetensors or .gguf file, or a folder")
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise WeightsError(f"{path}: is a {path.suffix or 'nameless'} file; expected .safetensors or .gguf")
    return of_files(path, shards(path))


def listed(folder: Path) -> list[Path]:
    """The weights of a diffusers folder.  Raises WeightsError."""
    if (folder / INDEX).is_file():
        try:
            return [folder / name for name in sorted({*loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()})]
        except (ValueError, KeyError, AttributeError):
            raise WeightsError(f"{folder / INDEX}: is no list of shards; fetch the folder again") from None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(
            f"{folder}: holds no .safetensors file; expected a diffusers model, a transformer's or a run's folder"
        )
    return files


def of_files(path: Path, files: list[Path], folder: bool = False) -> Headers:
    entries, metadata = {}, {}
    for file in files:
        header = read_header(file)
        entries |= header.tensors
        metadata |= header.metadata
    return Headers(path, files, entries, metadata, folder)


def run_config(path: Path) -> dict | None:
    try:
        found = loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"mode", "model"} <= found.keys() else None


def of_run(path: Path, config: Mapping) -> Inspected:
    """The folder of a training: what it has, and its newest weights."""
    name = config.get("name") or path.name
    steps = sorted((path / "checkpoints").glob(f"{name}-step-*.safetensors"))
    states = sorted(p.name for p in (path / "checkpoints").glob("step-*"))
    final = path / f"{name}.safetensors"
    chosen = final if final.is_file() else steps[-1] if steps else None
    lines = [
        f"  finished weights: {final.name if final.is_file() else 'none yet'}",
        f"  weights by step: {', '.join(p.name for p in steps) or 'none'}",
        f"  training states: {', '.join(states) or 'none'} ({CONVERT} makes weights of one)",
    ]
    verdict = f"{path.name}: a run of trainer.{config['mode']}, model {config['model']}"
    if chosen is None:
        return Inspected(verdict, lines)
    inner = inspect(chosen)
    return Inspected(verdict, [*lines, inner.verdict, *inner.details])


def what_is(h: Headers) -> str:
    title = " or ".join(record.title for record in h.records)
    if "twinflow.training" in h.metadata:
        return f"a training state, not weights ({CONVERT} makes them of it)"
    if h.lora:
        kind = "a TwinFlow adapter (LoRA and second time embedder)" if h.second else "a LoRA"
        folded = ", trained with folded times" if h.provenance and h.provenance.time == "fold" else ""
        return f"{kind} of {title or 'a model that is not known here'}{folded}"
    if h.second and not find(h.bares):
        return f"a second time embedder alone, of {title or 'a model that is not told'}"
    if not h.records:
        return "nothing that is known here: no model of " + ", ".join(
            record.title for record in all_backbones().values() if not record.variant
        )
    folded = h.provenance is not None and h.provenance.time == "fold"
    plain = "a model with folded times" if folded else "a plain model"
    return f"{title}, {'a TwinFlow model, with a second time embedder' if h.second else plain}"


def held(h: Headers) -> list[str]:
    size = sum(file.stat().st_size for file in h.files)
    kinds: Counter[str] = Counter()
    for kind, shape in h.entries.values():
        kinds[SHORT.get(kind, kind)] += math.prod(shape)
    numbers = ", ".join(f"{kind} {count(n)}" for kind, n in kinds.most_common(4))
    files = f"{len(h.files)} files, " if len(h.files) > 1 else ""
    lines = [f"  holds: {files}{size / 1e9:.2f} GB, {len(h.entries)} tensors; numbers: {numbers}"]
    if h.weights and (record := next(iter(h.records), None)) and find(h.bares):
        native = record.layout.native in h.bares
        names = "ComfyUI's" if native else "diffusers'"
        if record.layout.native == record.layout.diffusers:
            names = "diffusers', which are ComfyUI's too"
        prefix = " and ".join(repr(p) for p in h.prefixes if p)
        lines.append(f"  names: {names}{f', behind {prefix}' if prefix else ''}")
    if h.second:
        lines.append(f"  second time embedder: {len(h.second)} tensors ({some(h.second)})")
    if h.lora:
        lines += lora_lines(h)
    if h.beside:
        lines.append(f"  also in the file: {len(h.beside)} tensors of a VAE or text encoders ({some(h.beside)})")
    if h.architecture is not None:
        lines.append(f"  GGUF, general.architecture: {h.architecture or 'none'}")
    return lines


def lora_lines(h: Headers) -> list[str]:
    downs = [name for name in h.lora if re.search(r"(lora_A|lora_down|lora\.down)\b", name) and h.entries[name][1]]
    ranks = Counter(h.entries[name][1][0] for name in downs)
    modules = sorted({lora_names.module_name(name) for name in h.lora})
    kinds = Counter(re.sub(r"\d+", "#", re.split(r"[._]\d+[._]", module, maxsplit=1)[-1]) for module in modules)
    told = [f"{rank} ({n} layers)" if len(ranks) > 1 else str(rank) for rank, n in ranks.most_common(4)]
    rank = ", ".join(told) or "none: no plain LoRA"
    alpha = "alpha in tensors" if any(name.endswith(".alpha") for name in h.lora) else "no alpha in tensors"
    where = "; ".join(f"{kind} x {n}" for kind, n in kinds.most_common(12))
    return [f"  LoRA: rank {rank}; {len(modules)} modules, {alpha}", f"  targets: {where}{' ...' if len(kinds) > 12 else ''}"]


def quantisation(h: Headers) -> list[str]:
    if foreign := foreign_format(h.entries, h.metadata):
        return [f"  quantised: as {foreign}, which neither our nodes nor our trainer read"]
    scales = [name for name in h.entries if name.endswith(("weight_scale", "scale_weight"))]
    packed = sum(kind not in (*SHORT, "I64", "I32", "I16", "I8", "BOOL", "U8") for kind, _ in h.entries.values())
    if h.architecture is not None:
        return [f"  quantised: {packed} of {len(h.entries)} tensors, by GGUF's types"] if packed else []
    form = "scaled_fp8" if OLD_MARK in {bare(n) for n in h.entries} else "metadata" if METADATA in h.metadata else "marks"
    return [f"  quantised: {len(scales)} layers with scales (ComfyUI's form, {form})"] if scales else []


def described(metadata: Mapping[str, str]) -> list[str]:
    shown = {name: text for name, text in metadata.items() if name not in ("format", METADATA, "twinflow.training")}
    lines = [f"  {name}: {text if len(text) <= 160 else text[:160] + '...'}" for name, text in sorted(shown.items())]
    return [*lines, *(["  no metadata: nothing says how it was trained"] if not shown else [])]


def recognised(h: Headers) -> list[str]:
    """What is known of the file by its name or keys, where it says nothing itself."""
    if not h.lora or h.provenance:
        return []
    known, fault = recognise(h.path, h.metadata, h.lora)
    return [f"  {line}" for line in [*(known.details() if known else []), *filter(None, [fault])]]


def fates(h: Headers) -> list[str]:
    """What each reader makes of it, and drops."""
    if "twinflow.training" in h.metadata or not (h.records or h.lora or h.second):
        return []
    readers = (lora_in_comfyui, lora_in_nodes, lora_in_diffusers) if h.lora else (in_comfyui, in_nodes, in_diffusers)
    names = ("ComfyUI's own loaders", "TwinFlow nodes", "diffusers")
    return [f"in {name}: {text}" for name, reader in zip(names, readers) for text in [reader(h)]]


def in_comfyui(h: Headers) -> str:
    record = next(iter(h.records), None)
    if record is None or not find(h.bares):
        return "nothing: a second time embedder is no model"
    if not record.gguf:
        return f"nothing: ComfyUI has no {record.title}"
    dropped = f"drop the second time embedder ({len(h.second)} keys: {some(h.second)})" if h.second else ""
    if h.architecture is not None:
        if h.architecture not in ("", record.gguf):
            wrong = f"its architecture field is {h.architecture!r}, not {record.gguf!r}"
            return f"ComfyUI-GGUF refuses it: {wrong} ({CONVERT} --to gguf)"
        return f"ComfyUI-GGUF loads it{f'; without this pack they {dropped}' if dropped else ''}"
    if len(h.files) > 1 or h.folder:
        return f"take one file, not {'a folder' if h.folder else 'shards'} ({CONVERT} makes one)"
    if odd := [prefix for prefix in h.prefixes if prefix not in ("", PREFIXES[0])]:
        return f"find no model behind the prefix {odd[0]!r} ({CONVERT} takes it off)"
    if record.variant and not any(record.models.values()):
        return "Load Diffusion Model loads it with this pack alone, which knows its size"
    fine = "Load Diffusion Model loads it"
    if record.layout.native not in h.bares:
        fine += ", renamed from diffusers' names; older versions leave random weights in it"
        if h.second and record.layout.native != record.layout.diffusers:
            return f"{fine}; they {dropped}, in these names mostly with this pack, too: take its loader, or {CONVERT}"
    return f"{fine}; without this pack they {dropped}, with it they keep it" if dropped else fine


def in_nodes(h: Headers) -> str:
    record = next(iter(h.records), None)
    if record is None or not find(h.bares):
        return "TwinFlow Model Loader takes it as the adapter of its base"
    if not record.gguf:
        return f"nothing: there are none for {record.title}"
    if other := next((title for key, title in record.others.items() if key in h.bares), None):
        return f"refused: it is {other}, which has no TwinFlow weights"
    if foreign_format(h.entries, h.metadata):
        return "refused, for its quantisation"
    if h.second:
        return "TwinFlow Model Loader loads it, two times; nothing is dropped"
    if h.provenance is not None:
        return "TwinFlow Model Loader loads it, folded times; nothing is dropped"
    return "TwinFlow Model Loader takes it as the base of an adapter; alone it is a plain model, for Load Diffusion Model"


def in_diffusers(h: Headers) -> str:
    if h.architecture is not None:
        return f"not as it is: {CONVERT} --to diffusers makes a folder of it"
    dropped = f"drops the second time embedder ({len(h.second)} keys), which twinflow.diffusers.load keeps" if h.second else ""
    if not find(h.bares):
        return "nothing takes a second time embedder alone"
    if h.folder:
        return f"from_pretrained loads it{f' and {dropped}' if dropped else ''}"
    if h.second:
        return "twinflow.diffusers.load(pipeline, FILE) loads it, nothing is dropped"
    return f"{CONVERT} --to diffusers makes a folder of it, which from_pretrained loads"


def lora_in_comfyui(h: Headers) -> str:
    kept, lost = stock(h)
    if all(not record.gguf for record in h.records) and h.records:
        return f"nothing: ComfyUI has no {h.records[0].title}"
    if not h.records:
        return "not told: the modules are of no model that is known here"
    told = f"the LoRA loader applies {len(kept)} of {len(kept) + len(lost)} modules"
    if lost:
        told += f" and drops {some(lost)} ({CONVERT} writes what it takes, TwinFlow LoRA Loader takes all)"
    if h.second:
        told += f"; it drops the second time embedder ({len(h.second)} keys), and with this pack it refuses the file"
    return told


def stock(h: Headers) -> tuple[list[str], list[str]]:
    """The modules that ComfyUI's stock LoRA loader applies, and that it drops, as the file names them."""
    known, kept, lost = [(record, Modules(record)) for record in h.records], [], []
    for name in sorted({lora_names.module_name(name) for name in h.lora}):
        (kept if any(applied(record, modules, name) for record, modules in known) else lost).append(name)
    return kept, lost


def applied(record: Backbone, modules: Modules, name: str) -> bool:
    for prefix in {*NATIVE, *record.stock}:
        if name.startswith(prefix):
            module, flat = name[len(prefix) :], prefix in FLAT
            if prefix in NATIVE and modules.sides(module, flat)[1]:
                return True
            if prefix in record.stock and modules.in_stock(module, flat):
                return True
    return False


def lora_in_nodes(h: Headers) -> str:
    if not h.records:
        return "refused: the modules are of no model that is known here"
    if all(not record.gguf for record in h.records):
        return f"nothing: there are none for {h.records[0].title}"
    lost = sorted({lora_names.module_name(name) for name in h.lora if lora_names.TEXT_ENCODER.search(name)})
    dropped = f"; dropped: {some(lost)} (of a text encoder)" if lost else "; nothing is dropped"
    where = "TwinFlow Model Loader takes it as the adapter of its base" if h.second else "TwinFlow LoRA Loader applies it"
    if h.provenance is None:
        where += ", times as the model has them"
    return where + dropped


def lora_in_diffusers(h: Headers) -> str:
    if h.second:
        return "load_lora_weights refuses it, for keys that are no LoRA; twinflow.diffusers.load(pipeline, FILE) takes it whole"
    if all(name.startswith("transformer.") for name in h.lora) and not any(name.endswith(".alpha") for name in h.lora):
        return "load_lora_weights applies it"
    return f"to be sure, {CONVERT} --to diffusers, or twinflow.diffusers.load(pipeline, FILE)"


def some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def count(n: int) -> str:
    return next((f"{n / unit:.2f} {name}" for unit, name in ((1e9, "billion"), (1e6, "million")) if n >= unit), str(n))
