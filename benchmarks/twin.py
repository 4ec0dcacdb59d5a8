"""What the twin is worth on emoji, at equal cost: runs of the real trainer from the shipped base, judged alike.

    python benchmarks/twin.py run [--seeds 0,1,2] [--only PATTERN]      what docs/twin.csv lacks
    python benchmarks/twin.py table [--only PATTERN]                    the mean over the seeds, relative to the base
    python benchmarks/twin.py judge [FILE ...]                          files of trainer.full or lora (without: the shipped one)
    python benchmarks/twin.py spread [FILE ...]                         samples of one prompt: how unlike, how far off
    python benchmarks/twin.py grid FILE ...                             grid.png in --folder: one step of each, and the base

Equal cost is an equal number of forward equivalents (1 a row that goes through a network, 3 with its backward pass): as many
as 180 steps of 64 images with the twin take, or 720 of 16.  They are counted with the run's own objective
on a network without cost.  The runs lie in --folder; a line of the table is written when a run was judged, and is never
measured again.
"""

import argparse
import csv
import fnmatch
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from emoji_judges import Judges, errors  # noqa: E402

from trainer.backbones import backbone  # noqa: E402
from trainer.backbones.emoji import Emoji, to_images  # noqa: E402
from trainer.config.resolving import resolve  # noqa: E402
from trainer.config.settings import Settings  # noqa: E402
from trainer.runs import drawing  # noqa: E402
from trainer.runs.emoji import BASE_SAMPLING, MULTI, SHOWN, EmojiRun  # noqa: E402
from trainer.runs.emoji_judge import Judge, floats  # noqa: E402
from trainer.runs.two_sample import auc, told_apart  # noqa: E402
from trainer.weights.inference import generate, load_trained, noise  # noqa: E402
from trainer.weights.trainee import Plain  # noqa: E402
from twinflow import objective  # noqa: E402
from twinflow.backbones.emoji import SHIPPED  # noqa: E402
from twinflow.draws import draw  # noqa: E402
from twinflow.objective import Batch, Networks  # noqa: E402
from twinflow.presets import Sampling  # noqa: E402
from twinflow.roles import share_out  # noqa: E402
from twinflow.weights import load, save  # noqa: E402
from twinflow.words import load_words  # noqa: E402

CSV = HERE.parent / "docs" / "twin.csv"
STEPS = 180  # of 64 images
RCGM = "--rectify 0 --roles one_step=1,multi_step=0.5,any_step=1,few_step=1"
ROLES = "--roles one_step=1,multi_step=0.5,any_step=1,few_step=1,fake={}"
LOWER = "--lr 3e-4 --embedder-lr 2e-3"
LAB = "--dt 0.02 --batch 128 --roles one_step=1,multi_step=1,any_step=1"  # as the sketch that found 20 %
LARGE = "--batch 64 --time-shift 1"  # as emoji's recipe was until it had small batches
SWEPT = f"{LARGE} --dt 0.1 --ema 0 --lr {{0}} --embedder-lr {{0}}"  # the recipe from which the sweeps depart, and its sampling
FULL, TWO = f"full {SWEPT.format('1e-3')}", f"lora {SWEPT.format('2e-3')}"
FOLD = f"{TWO} --time fold"
SWEPT_SAMPLING = tuple(Sampling(n, style, 0.0, end_gap=gap) for n, style, gap in
                       ((1, "few", 0.7), (2, "any", 0.6), (4, "any", 0.5), (8, "any", 0.5)))  # fmt: skip
