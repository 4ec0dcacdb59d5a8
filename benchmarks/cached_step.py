"""What an optimiser step costs with caches next to the same step done straightforwardly, end to end, side by side.

    python benchmarks/cached_step.py

cached           latents and embeddings from the trainer's cache, forwards for the rows that need them
straightforward  images decoded and encoded, captions and the empty prompt encoded, at every step; every forward on the
                 full batch, rows picked by mask afterwards
released         the same, but the fake samples and the rectification keep to their rows, as in the released code
All train the same LoRA with the same optimiser and average on the same rows and draws, and must give the same loss; without
checkpointing, which would add the same to each.

The models are Qwen-Image's own classes, all as deep as the published ones and all 48 times narrower, at 256 px. Counted in
operations the encoders are then 0.5 of a forward, as they are in reality (0.2 at 512 px, 0.13 at 1024 px); what they take
here is printed.
Prints them, the memory of a step with checkpointing and a base in eight bits, the share of a step that waits for its batch
with the next one read ahead (as the training loop does) and without, and the ratio of the first two last; exit code 1 where
a target is missed, or where the losses differ.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from PIL import Image
from transformers import Qwen2Config, Qwen2Model

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from row import Row, end, of_ratios  # noqa: E402
from step_cost import SETTINGS, straightforward  # noqa: E402

from trainer.backbones import backbone  # noqa: E402
from trainer.config.flat import from_flat  # noqa: E402
from trainer.config.settings import Settings  # noqa: E402
from trainer.data import Cache, DataRequest, Encoder, prepare  # noqa: E402
from trainer.data.image_files import pixels  # noqa: E402
from trainer.plan.memory import plan  # noqa: E402
from trainer.training.ahead import Ahead  # noqa: E402
from trainer.weights.teachers import WithWeights  # noqa: E402
from trainer.weights.trainee import Trainee  # noqa: E402
from twinflow import objective  # noqa: E402
from twinflow.ema import EMA  # noqa: E402
from twinflow.objective import Batch, Networks  # noqa: E402
from twinflow.prompts import Prompt  # noqa: E402
from twinflow.roles import share_out  # noqa: E402

TARGET = 0.5
WAITED = 0.01  # share of a step, at most
PIXELS, CAPTION, TEMPLATE = 256, 64, 34  # tokens of a caption, and of what the pipeline puts before it
TEXT_WIDTH = 76
BACKBONE = backbone("qwen-image")


def settings(**changes) -> Settings:
    """Of a LoRA of rank 8."""
    return from_flat(dict(model=BACKBONE.name, rank=8, resolution=PIXELS) | changes)


def transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        num_layers=60, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(8, 12, 12)
    )


class TextEncoder(torch.nn.Module):
    """A token a byte, behind a template of fixed length."""

    def __init__(self):
        super().__init__()
        config = Qwen2Config(
            vocab_size=257, hidden_size=TEXT_WIDTH, intermediate_size=396, num_hidden_layers=28, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=256,
        )  # fmt: skip
        self.model = Qwen2Model(config)

    @torch.no_grad()
    def forward(self, texts: list[str]) -> list[Prompt]:
        rows = [torch.tensor([*b"t" * TEMPLATE, *(text.encode() or b" ")]) for text in texts]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=256)
        states = self.model(input_ids=tokens, attention_mask=(tokens != 256).long(), use_cache=False).last_hidden_state
        return [Prompt(text, s[TEMPLATE : len(row)]) for text, s, row in zip(texts, states, rows)]


class ImageEncoder(torch.nn.Module):
    """Qwen-Image's autoencoder; only its encoder is used."""

    def __init__(self):
        super().__init__()
        self.vae = AutoencoderKLQwenImage(base_dim=2)

    @torch.no_grad()
    def forward(self, x):
        return self.vae.encode(x[:, :, None]).latent_dist.mode().squeeze(2)


def fresh(module):
    torch.manual_seed(0)
    return module().eval()


class Run:
    """A LoRA in training: its network, teacher, average and optimiser."""

    def __init__(self):
        model = fresh(transformer)
        self.trainee = Trainee(BACKBONE, model, settings(checkpointing=False))
        torch.manual_seed(1)
        for p in self.trainee.tensors.values():  # as if trained for a while: at first a LoRA does nothing
            p.data.add_(0.02 * torch.randn_like(p))
        self.parameters = list(self.trainee.tensors.values())
        self.average = EMA(self.parameters, 0.99)
        self.teacher = WithWeights(self.trainee.network, dict(zip(self.trainee.tensors, self.average.shadow)))
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)

    def __call__(self, loss) -> float:
        """One step on what loss(student, teacher) gives."""
        self.average.update()
        total = loss(self.trainee.network, self.teacher)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.item()


