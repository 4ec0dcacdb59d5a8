"""Handwritten digits (scikit-learn, 8x8, 1797 images) with a tiny Qwen-Image transformer: the whole road on a laptop.

The three colour channels of an 8x8 picture stand for latents, so there is no VAE; the prompts "a handwritten 3" are
learnt tokens, so there is no text encoder.  All else is Qwen-Image: class, key names, time conditioning.
"""

import hashlib
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from twinflow.objective import Condition
from twinflow.presets import OBJECTIVES, SAMPLING, Sampling
from twinflow.prompts import Prompt, load_prompts, save_prompts
from twinflow.time_embedding import SECOND_EMBEDDERS
from twinflow.weights import load, read_header, save

from .. import TrainerError
from ..data.order import rows_at
from ..generate import Plain, generate, load_trained, noise
from ..runs import quality
from ..training import optimizers
from ..training.log import Log
from ..training.loop import Job, seed_of, train
from ..weights import sharding
from ..weights.trainee import check_fits
from . import qwen_image

CLASSES = 10
SIDE = 8
NAMES = [*map(str, range(CLASSES)), ""]  # of the prompts, the empty one last
TEST_SIZE = 450  # images the generator never sees
ARCHITECTURE = dict(
    patch_size=2,
    in_channels=12,
    out_channels=3,
    num_layers=3,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=64,
    axes_dims_rope=(8, 12, 12),
)
TOKENS = 4  # learnt tokens a prompt
MULTI = replace(SAMPLING[30], steps=32)
DROP = 0.05  # share of rows of the base's training without a prompt


@cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test pictures (N, 1, 8, 8) in [0, 1] and labels (N,): x_train, y_train, x_test, y_test."""
    digits = load_digits()
    parts = train_test_split(digits.data, digits.target, test_size=TEST_SIZE, stratify=digits.target, random_state=0)
    x_train, x_test = (torch.tensor(x, dtype=torch.float32).reshape(-1, 1, SIDE, SIDE) / 16 for x in parts[:2])
    y_train, y_test = (torch.tensor(y) for y in parts[2:])
    return x_train, y_train, x_test, y_test


def encode(pictures: Tensor) -> Tensor:
    """Grey pictures (N, 1, 8, 8) in [0, 1] to latents (N, 3, 8, 8) in [-1, 1]."""
    return (pictures * 2 - 1).expand(-1, 3, -1, -1)


def decode(latents: Tensor) -> Tensor:
    """The inverse of encode: the mean of the channels, clamped to [0, 1]."""
    return ((latents.float().mean(1, keepdim=True) + 1) / 2).clamp(0, 1)


class PromptTable(nn.Module):
    """The learnt tokens: one prompt a digit and, last, the empty prompt.  cond (labels (B,),) to (embeds, mask)."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        shape = (CLASSES + 1, TOKENS, ARCHITECTURE["joint_attention_dim"])
        self.tokens = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        embeds = self.tokens[labels]
        return embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)

    def prompts(self) -> dict[str, Prompt]:
        """By name: "0" to "9", and "" for the empty prompt."""
        return {
            name: Prompt(f"a handwritten {name}" if name else "", embeds.detach().clone())
            for name, embeds in zip(NAMES, self.tokens)
        }


@dataclass
class Labelled:
    """The training pictures under conditions made from their labels: class numbers, or (embeds, mask) looked up."""

    table: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(images()[0])

    def batch_at(self, index: int, batch: int, seed: int):
        rows = torch.tensor([row for _, row in rows_at(index * batch, batch, len(self), seed)])
        x, y = images()[0][rows], images()[1][rows]
        empty = torch.full_like(y, CLASSES)
        if self.table is None:
            chance = torch.rand(len(y), generator=torch.Generator().manual_seed(seed_of(seed, "drop", index)))
            dropped = chance < DROP
            return encode(x), (torch.where(dropped, empty, y),), (empty,)
        return encode(x), tuple(c[y] for c in self.table), tuple(c[empty] for c in self.table)


