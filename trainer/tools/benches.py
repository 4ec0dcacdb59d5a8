"""Prompts of benchmarks as they are published, and the folders that their scorers read.

GenEval (Ghosh et al. 2023; github.com/djghosh13/geneval): evaluation/evaluate_images.py reads 00000/metadata.jsonl, the line of
evaluation_metadata.jsonl of that number, and every 00000/samples/<digits>.png.
GenEval 2 (Kamath et al. 2025; github.com/facebookresearch/GenEval2): evaluation.py reads geneval2_data.jsonl and a JSON object
from twinflow.plain_json import loads
from each prompt to the path of its one image.
DPG-Bench (Hu et al. 2024, ELLA; github.com/TencentQQGYLab/ELLA): dpg_bench/compute_dpg_bench.py reads a folder with nothing but
one image a prompt, named as the prompt's file in dpg_bench/prompts, cut into squares of --resolution: the first --pic-num of
top left, top right, bottom left, bottom right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from twinflow.atomic import write_atomically, write_json, write_text
from twinflow.plain_json import loads

from .. import TrainerError, shell
from ..data import texts
from ..runs.run import link


@dataclass(frozen=True)
class Case:
    """A prompt.  name: of its file.  line: as it stands in the benchmark."""

    name: str
    text: str
    line: str = ""


@dataclass(frozen=True)
class Bench:
    """each: images a prompt, usually and at most.  write: cases and their images to a folder; returns how to score it."""

    title: str
    each: tuple[int, int]
    read: Callable[[Path], list[Case]]
    write: Callable[[Path, list[Case], list[list[Path]]], str]


def of_lines(path: Path, *needed: str) -> list[Case]:
    """Of JSON objects, one a line, each with a prompt and the fields that the scorer reads.  Raises TrainerError."""
    cases = []
    for number, line in enumerate(read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value: Any = loads(line)
        except ValueError as error:
            raise TrainerError(
                f"{path}:{number}: is not JSON ({error}); expected an object with prompt, {', '.join(needed)}"
            ) from None
        lacks = [name for name in ("prompt", *needed) if not isinstance(value, dict) or not value.get(name)]
        if lacks or not isinstance(value["prompt"], str):
            raise TrainerError(
                f"{path}:{number}: has no {lacks[0] if lacks else 'prompt that is a text'}; expected the published file"
            )
        cases.append(Case(f"{len(cases):05d}", value["prompt"], line.strip()))
    return filled(path, cases)


def of_files(path: Path) -> list[Case]:
    """Of a folder with a text file a prompt.  Raises TrainerError."""
    if not path.is_dir():
        raise TrainerError(f"--bench dpg {path}: is no folder; expected dpg_bench/prompts, with a .txt for each prompt")
    return filled(path, [Case(file.stem, read(file).strip()) for file in sorted(path.glob("*.txt"))])


def distinct(path: Path) -> list[Case]:
    cases = of_lines(path, "vqa_list")
    if len({case.text for case in cases}) < len(cases):
        raise TrainerError(
            f"--bench geneval2 {path}: has a prompt twice; expected the published file, whose scorer finds images by it"
        )
    return cases


def read(path: Path) -> str:
    try:
        return texts.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainerError(f"--bench: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def filled(path: Path, cases: list[Case]) -> list[Case]:
    if empty := [case.name for case in cases if not case.text.strip()]:
        raise TrainerError(f"--bench: {path}: the prompt {empty[0]} is empty")
    if not cases:
        raise TrainerError(f"--bench: {path} holds no prompt; expected the benchmark's own, as published")
    return cases


def geneval(folder: Path, cases: list[Case], images: list[list[Path]]) -> str:
    for case, own in zip(cases, images):
        place = folder / case.name
        (place / "samples").mkdir(parents=True, exist_ok=True)
        write_text(case.line + "\n", place / "metadata.jsonl")
        for i, image in enumerate(own):
            write_atomically(place / "samples" / f"{i:04d}.png", lambda to, image=image: link(image, to))
    words = [str(folder.resolve()), "--outfile", "results.jsonl", "--model-path", "DETECTOR"]
    return shell.join(["python", "evaluation/evaluate_images.py", *words])


def geneval2(folder: Path, cases: list[Case], images: list[list[Path]]) -> str:
    """Absolute paths: the scorer opens them from wherever it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "image_paths.json"
    write_json({case.text: str(own[0].resolve()) for case, own in zip(cases, images)}, file)
    words = ["--benchmark_data", "geneval2_data.jsonl", "--image_filepath_data", str(file.resolve())]
    return shell.join(["python", "evaluation.py", *words, "--method", "soft_tifa_gm", "--output_file", "score_lists.json"])


def dpg(folder: Path, cases: list[Case], images: list[list[Path]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    side = 0
    for case, own in zip(cases, images):
        tiles = [Image.open(path).convert("RGB") for path in own]
        side = tiles[0].width
        sheet = Image.new("RGB", (side * min(2, len(tiles)), side * ((len(tiles) + 1) // 2)))
        for i, tile in enumerate(tiles):
            sheet.paste(tile, (side * (i % 2), side * (i // 2)))
        write_atomically(folder / f"{case.name}.png", lambda to, sheet=sheet: sheet.save(to, format="PNG"))
    return f"PIC_NUM={len(images[0])} " + shell.join(["bash", "dpg_bench/dist_eval.sh", str(folder.resolve()), str(side)])


BENCHES = {
    "geneval": Bench("GenEval", (4, 10000), lambda path: of_lines(path, "tag", "include"), geneval),
    "geneval2": Bench("GenEval 2", (1, 1), distinct, geneval2),
    "dpg": Bench("DPG-Bench", (4, 4), of_files, dpg),
}


def check(name: str, each: int, size: Sequence[int]) -> None:
    """Raises TrainerError for images that its scorer does not read.  size: (height, width)."""
    bench = BENCHES[name]
    if not 1 <= each <= bench.each[1]:
        raise TrainerError(
            f"--each {each}: {bench.title}'s scorer reads 1{f' to {bench.each[1]}' * (bench.each[1] > 1)} a prompt"
        )
    if name == "dpg" and size[0] != size[1]:
        raise TrainerError(
            f"--size {size[1]}x{size[0]}: {bench.title}'s scorer cuts out squares; expected one, such as 1024x1024"
        )