KNOWN, NOISES = 48, 16  # for spread: prompts of one picture each, noises a prompt, and prompts that name several
PROMPTS = ("woman", "man", "face", "flag", "cat", "hand", "clock", "heart")
RECIPES = {"default": "", "batch 64": LARGE}  # with shorter last jumps than the sweeps'
HALVES = {"half of RCGM": RCGM, "then half of TwinFlow": ""}
RUNS = {  # name: how much of the time, mode and options
    **{f"{recipe}, {o}, {mode}{x}": (n, f"{mode} {own} {options}")
       for x, n in {"": 1, ", time x 3": 3, ", time x 10": 10}.items()
       for recipe, own in RECIPES.items()
       for mode in ("full", "lora")
       for o, options in {"TwinFlow": "", "RCGM": RCGM}.items()},
    "batch 64, rectify 4, full": (1, f"full {LARGE} --rectify 4"),
    **{f"batch 64, {name}, {mode}": (0.5, f"{mode} {LARGE} {options}")
       for mode in ("full", "lora")
       for name, options in HALVES.items()},
    **{f"{o}, {t}, {m}": (1, f"{mode} {options} --target {t}")
       for m, mode in {"full": FULL, "LoRA two": TWO, "LoRA fold": FOLD}.items()
       for t in ("guide", "data")
       for o, options in {"TwinFlow": "", "RCGM": RCGM}.items()},
    **{f"rectify {x}": (1, f"{FULL} --rectify {x}") for x in (0.25, 0.5, 1, 4)},
    **{f"fake {x}": (1, f"{FULL} {ROLES.format(x)}") for x in (0.5, 2)},
    **{f"dt {x}": (1, f"{FULL} --dt {x}") for x in (0.02, 0.05, 0.2)},
    "order 1": (1, f"{FULL} --order 1"),
    **{f"teacher EMA {x}": (1, f"{FULL} --ema {x}") for x in (0.9, 0.99)},
    "guidance 1.5": (1, f"{FULL} --guidance 1.5"),
    "RCGM, guidance 1.5": (1, f"{FULL} --guidance 1.5 {RCGM}"),
    "without few_step": (1, f"{FULL} --roles one_step=1,multi_step=0.5,any_step=1,fake=1"),
    "the twin alone": (1, f"{FULL} --roles one_step=1,fake=1"),
    "weights EMA 0.98": (1, f"{FULL} --weights-ema 0.98"),
    "multi_step 1": (1, f"{FULL} --roles one_step=1,multi_step=1,any_step=1,few_step=1,fake=1"),
    "TwinFlow, lower rate": (1, f"{FULL} {LOWER}"),
    "RCGM, lower rate": (1, f"{FULL} {LOWER} {RCGM}"),
    "lower rate, EMA 0.98": (1, f"{FULL} {LOWER} --weights-ema 0.98"),
    "lower rate, multi_step 1": (1, f"{FULL} {LOWER} --roles one_step=1,multi_step=1,any_step=1,few_step=1,fake=1"),
    **{f"lower rate, batch {x}": (1, f"{FULL} {LOWER} --batch {x}") for x in (32, 128)},
    "lowest rate": (1, f"{FULL} --lr 1e-4 --embedder-lr 2e-3"),
    "Muon": (1, f"{FULL} --optimizer muon --matrix-lr 1e-3 --lr 1e-3"),
    "LoRA, lower rate": (1, f"{TWO} --lr 1e-3 --embedder-lr 2e-3"),
    "LoRA, rank 64": (1, f"{TWO} --rank 64"),
    "LoRA, rectify 1": (1, f"{TWO} --rectify 1"),
    "LoRA, teacher EMA 0.99": (1, f"{TWO} --ema 0.99"),
    **{f"LoRA, {o}, time x 3": (3, f"{TWO} {own}") for o, own in {"TwinFlow": "", "RCGM": RCGM}.items()},
    "TwinFlow, lab": (1, f"{FULL} {LAB},fake=1"),
    "RCGM, lab": (1, f"{FULL} {LAB} --rectify 0"),
    **{f"{o}, time x {x}": (x, f"{FULL} {LOWER} {own}") for x in (3, 10) for o, own in {"TwinFlow": "", "RCGM": RCGM}.items()},
}  # fmt: skip
AFTER = {f"batch 64, then half of TwinFlow, {m}": f"batch 64, half of RCGM, {m}" for m in ("full", "lora")}  # run -> its --init


def settings_of(options: str, **own) -> Settings:
    """As trainer.lora and trainer.full resolve them."""
    mode, *words = options.split()
    named = {word[2:].replace("-", "_"): value for word, value in zip(words[::2], words[1::2], strict=True)}
    return resolve(mode, dict(model="emoji") | named | own, notify=lambda line: None)


def cost(settings: Settings, draws: int = 100) -> float:
    """Forward equivalents of a step."""
    spent, scale = 0, torch.ones(1, requires_grad=True)

    def velocity(x, t, r, cond):
        nonlocal spent
        spent += len(x) * (3 if torch.is_grad_enabled() else 1)
        return x * scale

    own, batch = settings.objective, settings.training.batch
    roles, generator = share_out(batch, own.roles), torch.Generator().manual_seed(0)
    cond = (torch.zeros(batch, 1),)
    for _ in range(draws):
        x = torch.randn(batch, 1, 1, 1, generator=generator)
        networks = Networks(velocity, velocity, velocity if settings.guidance.guide == "base" else None)
        objective.loss(networks, Batch(x, cond, cond), own, roles, draw(x, own, generator))
    return spent / draws


