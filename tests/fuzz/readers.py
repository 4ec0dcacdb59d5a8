"""Every reader of a file that somebody else may have written, with a small sound file for each."""

import json
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import gguf_file
import mutations
import torch
import torch.distributed.checkpoint as dcp
import yaml
from PIL import Image
from reader import Reader

from trainer.cli import read_file
from trainer.config.resolving import resolve
from trainer.config.saved import read_settings
from trainer.data import Cache, Encoder, image_files, parquet, prompts, tables
from trainer.data.cache import Caption, Shot
from trainer.data.digests import Digests
from trainer.data.report import Report
from trainer.data.row import ImageFile
from trainer.training import checkpoint, sharded
from twinflow.backbones import all_backbones
from twinflow.gguf_header import read_gguf
from twinflow.inspection import inspect
from twinflow.presets import SAMPLING
from twinflow.prompts import Prompt, load_prompts, save_prompts
from twinflow.weights import Provenance, load, read_header, save
from twinflow.words import Words, load_words, save_words


def as_json(data: bytes, rng) -> bytes:
    return mutations.text_of(mutations.structured(json.loads(data), rng), rng).encode("utf-8", "surrogatepass")


def as_lines(data: bytes, rng) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = as_json(lines[at], rng)
    return b"\n".join(lines)


def as_yaml(data: bytes, rng) -> bytes:
    if rng.random() < 0.2:
        return rng.choice([BOMB, *ODD])
    value = mutations.structured(yaml.safe_load(data), rng)
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        return as_json(json.dumps(yaml.safe_load(data)).encode(), rng)


def as_table(data: bytes, rng) -> bytes:
    rows = [line.split(",") for line in data.decode().split("\n")]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = str(rng.choice(mutations.VALUES))
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")


KINDS = "bool", "int", "float", "timestamp", "binary", "set", "python/object/apply:os.system"
ODD = [b"steps: 2001-99-99", b"? {a: 1}\n: 2", b"a: *b", *(f"lr: !!{kind} maybe".encode() for kind in KINDS)]
NINE = "".join(f"lr: &a{i} [" + f"*a{i - 1}, " * 9 + "]\n" for i in range(1, 9))
BOMB = f"name: &a0 x\n{NINE}steps: *a8\n".encode()
KINDS_OF_IMAGES = "PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "TGA", "PPM", "ICO", "MPO", "DDS"
ROWS = [
    dict(image="a.png", text="a cat", repeats=2), dict(target="b.png", source=["c.png", "d.png"], instruction="blue"),
    dict(image="e.png", texts=["a", "b"], control_path_1="f.png"),
]  # fmt: skip
PROMPTS = [
    dict(prompt="a cat", width=512, height=768, seed=3, steps=[1, 2], guidance=4.5), dict(prompt="a dog", seed=1),
]  # fmt: skip
SETTINGS = dict(model="digits", rank=4, steps=100, lr=1e-3, betas=[0.9, 0.99], roles=dict(one_step=1, fake=1), target="guide")


def weights(path: Path) -> None:
    about = Provenance("two", "qwen-image", 4, tuple(SAMPLING.values()), 100, "abc", init="x").to_metadata()
    time = "time_text_embed.timestep_embedder_2.linear_1"
    names = {f"{time}.weight": torch.zeros(8, 4), f"{time}.bias": torch.zeros(8)}
    for end, shape in {"lora_A": (2, 4), "lora_B": (4, 2)}.items():
        names[f"diffusion_model.transformer_blocks.0.attn.to_q.{end}.weight"] = torch.zeros(shape)
    save(names, path, about)


def state() -> checkpoint.State:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([dict(params=[p], lr=1e-3, peak=1e-3, kind="adamw")])
    p.grad = torch.ones(3)
    optimizer.step()
    return checkpoint.State({"p": p}, [optimizer], {})


def saved_state(path: Path) -> None:
    checkpoint.write(state(), path.parent / "checkpoints", "m", 1)
    checkpoint.newest(path.parent / "checkpoints").replace(path)


