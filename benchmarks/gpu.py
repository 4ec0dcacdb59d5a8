"""What only a GPU shows: the real trainer's step at full published size, on random weights, beside the plan's memory.

    python benchmarks/gpu.py [--only PATTERN ...] [--minutes N]        measures, and writes docs/gpu.md
    python benchmarks/gpu.py --table FILE                              writes it of what was measured elsewhere

Each line is a process of its own, of which the next one loads while this one computes; what fails or has no time left says so
in its line.  Nothing is downloaded: weights, latents
and prompts are random numbers in the shapes of the published models (data from a cache would look the same to the card).
"""

import argparse
import fnmatch
import json
import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import bench  # noqa: E402

from trainer import TrainerError  # noqa: E402
from trainer.backbones import Backbone, backbone  # noqa: E402
from trainer.cli import CONFIGS, read_file  # noqa: E402
from trainer.config.resolving import resolve  # noqa: E402
from trainer.config.settings import Settings  # noqa: E402
from trainer.plan import memory as plans  # noqa: E402
from trainer.runs.run import averaged, shift_of  # noqa: E402
from trainer.training import optimizers  # noqa: E402
from trainer.training.loop import Job, Step  # noqa: E402
from trainer.weights.trainee import Trainee  # noqa: E402
from twinflow.atomic import write_text  # noqa: E402
from twinflow.ema import EMA  # noqa: E402
from twinflow.objective import Condition  # noqa: E402
from twinflow.prompts import Prompt  # noqa: E402

GIB = 2**30
MARK = "<!-- benchmarks/gpu.py writes what follows -->"
PAGE = HERE.parent / "docs" / "gpu.md"
SPAWNED = multiprocessing.get_context("spawn")  # a fork could not use CUDA, which some library starts on import
STEPS = 2  # the first warms up
POOL = 2**28  # random numbers, of which all weights are copies
ONE_BY_ONE = "z-image-lora-24gb"  # the configuration in which one thing at a time is changed
CHANGES: dict[str, dict[str, Any]] = {
    "int8": dict(quantize="int8"),
    "fp8": dict(quantize="fp8"),
    "fp8-cast": dict(quantize="fp8-cast"),
    "nf4": dict(quantize="nf4"),
    "10 blocks swapped": dict(block_swap=10),
    "adamw8bit": dict(optimizer="adamw8bit"),
    "compile": dict(compile=True),
    "attention native": dict(attention="native"),
    "attention flash (cuDNN)": dict(attention="_native_cudnn"),
    "without checkpointing": dict(checkpointing=False),
    "fp32": dict(dtype="fp32"),
}
COMFYUI = {  # line -> the script beside this one, and its options: blocks of Qwen-Image's width, at 1024 pixels
    "comfyui, a sampling step": ("sampler_overhead", "--width 3072 --layers 8 --side 128 --turns 3"),
    "comfyui, loading": ("load", ""),
}


@dataclass
class Rows:
    """A training.loop.Data of random latents, long prompts and, for edit models, images to edit."""

    known: Backbone
    model: Any
    pixels: int

    def condition(self, batch: int, generator: torch.Generator) -> Condition:
        size, config = self.known.size, self.model.config
        drawn = lambda *shape: torch.randn(*shape, generator=generator)
        pooled = config.get("pooled_projection_dim")
        made = [
            Prompt("", drawn(size.tokens, plans.text_width(self.model)), drawn(pooled) if pooled else None)
            for _ in range(batch)
        ]
        shape = self.known.shape(self.model, (self.pixels, self.pixels))
        return (*self.known.collate(made), *(drawn(batch, *shape) for _ in range(size.references)))

    def batch_at(self, index: int, batch: int, seed: int) -> tuple[Tensor, Condition, Condition]:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(batch, *self.known.shape(self.model, (self.pixels, self.pixels)), generator=generator)
        return x, self.condition(batch, generator), self.condition(batch, generator)