class Bench:
    """base: the weights that runs start from, with words.safetensors beside them."""

    def __init__(self, folder: Path, samples: int, base: Path):
        self.folder, self.samples, self.path, self.judging = folder, samples, base, Lock()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        own = backbone("emoji")
        assert isinstance(own, Emoji)
        self.own, self.emoji = own, EmojiRun(own)
        self.judges, self.judge = Judges(folder, self.device), Judge()
        self.budget = STEPS * cost(settings_of(FULL))
        asked = settings_of(FULL, evaluate=samples)
        self.texts, self.start, self.cond = self.emoji.asked(asked, load_words(base.parent / "words.safetensors"))
        kept = folder / f"base-{samples}.safetensors"
        if not kept.exists():
            save({"images": self.drawn(self.plain(), MULTI)}, kept)
        self.base = load(kept)["images"]

    def plain(self):
        return Plain(self.own, self.own.load(self.path).to(self.device))

    def trained(self, path: Path):
        return load_trained(self.own, self.own.load(self.path), path).to(self.device)

    def drawn(self, network, sampling):
        return to_images(generate(network, self.start.to(self.device), self.cond, sampling, chunk=self.own.chunk)).cpu()

    def row(self, images, *, told: bool = True) -> dict[str, float]:
        row = self.judges.metrics(images) | self.judge.metrics(images, self.texts)
        return row | {"c2st": told_apart(images.to(self.device), self.base.to(self.device)) if told else ""}

    def of_prompts(self, network, sampling, texts: Sequence[str]):
        """(prompts, NOISES, 3, 32, 32): from the same noises for all networks."""
        words = load_words(self.path.parent / "words.safetensors")
        cond = self.own.collate([words.encode(text) for text in texts for _ in range(NOISES)])
        made = generate(network, noise(len(cond[0]), self.emoji.shape, 0).to(self.device), cond, sampling, chunk=self.own.chunk)
        return to_images(made).cpu().unflatten(0, (-1, NOISES))

    def spread_of(self, path: Path) -> None:
        """How unlike the samples of one prompt are, by their distances and over the base's; and the error of the prompts that
        are judged beside the base's 32 steps from the same noise, as that of their mean picture and the rest."""
        spread = lambda made: [float(torch.pdist(rows.flatten(1)).mean()) for rows in made]
        known, plain, network = self.texts[:KNOWN], self.plain(), self.trained(path)
        several, wanted = spread(self.of_prompts(plain, MULTI, PROMPTS)), self.of_prompts(plain, MULTI, known)
        print("base, 32:", {text: round(x, 2) for text, x in zip(PROMPTS, several, strict=True)}, flush=True)
        for s in self.own.sampling[:3]:
            over = [x / y for x, y in zip(spread(self.of_prompts(network, s, PROMPTS)), several, strict=True)]
            error = self.of_prompts(network, s, known) - wanted
            rest = float(error.var(1).mean())
            mean = float(error.mean(1).square().mean()) - rest / NOISES
            parts = {"mean picture": round(max(mean, 0) ** 0.5, 4), "rest": round(rest**0.5, 4)}
            named = {text: round(x, 2) for text, x in zip(PROMPTS, over, strict=True)}
            print(path.name, f"{s.steps} NFE:", named, "mean", round(statistics.mean(over), 3), "error:", parts, flush=True)

    def judge_file(self, path: Path) -> None:
        """By NFE: distances over those of the base's 32 steps and over those of held-out pictures, how well samples are told
        from the latter, the rms beside the former, and errors of pixels."""
        network, mixed = self.trained(path), torch.Generator().manual_seed(0)
        real, unseen, base = floats(self.judge.real), floats(self.judge.unseen), self.judges.metrics(self.base)
        unseen = unseen[torch.randperm(len(unseen), generator=mixed)]
        seen = real[torch.randperm(len(real), generator=mixed)[: self.samples]]
        print("real pictures:", {"told from held-out": round(auc(seen, unseen), 3)}, flush=True)
        made = {"base, 32": self.base} | {f"{s.steps} NFE": self.drawn(network, s) for s in self.own.sampling[:3]}
        for name, images in made.items():
            found = self.judges.metrics(images)
            over = {key: round(found[key] / base[key], 3) for key in ("efficientnet", "categories")}
            over |= {f"{key} over held-out": round(found[key], 3) for key in ("efficientnet", "categories")}
            over["told from held-out"] = round(auc(images, unseen), 3)
            over["rms"] = round(float((images - self.base).square().mean()) ** 0.5, 4)  # the noise is the base's own
            print(path.name, name, over | {key: round(v, 4) for key, v in errors(images, real).items()}, flush=True)

    def grid(self, files: list[Path]) -> None:
        """The first of the prompts that are always shown, four noises each; the columns are named as the files are."""
        kind = EmojiRun(self.own)
        start, cond = kind.drawn(load_words(self.path.parent / "words.safetensors"), self.device)
        columns = {"base, 32 steps": kind.grid(self.plain(), start, cond, MULTI)}
        columns |= {path.stem: kind.grid(self.trained(path), start, cond, self.own.sampling[0]) for path in files}
        columns = {name: images[:6] for name, images in columns.items()}
        drawing.grid(columns, self.folder / "grid.png", labels=SHOWN[:6], least=64)

    def place(self, name: str, seed: int) -> tuple[str, Path]:
        """Of a run: what it is called, and its weights file."""
        called = f"{name} {seed}".replace(" ", "-").replace(",", "")
        return called, self.folder / called / f"{called}.safetensors"

    def run(self, name: str, seed: int) -> list[dict]:
        times, options = RUNS[name]
        called, path = self.place(name, seed)
        settings = settings_of(options, seed=seed)
        steps = round(times * self.budget / cost(settings))
        mode, *words = options.split()
        words += ["--init", str(self.place(AFTER[name], seed)[1])] if name in AFTER else []
        command = [
            sys.executable, "-m", f"trainer.{mode}", "--model", "emoji", "--name", called, "--out", str(self.folder), *words,
            "--seed", str(seed), "--steps", str(steps), "--threads", "1", "--evaluate", "0", "--sample-every", "0",
            "--base", str(self.path),
        ]  # fmt: skip
        begun = time.perf_counter()
        trained = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
        if trained.returncode:
            raise RuntimeError(f"{name}, seed {seed}: {trained.stderr[-500:]}")
        about, rows = {"run": name, "seed": seed, "steps": steps}, []
        with self.judging:
            took, network = time.perf_counter() - begun, self.trained(path)
            for sampling in self.own.sampling if name.startswith(tuple(RECIPES)) else SWEPT_SAMPLING:
                images = self.drawn(network, sampling)
                save({"images": images}, self.folder / called / f"samples_{sampling.steps}nfe.safetensors")
                rows.append(about | {"nfe": sampling.steps, **self.row(images, told=sampling.steps < 8)})
            told = time.perf_counter() - begun - took
            print(f"{name}, seed {seed}: {steps} steps in {took:.0f} s, judged in {told:.0f} s", flush=True)
        return rows