class Base(nn.Module):
    """What stage 1 trains: the transformer and its prompts together, as v(x_t, t, r, (labels,)); r is not heard."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.table, self.transformer = PromptTable(generator), BACKBONE.transformer(generator)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond) -> Tensor:
        (labels,) = cond
        return qwen_image.velocity(self.transformer, x, t, torch.zeros_like(t), self.table(labels), time="fold")


@dataclass
class Prepared:
    """model: the plain transformer.  data: what to train on."""

    model: nn.Module
    data: Labelled
    validation: None = None  # the test part is the judge's


class Digits:
    name = "digits"
    base_model = "digits"
    second_embedder = SECOND_EMBEDDERS["qwen-image"]
    prefix = qwen_image.BACKBONE.prefix
    latent_shape = (3, SIDE, SIDE)
    chunk = 500
    unread = ("model and data", "cache", "prompts", "validation", "validate_every")
    velocity = staticmethod(qwen_image.velocity)
    sampling = (
        Sampling(1, "few", 0.0, end_gap=0.7),
        Sampling(2, "any", 0.0, end_gap=0.7),
        Sampling(4, "any", 0.0, end_gap=0.7),
        Sampling(8, "any", 0.0, end_gap=0.6),
        Sampling(32, "any", 0.0, end_gap=0.5),
    )
    base_sampling = (*(Sampling(n, "multi", 0.0, end_gap=0.0) for n in (1, 2, 4, 8)), MULTI)

    def recipe(self, mode: str) -> dict:
        """What docs/digits.md found: a base with a little guidance, its velocity as the target, and Muon."""
        own = (
            dict(steps=750, lr=8e-3, matrix_lr=2e-2, alpha=8.0, difference=0.04)
            if mode == "lora"
            else dict(steps=950, lr=5e-3, matrix_lr=1e-2, difference=0.04)
        )
        return own | dict(
            base_steps=1500, base_batch=64, base_optimizer="muon", base_lr=6e-3, base_matrix_lr=1e-2,
            batch=128, warmup=30, betas=(0.9, 0.95), optimizer="muon", ema=0.0, weights_ema=0.99,
            order=1, roles=dict(one_step=1, multi_step=0.5, any_step=1, few_step=1.5), rectify=0.0,
            target="guide", guide="base", guidance=1.0, guidance_range=(0.0, 1.01),
            stratified=True, dtype="fp32", checkpointing=False,
        )  # fmt: skip

    def transformer(self, generator: torch.Generator) -> QwenImageTransformer2DModel:
        """A fresh transformer.  Modulation and output start at zero (adaLN-Zero), as DiTs are trained from scratch."""
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            model = QwenImageTransformer2DModel(**ARCHITECTURE)
        modulation = [layer for block in model.transformer_blocks for layer in (block.img_mod[1], block.txt_mod[1])]
        for layer in [*modulation, model.norm_out.linear, model.proj_out]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return model

    def prepare(self, config, folder: Path, accelerator, log: Log) -> Prepared:
        """Stage 1: the flow-matching base, trained once for all runs in config.out with the same base settings."""
        if config.mode == "lora":  # a mistake is found before the base is trained
            self.lora_targets(self.transformer(torch.Generator()), config.targets)
        base = config.base
        if base is None:
            cache = config.out / "cache" / f"digits-{base_hash(config)}"
            cache.mkdir(parents=True, exist_ok=True)
            own_log, base = Log(cache / "metrics.csv", accelerator, config.log_every), cache / "base.safetensors"
            if not base.exists():
                pretrain(config, cache, accelerator, own_log)
            log.rows = own_log.rows + [row for row in log.rows if row["stage"] != "base"]
        model, prompts = self.read(base), load_prompts(base.parent / "prompts.safetensors")
        if missing := [name for name in NAMES if name not in prompts]:
            raise TrainerError(f"{base.parent / 'prompts.safetensors'}: has no prompt {missing[0]!r}; expected {NAMES}")
        save(model.state_dict(), folder / "base.safetensors", {"modelspec.architecture": "digits"})
        save_prompts(folder / "prompts.safetensors", prompts)
        return Prepared(model, Labelled(self.collate([prompts[name] for name in NAMES])))

    def read(self, path: Path) -> QwenImageTransformer2DModel:
        """The transformer from a base file."""
        model = self.transformer(torch.Generator().manual_seed(0))
        check_fits(read_header(path).tensors, model, path)
        model.load_state_dict(load(path))
        return model.eval()

    def preview(self, network, prepared: Prepared, device) -> dict[str, list[Tensor]]:
        """Rows by digit at 1, 2 and 4 NFE."""
        labels = torch.arange(CLASSES).repeat_interleave(quality.ACROSS)
        start, cond = noise(len(labels), self.latent_shape, 0).to(device), tuple(c[labels] for c in prepared.data.table)
        made = {s.steps: decode(generate(network, start, cond, s)) for s in self.sampling if s.steps <= 4}
        return {f"{n} NFE": list(x.unflatten(0, (CLASSES, -1))) for n, x in made.items()}

    def plain(self, config, folder: Path) -> nn.Module:
        return self.read(folder / "base.safetensors")

    def conditions(self, config, folder: Path, texts: list[str], references: list[Path], device) -> dict[str, Condition]:
        """Prompts are names of the run's own: 0 to 9."""
        prompts = load_prompts(folder / "prompts.safetensors")
        if unknown := [name for name in texts if name not in prompts]:
            raise TrainerError(f"--prompts {unknown[0]!r} is unknown; expected some of {', '.join(n for n in prompts if n)}")
        if references:
            raise TrainerError("--reference is for models that edit pictures; leave it out for digits")
        return {name: self.collate([prompts[name]]) for name in texts or NAMES[:CLASSES]}

    def shape(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
        return self.latent_shape

    def pictures(self, config, latents: list[Tensor], device) -> list[Tensor]:
        return [decode(x) for x in latents]

    def evaluate(self, config, folder: Path, weights: Path) -> dict:
        """Samples of both stages from the files of the run, their quality, the table and grid.png."""
        prompts = load_prompts(folder / "prompts.safetensors")
        labels = torch.arange(config.evaluate) % CLASSES
        table = self.collate([prompts[name] for name in NAMES])
        cond, start = tuple(c[labels] for c in table), noise(config.evaluate, self.latent_shape, config.seed + 1)
        base = Plain(self, self.read(folder / "base.safetensors"))
        distilled = load_trained(self, self.read(folder / "base.safetensors"), weights)
        made = {("base", s.steps): decode(generate(base, start, cond, s)) for s in self.base_sampling}
        made |= {("distilled", s.steps): decode(generate(distilled, start, cond, s)) for s in self.sampling}
        return quality.evaluate(made, labels, folder)

    def collate(self, prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
        return qwen_image.BACKBONE.collate(prompts)

    def idle(self, model: nn.Module) -> list[str]:
        return qwen_image.BACKBONE.idle(model)

    def lora_targets(self, model: nn.Module, targets: str) -> list[str]:
        return qwen_image.BACKBONE.lora_targets(model, targets)

    def to_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)  # Qwen-Image's names are ComfyUI's

    def from_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)