def configurations() -> dict[str, Settings]:
    """Those that come with the trainer and are for one card, and one of them with one thing changed at a time."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        if "8x80gb" not in path.stem:
            found[path.stem] = settings_of(path.stem)
    return found | {f"{ONE_BY_ONE}, {name}": settings_of(ONE_BY_ONE, **own) for name, own in CHANGES.items()}


def settings_of(config: str, **own: Any) -> Settings:
    mode = "full" if "mode: full" in (CONFIGS / f"{config}.yaml").read_text() else "lora"
    return resolve(mode, read_file(config, mode) | own, notify=lambda line: None)


def loaded(known: Backbone, settings: Settings) -> Any:
    """The plain transformer in host memory, as the trainer loads it, but of random numbers."""
    pool = torch.randn(POOL) * 0.02
    dtype = settings.torch_dtype if settings.mode == "lora" else torch.float32
    pool = pool.to(dtype)

    def random(shape: torch.Size) -> Tensor:
        count = shape.numel()
        return pool.repeat(-(-count // POOL))[:count].view(shape) if count > POOL else pool[:count].clone().view(shape)

    with torch.device("meta"):
        outlines = known.skeleton().state_dict()
    own: Any = copy(known)  # load() then does all that it does with a file's tensors
    own.read = lambda source, dtype=None: ({name: random(t.shape) for name, t in outlines.items()}, None)
    own.settings_of = lambda tensors, source: dict(known.size.config)
    return own.load("random numbers", dtype=dtype if settings.mode == "lora" else None)


def measure(
    known: Backbone, settings: Settings, *, pixels: int = 0, steps: int = STEPS, turn: AbstractContextManager | None = None
) -> dict[str, Any]:
    """Seconds and memory (GiB) of steps of the trainer.  pixels: other than the settings' resolution, as tests want it.

    turn: held while the device is used.
    """
    accelerator = Accelerator(mixed_precision="no")
    device, cuda = accelerator.device, accelerator.device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    held = (lambda: torch.cuda.memory_allocated() / GIB) if cuda else lambda: 0.0
    began = time.perf_counter()
    model = loaded(known, settings)
    trainee = Trainee(known, model, settings)
    training, rows = settings.training, Rows(known, model, pixels or settings.data.resolution)
    decays = {"teacher": training.ema, "weights": training.weights_ema}
    job = Job(
        "distil", trainee.network, trainee.tensors, optimizers.groups_of(trainee.network, trainee.tensors, training), rows,
        settings.objective, training,
        averages={key: decay for key, decay in decays.items() if decay},
        teacher=lambda averages: averaged(trainee, averages),
        guide=lambda averages: trainee.base() if settings.guidance.guide == "base" else None,
        shift=shift_of(settings, known, model),
    )  # fmt: skip
    with turn or nullcontext():
        built = optimizers.build(job.groups, training)
        network, *built = accelerator.prepare(job.network, *built)
        averages = {key: EMA(job.tensors.values(), decay) for key, decay in job.averages.items()}
        step = Step(job, network, accelerator, averages, 0)
        wait()
        row: dict[str, Any] = {"loading_s": time.perf_counter() - began, "start": held()}
        seconds = []
        for i in range(steps):
            if cuda and i:
                row["resident"] = held()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            terms, norm = step(i)
            for optimizer in built:
                optimizer.step()
            for key, average in averages.items():
                if key != "teacher":
                    average.update()
            for optimizer in built:
                optimizer.zero_grad(set_to_none=True)
            wait()
            seconds.append(time.perf_counter() - began)
        step.close()
        row |= {
            "first_s": seconds[0],
            "step_s": sum(seconds[1:]) / (steps - 1),
            "rows": job.rows,
            "loss": terms["loss"],
            "norm": norm,
        }
        if cuda:
            row |= {"peak": torch.cuda.max_memory_allocated() / GIB, "reserved": torch.cuda.max_memory_reserved() / GIB}
            row["device"] = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
        x, cond, _ = rows.batch_at(0, 1, 0)
        x, cond, t = x.to(device), tuple(c.to(device) for c in cond), torch.full((1,), 0.7, device=device)
        with torch.no_grad():
            for _ in range(3):
                wait()
                began = time.perf_counter()
                trainee.network(x, t, t * 0, cond)
                wait()
                row["evaluation_s"] = time.perf_counter() - began
    if not pixels:
        made = plans.plan(known, settings)
        short = sum(made.items.get(name, 0.0) for name in ("activations", "gradients"))
        row |= {"plan": made.total / GIB, "plan_resident": (made.total - short - plans.RESERVE) / GIB, "plan_step": short / GIB}
        row["plan_reserve"] = plans.RESERVE / GIB
    return row


def goldens() -> dict[str, Any]:
    """How far the recorded forwards of the paper's code are from ours on this device: fp32 by the largest, bf16 by the rms."""
    sys.path[:0] = [str(HERE.parent / "tests" / "goldens")]
    from test_backbones_replay import BACKBONES, Recording

    device = Accelerator().device
    row = {}
    for file in BACKBONES:
        own = Recording(HERE.parent / "tests" / "goldens" / "data", file)
        found: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for tag, case in own.index["combos"].items():
            kind = "bf16" if tag.startswith("bf16") else "fp32"
            model = (own.plain if case["lora"] else own.bf16 if kind == "bf16" else own.two).to(device)
            t, r = (torch.tensor(case[key], device=device) for key in ("t", "tt"))
            cond = tuple(c.to(device) for c in own.cond(ragged=tag.startswith("ragged")))
            out = own.velocity(model, own.tensors["x"].to(device), t, r, cond, "fold" if case["lora"] else "two").cpu()
            want = own.tensors[f"{tag}/out"].float()
            gap = (out - want).abs()
            far = gap.square().mean().sqrt() / want.square().mean().sqrt() if kind == "bf16" else gap.max()
            found[kind].append(far.item())
        row |= {f"{own.name} {kind}": [max(values), len(values)] for kind, values in found.items() if values}
    return row