def known(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def add(rows: list[dict], path: Path) -> None:
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def asked(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def table(path: Path, patterns: list[str]) -> None:
    rows = known(path)
    shown = ("efficientnet", "categories", "frechet", "nearest", "recall", "sharpness", "c2st", "asked")
    base = next(row for row in rows if (row["run"], row["nfe"]) == ("base", "32"))
    print("| run | seeds | NFE | " + " | ".join(shown) + " |\n" + "|---" * (len(shown) + 3) + "|")
    for name in dict.fromkeys(row["run"] for row in rows if asked(row["run"], patterns)):
        for nfe in dict.fromkeys(row["nfe"] for row in rows if row["run"] == name):
            own = [row for row in rows if (row["run"], row["nfe"]) == (name, nfe)]
            cells = []
            for key in shown:
                values = [float(row[key]) for row in own if row[key]]
                over = float(base[key]) if key not in ("c2st", "asked") else 1.0
                cells.append(f"{statistics.mean(values) / over:.3f}" if values else "")
            print(f"| {name} | {len(own)} | {nfe} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "judge", "spread", "grid"))
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="to judge")
    parser.add_argument("--seeds", default="0", metavar="N,...", help="[0]")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of names of runs [*]")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="judged of each kind [1000]")
    parser.add_argument("--folder", type=Path, default=Path("runs/twin"), metavar="PATH", help="of the runs [runs/twin]")
    parser.add_argument("--base", type=Path, default=SHIPPED / "base.safetensors", metavar="FILE", help="[the shipped one]")
    parser.add_argument("--csv", type=Path, default=CSV, metavar="FILE", help="of the table, one for each base [docs/twin.csv]")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, where there is a GPU [1]")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    if given.what == "table":
        return table(given.csv, given.only)
    bench = Bench(given.folder.resolve(), given.samples, given.base.resolve())
    print(json.dumps({"named by the classifier, of held-out pictures": bench.judges.named, "budget": bench.budget}), flush=True)
    if given.what == "grid":
        return bench.grid(given.files)
    if given.what in ("judge", "spread"):
        for path in given.files or [SHIPPED / "distilled.safetensors"]:
            (bench.judge_file if given.what == "judge" else bench.spread_of)(path)
        return
    done = {(row["run"], row["seed"]) for row in known(given.csv)}
    if ("base", "0") not in done:
        about = {"run": "base", "seed": 0, "steps": 0}
        single = bench.drawn(bench.plain(), BASE_SAMPLING[0])
        rows = [about | {"nfe": 1, **bench.row(single)}, about | {"nfe": 32, **bench.row(bench.base, told=False)}]
        add(rows, given.csv)
    left = [(n, s) for s in given.seeds.split(",") for n in RUNS if asked(n, given.only) and (n, s) not in done]
    left.sort(key=lambda run: -RUNS[run[0]][0])  # the longest first
    with ThreadPoolExecutor(given.jobs) as pool:
        for made in as_completed([pool.submit(bench.run, name, int(seed)) for name, seed in left]):
            add(made.result(), given.csv)


if __name__ == "__main__":
    main()