def base_hash(config) -> str:
    """Of all that decides the base: settings, and what is written here."""
    about = config.hash(base=True), BASE_OBJECTIVE, ARCHITECTURE, TOKENS, DROP
    return hashlib.sha256(repr(about).encode()).hexdigest()[:12]


def pretrain(config, cache: Path, accelerator, log: Log) -> None:
    """Train the base by flow matching and write cache/base.safetensors and cache/prompts.safetensors."""
    network = Base(torch.Generator().manual_seed(config.seed))
    for name in BACKBONE.idle(network.transformer):
        network.transformer.get_submodule(name).requires_grad_(False)
    tensors = {name: p for name, p in network.named_parameters() if p.requires_grad}
    rates = {"adamw": config.base_lr, "muon": config.base_matrix_lr or config.base_lr}
    job = Job(
        name="base",
        network=network,
        tensors=tensors,
        groups=[
            dict(kind=kind, params=[tensors[name] for name in names], lr=rates[kind], peak=rates[kind])
            for kind, names in optimizers.split(network, tensors, config.base_optimizer).items()
        ],
        data=Labelled(),
        objective=BASE_OBJECTIVE,
        steps=config.base_steps,
        batch=config.base_batch,
        warmup=config.base_steps // 30,
        betas=(0.9, 0.95),
        averages={"weights": config.base_ema},
    )
    values = train(
        job, accelerator, log, cache / "checkpoints",
        seed=config.seed, config_hash=config.hash(base=True), save_every=config.save_every, keep=1,
    )  # fmt: skip
    weights = sharding.gathered({**network.state_dict(), **values["weights"]}, keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        network = Base(torch.Generator().manual_seed(config.seed))  # whole, where that one is sharded
        network.load_state_dict(weights)
        save_prompts(cache / "prompts.safetensors", network.table.prompts())
        save(network.transformer.state_dict(), cache / "base.safetensors", {"modelspec.architecture": "digits"})
        shutil.rmtree(cache / "checkpoints")
    accelerator.wait_for_everyone()


# Flow matching with a little guidance trained in, where the noise is strong: more digits are what they were asked to be,
# at a slightly larger distance from the data (docs/digits.md).
BASE_OBJECTIVE = replace(
    OBJECTIVES["flow-matching"],
    reach=0.0,
    loss="l2",
    times="logit-normal",
    stratified=True,
    guidance=0.13,
    guidance_range=(0.55, 1.0),
)
BACKBONE = Digits()