def child(settings: Settings | None, turn: Any, pipe: Any) -> None:
    try:
        pipe.send(goldens() if settings is None else measure(backbone(settings.model), settings, turn=turn))
    except Exception as error:  # of any library, to be read in its line
        own = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
        pipe.send({"failed": " ".join(own.split())[:300]})


def alone(settings: Settings | None, turn: Any, ends: float) -> dict[str, Any]:
    """One line, in a process of its own."""
    if (seconds := ends - time.perf_counter()) <= 0:
        return {"failed": "not run: no time left"}
    here, there = SPAWNED.Pipe()
    process = SPAWNED.Process(target=child, args=(settings, turn, there))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else {"failed": "not run to its end: no time left"}
    except EOFError:
        return {"failed": "the process was killed"}
    finally:
        process.kill()
        process.join()


def in_comfyui(line: str, turn: AbstractContextManager, ends: float) -> dict[str, Any]:
    """What our nodes take beside core's, in a ComfyUI that is there (see bench)."""
    with turn:
        if time.perf_counter() >= ends:
            return {"failed": "not run: no time left"}
        found = bench.measured(*COMFYUI[line])
    return {"failed": found} if isinstance(found, str) else {"ratios": {row.measure: [row.value, row.noise] for row in found}}


def page(rows: dict[str, dict[str, Any]]) -> str:
    devices = sorted({row["device"] for row in rows.values() if "device" in row})
    number = lambda row, key, digits=1: f"{row[key]:.{digits}f}" if key in row else ""
    lines = [
        "| configuration | rows a step | s a step | GiB at its highest | plan | kept between steps | plan | in a step | plan "
        "| s an evaluation | s to load and set up |",
        "|---" * 11 + "|",
    ]
    others = [name for name in rows if name not in {"goldens", *COMFYUI}]
    for name in dict.fromkeys([*configurations(), *others]):
        row = rows.get(name, {"failed": "not run"})
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} |" + " |" * 9)
        elif "step_s" in row:
            planned = row["plan"] - row["plan_reserve"] if "plan" in row else None
            inside = f"{row['peak'] - row['resident']:.1f}" if "peak" in row else ""
            cells = [name, str(row["rows"]), number(row, "step_s", 2), number(row, "peak"), f"{planned:.1f}" if planned else ""]
            cells += [number(row, "resident"), number(row, "plan_resident"), inside, number(row, "plan_step")]
            cells += [number(row, "evaluation_s", 3), number(row, "loading_s", 0)]
            lines.append("| " + " | ".join(cells) + " |")
    checked = [f"| {name} | {far:.2e} | {n} |" for name, (far, n) in rows.get("goldens", {}).items() if name != "failed"]
    told = ["| forwards of the paper's code | furthest from ours | recordings |", "|---|---|---|", *checked] if checked else []
    beside = ["| in ComfyUI, by core's own | here | noise |", "|---|---|---|"]
    for name in COMFYUI:
        row = rows.get(name, {"failed": "not run"})
        beside += [f"| {name} | {row['failed']} | |"] if "failed" in row else []
        beside += [f"| {measure} | {ratio:.3f} | {noise:.3f} |" for measure, (ratio, noise) in row.get("ratios", {}).items()]
    lines = [f"Measured on: {'; '.join(devices) or 'no GPU'}.", "", *lines, "", *beside, "", *told]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of lines, as file names are matched")
    parser.add_argument("--minutes", type=float, default=9.5, metavar="N", help="after which nothing is begun [9.5]")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"), metavar="FILE", help="[runs/gpu.json]")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="with the tables at its end [docs/gpu.md]")
    parser.add_argument("--table", type=Path, metavar="FILE", help="such a file, measured before")
    given = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if given.table:
        rows = json.loads(given.table.read_text())
    else:
        ends = time.perf_counter() + 60 * given.minutes
        lines: dict[str, Settings | None] = {"goldens": None, **configurations()}
        given.output.parent.mkdir(parents=True, exist_ok=True)
        wanted = {name: own for p in given.only for name, own in lines.items() if fnmatch.fnmatch(name, p)}
        turn = SPAWNED.Lock()
        with ThreadPoolExecutor(2) as pool:
            found = {pool.submit(alone, settings, turn, ends): name for name, settings in wanted.items()}
            asked = {name: None for p in given.only for name in COMFYUI if fnmatch.fnmatch(name, p)}
            found |= {pool.submit(in_comfyui, name, turn, ends): name for name in asked}
            for own in as_completed(found):
                name = found[own]
                rows[name] = own.result()
                print(name, json.dumps(rows[name]), flush=True)
                text = json.dumps(rows, indent=1)
                write_text(text, given.output)
    tables, head = page(rows), PAGE.read_text("utf-8").split(MARK)[0]
    print(tables)
    text = f"{head}{MARK}\n\n{tables}"
    write_text(text, given.page)


if __name__ == "__main__":
    main()