def write_images(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for i in range(count):
        corners = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=95)
        (folder / f"{i}.txt").write_text("".join(chr(c) for c in generator.integers(97, 123, CAPTION)))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    batch, roles = given.batch, share_out(given.batch, SETTINGS.roles)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 2 * batch)
        cache = Cache(
            Path(folder) / "cache",
            Encoder("text", lambda: fresh(TextEncoder)),
            Encoder("image", lambda: fresh(ImageEncoder)),
            torch.float32,
        )
        request = DataRequest(folder, resolution=PIXELS, multiple=BACKBONE.pixels, aspect=1.0, aspects="1:1", encode_batch=4)
        data, _ = prepare(request, cache, BACKBONE.collate)
        text, image = fresh(TextEncoder), fresh(ImageEncoder)
        runs = {name: Run() for name in ("cached", "straightforward", "released")}
        took, encoding, losses = {name: [] for name in runs}, [], {name: [] for name in runs}

        def cached(index, given=None):
            x, cond, uncond = given or data.batch_at(index, batch, 0)
            draws = objective.draw(x, SETTINGS, torch.Generator().manual_seed(index))
            return lambda student, teacher: (
                objective.loss(Networks(student, teacher), Batch(x, cond, uncond), SETTINGS, roles, draws).total
            )

        def plain(index, everywhere=True):
            began = time.process_time()
            rows = [data.rows[row] for _, row in data.order.batch(index, batch, 0)]
            x = image(torch.stack([pixels(row.target.image.read(), row.size) for row in rows]))
            prompts = text([row.captions[0].text for row in rows]) + text([""] * batch)
            both = BACKBONE.collate(prompts)
            encoding.append(time.process_time() - began)
            cond, uncond = tuple(c[:batch] for c in both), tuple(c[batch:] for c in both)
            draws = objective.draw(x, SETTINGS, torch.Generator().manual_seed(index))
            return lambda student, teacher: straightforward(
                student, teacher, x, cond, uncond, SETTINGS, roles, draws, everywhere=everywhere
            )

        steps = {"cached": cached, "straightforward": plain, "released": lambda index: plain(index, everywhere=False)}
        for k in range(given.repeats + 1):  # the first warms up
            for name in sorted(steps, reverse=bool(k % 2)):
                began = time.process_time()
                losses[name].append(runs[name](steps[name](k)))
                took[name].append(time.process_time() - began)
            ours = losses["cached"][-1]
            for name, own in losses.items():
                if abs(ours - own[-1]) > 1e-3 * max(1, abs(own[-1])):
                    print(f"error: step {k}: the losses differ: {ours} cached, {own[-1]} {name}")
                    return 1
        waits = {name: waited(runs["cached"], cached, data, batch, ahead) for name, ahead in (("ahead", True), ("not", False))}
        x, cond, _ = data.batch_at(0, batch, 0)
        t, forwards = torch.full((batch,), 0.5), []
        for _ in range(3):
            began = time.process_time()
            runs["cached"].teacher(x, t, t, cond)
            forwards.append(time.process_time() - began)
    print(f"losses equal on {given.repeats + 1} steps of batch {batch}")
    forward = statistics.median(forwards)
    print(f"encoding a batch {statistics.median(encoding):.3f} s, {statistics.median(encoding) / forward:.2f} of a forward")
    for name, seconds in took.items():
        print(f"{name:16s} {statistics.median(seconds[1:]):7.3f} s a step (median of {given.repeats})")
    print_memory()
    ratios = {
        name: [a / b for a, b in zip(took["cached"][1:], took[name][1:], strict=True)]
        for name in ("released", "straightforward")
    }
    print(f"without reading ahead, {waits['not']:.4f} of a step is waiting for its batch")
    print(f"cached / released: {statistics.median(ratios['released']):.3f}")
    return end(
        [
            of_ratios("cached step, time, beside encoding and the straightforward one", TARGET, ratios["straightforward"]),
            Row("waiting for a batch, share of a step", WAITED, waits["ahead"]),
        ]
    )


def waited(run: "Run", cached, data, batch: int, ahead: bool) -> float:
    """The share of three steps that passes before they have their batch; the first batch, which nothing hides, aside."""
    reader = Ahead(data, batch, 0)
    reader.take(0, 1 if ahead else None)
    reader.waited, began = 0.0, time.perf_counter()
    for index in range(1, 4):
        run(cached(index, reader.take(index, index + 1 if ahead and index < 3 else None)))
    reader.close()
    return reader.waited / (time.perf_counter() - began)


def print_memory() -> None:
    """By item: what a real trainee and optimiser hold after a step, and the activations as the plan counts them."""
    own = settings(quantize="fp8-cast")
    trainee = Trainee(BACKBONE, fresh(transformer), own)
    optimizer = torch.optim.AdamW(trainee.tensors.values(), lr=1e-4)
    x, t = torch.zeros(1, 16, PIXELS // 8, PIXELS // 8), torch.full((1,), 0.5)
    cond = torch.zeros(1, CAPTION, TEXT_WIDTH), torch.ones(1, CAPTION, dtype=torch.bool)
    trainee.network(x, t, t, cond).float().square().mean().backward()
    optimizer.step()
    narrow = copy.copy(BACKBONE)
    narrow.size = replace(narrow.size, config=dict(transformer().config), tokens=CAPTION)
    bytes_of = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
    trained = list(trainee.tensors.values())
    items = {
        "base, eight bits": bytes_of(p for p in trainee.network.parameters() if not p.requires_grad),
        "adapter": bytes_of(trained),
        "gradients": bytes_of(p.grad for p in trained),
        "optimiser": bytes_of(v for state in optimizer.state.values() for v in state.values()),
        "average": bytes_of(EMA(trained, 0.99).shadow),
        "activations, checkpointed": plan(narrow, own).items["activations"],
    }
    for name, value in items.items():
        print(f"  {name:26s} {value / 2**20:7.2f} MiB")


if __name__ == "__main__":
    sys.exit(main())