def restored(path: Path) -> None:
    folder = path.parent / "checkpoints"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / "step-00000000.safetensors").write_bytes(path.read_bytes())
    checkpoint.restore(state(), folder, "m", lambda line: None)


def run_config(path: Path) -> None:
    path.with_name("config.json").write_bytes(path.read_bytes())
    read_settings(path.parent)


def provenance(path: Path) -> None:
    found = Provenance.from_metadata(read_header(path).metadata)
    for sampling in found.sampler if found else ():
        assert sampling.times().isfinite().all()


def layouts(path: Path) -> None:
    tensors = load(path)
    for known in all_backbones().values():
        known.layout.from_file(dict(tensors))


def table(path: Path) -> None:
    try:
        list(tables.read(path, Report()))
    except UnicodeDecodeError as error:  # as it says; who asks for rows says so on a line
        raise ValueError(str(error)) from None


def rows_of_parquet(path: Path) -> None:
    parquet._open.cache_clear()  # it keeps files open by path
    for row in tables.read(path, Report()):
        if row.target is not None:
            row.target.read()


def parquet_file(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet as writer

    image = [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": None}]
    writer.write_table(pyarrow.table({"text": ["a", "b"], "image": image, "repeats": [1, 2]}), path)


def cached(path: Path, kind: str) -> None:
    """The file where the cache looks for it."""
    cache = Cache(path.parent, Encoder("t", list), Encoder("i", list))  # which encodes nothing here
    shot = Shot(ImageFile(path), "digest", (64, 64))
    own = cache.latents_path(shot) if kind == "latents" else cache.caption_path(Caption("a"))
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(path.read_bytes())
    cache.latents(shot) if kind == "latents" else cache.prompt(Caption("a"))


def shards(path: Path) -> None:
    """Their table of contents; the rest of the folder lies beside it."""
    folder = path.parent / "sharded"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True)
        dcp.save({"tensors.a": torch.ones(3, 2), "tensors.b": torch.ones(4)}, storage_writer=writer, no_dist=True)
    (folder / sharded.ABOUT).write_text('{"step": 1, "skipped": 0, "seconds": 1.5, "model": "m"}')
    path.write_bytes((folder / ".metadata").read_bytes())


def restored_shards(path: Path) -> None:
    folder = path.parent / "sharded"
    (folder / ".metadata").write_bytes(path.read_bytes())
    found = sharded.Folder(folder)
    wanted = {"tensors.a": torch.zeros(3, 2), "tensors.b": torch.zeros(4)}
    if all(found.shapes.get(name) == tuple(own.shape) for name, own in wanted.items()):
        found.read(wanted)


def as_pickle(data: bytes, rng) -> bytes:
    """One to three places of the records within changed, lost or doubled."""
    found = pickle.loads(data)
    for _ in range(rng.randint(1, 3)):
        holders = [own for own in inside(found) if len(own)]
        holder = rng.choice(holders)
        key = rng.choice(list(holder))
        act = rng.randrange(4)
        if act == 0:
            del holder[key]
        elif act == 1:
            holder[rng.choice(["x", "", 5, mutations.LONG])] = holder[key]
        else:
            holder[key] = rng.choice([*mutations.VALUES, torch.Size([2**40]), torch.Size([-1, 3]), rng.choice(holders)])
    try:
        return pickle.dumps(found)
    except (RuntimeError, TypeError, AttributeError):  # what torch's records cannot be pickled with
        return mutations.bytewise(data, rng)


def inside(value, depth: int = 8) -> list[dict]:
    """Every dictionary in a value, the attributes of its records among them."""
    if depth == 0:
        return []
    own = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    items = [*own.values(), *(value if isinstance(value, (list, tuple)) else ())]
    return [own, *(found for item in items for found in inside(item, depth - 1))]


@cache
def picture(kind: str) -> bytes:
    image, into, exif = Image.effect_mandelbrot((24, 20), (-2, -1.5, 1, 1.5), 50), BytesIO(), Image.Exif()
    exif[image_files.ORIENTATION] = 6
    more = {"TIFF": dict(compression="tiff_lzw"), "WEBP": dict(lossless=True)}.get(kind, {})
    image.convert("RGBA" if kind == "ICO" else "RGB").save(into, kind, exif=exif, **more)
    return into.getvalue()


def of_any_kind(data: bytes, rng) -> bytes:
    return mutations.bytewise(picture(rng.choice(KINDS_OF_IMAGES)), rng)


def seen(path: Path) -> None:
    data = path.read_bytes()
    image_files.remarks(data)
    image_files.size(data)
    assert image_files.pixels(data, (16, 32)).isfinite().all()


def text(value: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(value, "utf-8")


SAFE = mutations.safetensors
READERS = {
    "weights header": Reader(".safetensors", weights, read_header, SAFE),
    "weights": Reader(".safetensors", weights, load, SAFE),
    "provenance": Reader(".safetensors", weights, provenance, SAFE),
    "layouts": Reader(".safetensors", weights, layouts, SAFE),
    "inspect": Reader(".safetensors", weights, inspect, SAFE),
    "inspect gguf": Reader(".gguf", gguf_file.write, inspect),
    "gguf": Reader(".gguf", gguf_file.write, read_gguf),
    "prompts": Reader(
        ".safetensors", lambda p: save_prompts(p, {"a": Prompt("a", torch.zeros(2, 3), torch.zeros(4))}), load_prompts, SAFE
    ),
    "words": Reader(".safetensors", lambda p: save_words(p, Words(("", "a"), torch.zeros(2, 3))), load_words, SAFE),
    "checkpoint": Reader(".safetensors", saved_state, restored, SAFE),
    "config yaml": Reader(
        ".yaml", text(yaml.safe_dump(SETTINGS)),
        lambda p: resolve("lora", read_file(str(p), "lora"), notify=lambda line: None), as_yaml,
    ),
    "config of a run": Reader(
        ".json", lambda p: p.write_text(json.dumps(resolve("lora", SETTINGS, notify=lambda line: None).flat())),
        run_config, as_json,
    ),
    "rows jsonl": Reader(".jsonl", text("\n".join(map(json.dumps, ROWS))), table, as_lines),
    "rows json": Reader(".json", text(json.dumps(ROWS)), table, as_json),
    "rows csv": Reader(".csv", text("image,text,repeats\na.png,a cat,2\nb.png,a dog,1"), table, as_table),
    "prompt table": Reader(
        ".json", text(json.dumps(PROMPTS)), lambda p: prompts.read(str(p), Report(), edit=False, multiple=16), as_json
    ),
    "prompt lines": Reader(
        ".txt", text("a cat --w 512 --h 512 --d 3 --s 2\n# no\na dog"),
        lambda p: prompts.read(str(p), Report(), edit=False, multiple=16),
    ),
    "rows parquet": Reader(".parquet", parquet_file, rows_of_parquet),
    "cached latents": Reader(
        ".safetensors", lambda p: save({"latents": torch.zeros(4, 8, 8)}, p), lambda p: cached(p, "latents"), SAFE
    ),
    "cached caption": Reader(
        ".safetensors", lambda p: save_prompts(p, {"prompt": Prompt("a", torch.zeros(2, 3), torch.zeros(4))}),
        lambda p: cached(p, "caption"), SAFE,
    ),
    "sharded checkpoint": Reader(".metadata", shards, restored_shards, as_pickle, share=0.2),
    "images": Reader(".png", lambda path: path.write_bytes(picture("PNG")), seen, of_any_kind),
    "digests": Reader(
        ".json", text('{"a": {"stamp": [1, 2], "digest": "x", "size": [3, 4], "remarks": []}}'), Digests, as_json
    ),
}  # fmt: skip
