"""The plan's figures against published numbers, and against what real tiny models allocate."""

import dataclasses
import inspect

import diffusers
import pytest
import torch
from torch import nn

from trainer import TrainerError
from trainer.backbones import backbone, trainable
from trainer.backbones.sources import in_dtype, with_exact
from trainer.cli import main
from trainer.config.resolving import resolve
from trainer.plan import activations, memory, table
from trainer.plan.activations import Counter
from trainer.plan.memory import GIB
from trainer.training import optimizers
from trainer.weights.quantise import layers, quantise
from trainer.weights.trainee import Trainee

from .tiny import PIXELS, TINY, settings

torch.set_num_threads(1)
PUBLISHED = [name for name in trainable() if name not in ("digits", "emoji")]


def real(tiny, wanted):
    """The trainee of a real model in the dtype of the settings."""
    torch.manual_seed(0)
    return Trainee(tiny, with_exact(in_dtype(tiny.skeleton(), wanted.torch_dtype)), wanted)


def nbytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    "name, billions, gib",
    [
        ("qwen-image", 20.43, 38.1),
        ("qwen-image-edit", 20.43, 38.1),
        ("z-image", 6.15, 11.5),
        ("z-image-turbo", 6.15, 11.5),
        ("flux2-klein", 3.88, 7.2),
        ("flux2-klein-distilled", 3.88, 7.2),
        ("flux2-klein-edit", 3.88, 7.2),
        ("krea2", 12.82, 23.9),
        ("krea2-turbo", 12.82, 23.9),
        ("qwen-image-2.1", 7.12, 13.3),
        ("qwen-image-2.1-turbo", 7.12, 13.3),
        ("sd3.5", 2.24, 4.2),
        ("sd3.5-large", 8.06, 15.0),
        ("sana-0.6b", 0.59, 1.1),
        ("sana", 1.60, 3.0),
        ("openuni", 1.60, 3.0),
    ],
)
def test_published_sizes(name, billions, gib):
    """Parameters as published, weights in bf16 to the digits of shared/training.md."""
    model, second = memory.skeleton(backbone(name)), backbone(name).core.time.name + "."
    count = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(second))
    assert round(count / 1e9, 2) == billions
    assert abs(memory.weights(model, second, 2, "none") / GIB - gib) < 0.06


@pytest.mark.parametrize("quantize, gib", [("int8", 19.0), ("fp8", 19.0), ("nf4", 9.8)])
def test_published_quantised_weights(quantize, gib):
    model = memory.skeleton(backbone("qwen-image"))
    assert abs(memory.weights(model, "time_text_embed_2.", 2, quantize) / GIB - gib) < 0.2


def test_published_activations():
    """Qwen-Image, a row at 1024 px: computed independently as 2.35 GiB with checkpointing."""
    kept = memory.kept(backbone("qwen-image"), "full", "", 1, torch.bfloat16, 1024)
    assert abs(kept.bytes(True) / GIB - 2.35) < 0.05 * 2.35
    assert kept.bytes(False) > 15 * kept.bytes(True)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "change",
    [
        dict(targets="all"),
        dict(targets="attention", time="fold", averages=2),
        dict(dtype="fp32"),
        dict(mode="full", dtype="fp32"),
        dict(mode="full", averages=0, frozen_copy=True),
        dict(targets="all", optimizer="muon"),
        dict(mode="full", dtype="fp32", optimizer="muon"),
    ],
    ids=str,
)
def test_a_real_step_allocates_as_planned(name, change):
    """Weights, adapter, gradients, optimiser, averages and frozen copy after one optimiser step, each to 5 %."""
    tiny, wanted = TINY[name], settings(**change, checkpointing=False)
    planned, full = memory.plan(tiny, wanted), wanted.mode == "full"
    trainee = real(tiny, wanted)
    trained, training = list(trainee.tensors.values()), wanted.training
    built = optimizers.build(optimizers.groups_of(trainee.network, trainee.tensors, training, trainee.second), training)
    copy = getattr(trainee.base(), "values", {}) if wanted.guidance.guide == "base" else {}
    side = PIXELS // tiny.factor
    x, t, dtype = torch.randn(2, tiny.size.channels, side, side), torch.tensor([0.7, 0.3]), wanted.torch_dtype
    config = trainee.network.model.config
    width = next(config[k] for k in WIDTHS if k in config) * config.get("num_text_layers", 1)
    embeds = torch.randn(2, 20, width, dtype=dtype)
    second = torch.ones(2, 20, dtype=torch.bool) if not name.startswith("sd3") else torch.randn(2, 40, dtype=dtype)
    trainee.network(x, t, t / 2, (embeds, second)).float().square().mean().backward()
    for optimizer in built:
        optimizer.step()
    got = {
        f"weights ({'fp32' if full else wanted.memory.dtype})": nbytes(trainee.network.parameters())
        - nbytes(trained) * (not full),
        "adapter": nbytes(trained) * (not full),
        "buffers": nbytes(trainee.network.buffers()),
        "gradients": nbytes(p.grad for p in trained if p.grad is not None),
        f"optimiser ({training.optimizer})": nbytes(v for o in built for state in o.state.values() for v in state.values()),
        "averages (EMA)": change.get("averages", 1) * nbytes(trained),
        "frozen copy of the base": nbytes(copy.values()),
    }
    assert planned.trainable == sum(p.numel() for p in trained)
    for item, real_bytes in got.items():
        assert planned.items.get(item, 0) == pytest.approx(real_bytes, rel=0.05), item


WIDTHS = ("joint_attention_dim", "cap_feat_dim", "caption_channels", "text_hidden_dim", "context_in_dim")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("change", [dict(targets="all"), dict(targets="attention"), dict(mode="full", dtype="fp32")], ids=str)
def test_a_real_forward_keeps_as_planned(name, change):
    """Counted on the real model with PEFT's own layers; the stand-in and the fake tensors change nothing."""
    tiny, wanted = TINY[name], settings(**dict(time="fold") | change, checkpointing=False)
    dtype = wanted.torch_dtype
    planned = memory.kept(tiny, wanted.mode, wanted.adapter.targets, wanted.adapter.rank, dtype, PIXELS)
    model = real(tiny, wanted).network.model
    got = Counter(model.train())(tiny.inputs(model, PIXELS, dtype))
    assert got.whole == pytest.approx(planned.whole, rel=0.05)
    assert got.bytes(True) == pytest.approx(planned.bytes(True), rel=0.05)


@pytest.mark.parametrize("name", ["flux2-klein", "sana"])
def test_of_blocks_that_are_alike_two_are_run(name, monkeypatch):
    two = activations.count(backbone(name), 512, torch.bfloat16)
    monkeypatch.setattr(activations, "form", id)  # no two are alike
    assert activations.count(backbone(name), 512, torch.bfloat16) == two


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-cast"])
def test_quantised_weights_are_as_planned(name, kind):
    """Stored as the trainer stores them: by torchao, and by diffusers' layerwise casting."""
    if kind != "fp8-cast":
        pytest.importorskip("torchao")
    tiny = TINY[name]
    model = tiny.skeleton().bfloat16().requires_grad_(False)
    full, got = nbytes(model.parameters()), 0
    quantise(model, kind)
    for p in model.parameters():
        inner = p.__tensor_flatten__()[0] if hasattr(p, "__tensor_flatten__") else ()
        got += nbytes(getattr(p, name) for name in inner) if inner else nbytes([p])
    assert got < 0.95 * full
    assert memory.plan(tiny, settings(quantize=kind)).items[f"weights ({kind})"] == pytest.approx(got, rel=0.05)


def test_nf4_weights_are_as_planned():
    """Stored by bitsandbytes: one layer, since the fixed cost of a tiny model's many layers is not that of a large one's."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = bitsandbytes.nn.Params4bit(
        torch.randn(1024, 1024).bfloat16(), requires_grad=False, compress_statistics=True, quant_type="nf4"
    ).to("cpu")
    state = weight.quant_state
    got = nbytes([weight, state.absmax, state.state2.absmax])  # the code books are of a fixed size
    assert weight.dtype == torch.uint8 and memory.STORED["nf4"] * 1024**2 == pytest.approx(got, rel=0.05)


@pytest.mark.parametrize("rank", [8, 100])
def test_8_bit_optimiser_is_as_planned(rank):
    """State of the trainer's own, torchao's, of small tensors and large ones."""
    pytest.importorskip("torchao")
    tiny, wanted = TINY["qwen-image"], settings(rank=rank, targets="all", optimizer="adamw8bit", checkpointing=False)
    trainee = real(tiny, wanted)
    groups = optimizers.groups_of(trainee.network, trainee.tensors, wanted.training, trainee.second)
    (optimizer,) = optimizers.build(groups, wanted.training)
    for p in trainee.tensors.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    got = nbytes(t for name, t in optimizers.tensors(optimizer).items() if not name.endswith(".step"))
    planned = memory.plan(tiny, wanted).items["optimiser (adamw8bit)"]
    assert planned == pytest.approx(got, rel=0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_time_embedders_and_last_layers_are_never_quantised(name):
    model = memory.skeleton(backbone(name))
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    whole = linear - layers(model).keys()
    time = backbone(name).core.time
    assert {n for n in linear if n.startswith((time.embedder + ".", time.name + "."))} <= whole
    assert len(layers(model)) > 0.8 * len(linear)
    assert any(last in n for last in ("proj_out", "final_layer") for n in whole)


def test_a_setup_is_cheaper_for_each_thing_that_saves():
    whole = dict(model="sana-0.6b", resolution=512, batch=2, checkpointing=False)
    known = backbone("sana-0.6b")
    before = memory.plan(known, settings(**whole)).total
    for change in (
        dict(checkpointing=True), dict(optimizer="adamw8bit"), dict(quantize="int8"), dict(quantize="nf4"), dict(averages=0),
        dict(batch=1), dict(time="fold"), dict(rank=4),
    ):  # fmt: skip
        assert memory.plan(known, settings(**whole | change)).total < before, change


def test_advice_fits_and_is_needed():
    """Every advice makes the plan fit; where there is none the setup fits, or nothing does."""
    tiny = TINY["z-image"]
    wanted = settings(batch=256, accumulation=1, checkpointing=False, resolution=1024, targets="all")
    total = memory.plan(tiny, wanted).total / GIB
    assert table.advice(tiny, wanted, total + 0.01) == ""
    assert table.advice(tiny, wanted, 1) is None
    found = set()
    for card in (1.51 + (total - 1.51) * k / 12 for k in range(12)):
        flags = table.advice(tiny, wanted, card)
        new = {f: s for f, s, _ in table.changes(wanted)}.get(flags)
        assert new is None or memory.plan(tiny, new).total <= card * GIB
        assert flags != ""
        found.add(flags)
    assert "--checkpointing" in found and len(found) >= 3
    many = settings(batch=64, accumulation=3)
    batches = [new for flags, new, _ in table.changes(many) if flags == "--batch 1 --accumulation 192"]
    assert [(new.training.batch, new.training.accumulation) for new in batches] == [(1, 192)]


def test_full_training_is_never_told_to_quantise():
    full = table.changes(settings(mode="full"))
    assert not any(new.memory.quantize != "none" for _, new, _ in full)
    assert any(cards == 8 for _, _, cards in full)


def test_sharding():
    tiny, wanted = TINY["qwen-image"], settings(mode="full", dtype="fp32")
    one, four = memory.plan(tiny, wanted), memory.plan(tiny, wanted, 4)
    assert four.items["gradients"] == one.items["gradients"] / 4
    assert four.items["activations"] == one.items["activations"]
    assert four.items["blocks gathered by FSDP"] > 0 and "blocks gathered by FSDP" not in one.items
    known = backbone("qwen-image")
    model = memory.skeleton(known)
    loading = memory.passing(model, f"{known.core.time.name}.")  # beside which the text encoder's 15.4 GiB stand in the plan
    largest = 12 * 3072 * 6 * 3072
    assert largest < loading < 1.2 * largest
    assert memory.plan(known, wanted, 8).host_peak < memory.plan(known, wanted).host_peak / 4


def test_table_and_command_line(capsys):
    """The trainer's own options, without data, without weights."""
    options = ["--model", "sana-0.6b", "--resolution", "256", "--rank", "4", "--no-checkpointing", "--plan"]
    assert main("lora", options) == 0
    text = capsys.readouterr().out
    for part in ("LoRA rank 4", "weights (bf16)", "activations", "on disk", " 12 GB  fits", " 80 GB  fits"):
        assert part in text
    assert main("full", ["--model", "sana-0.6b", "--resolution", "256", "--plan", "4"]) == 0
    assert "4 cards" in capsys.readouterr().out
    assert main("lora", ["--model", "digits", "--plan"]) == 0
    assert "digits: LoRA rank 8 on all" in capsys.readouterr().out
    assert main("lora", ["--model", "digits", "--plan", "0"]) == 2
    assert "--plan is 0; expected 1 card or more" in capsys.readouterr().err


def test_swapped_blocks_leave_the_card():
    tiny = TINY["qwen-image"]
    model = memory.skeleton(tiny)
    whole, two = memory.plan(tiny, settings()), memory.plan(tiny, settings(block_swap=2))
    away = sum(p.numel() for block in model.transformer_blocks[:2] for p in block.parameters()) * 2
    assert whole.items["weights (bf16)"] - two.items["weights (bf16)"] == away
    assert two.items["visiting blocks"] == away  # two at a time, and these are as large as each other
    assert any("--block-swap" in flags for flags, _, _ in table.changes(settings(), blocks=60))


def test_cache_on_disk():
    """A 1024 px latent is 0.5 MB and 256 tokens x 3584 are 1.8 MB (shared/training.md)."""
    assert (
        memory.plan(backbone("qwen-image"), settings(mode="full", resolution=1024)).cache == 16 * 128 * 128 * 2 + 256 * 3584 * 2
    )


def test_resolution_must_suit_the_model():
    with pytest.raises(TrainerError, match="resolution is 1000; expected a multiple of 32"):
        memory.plan(backbone("sana"), settings(resolution=1000))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_settings_of_the_class(name):
    """No setting that the class would ignore or refuse."""
    known = backbone(name)
    assert set(known.size.config) <= set(inspect.signature(getattr(diffusers, known.transformer_class).__init__).parameters)


def test_the_largest_resolution_of_a_data_set_is_planned_for(tmp_path):
    file = tmp_path / "set.toml"
    file.write_text('[[datasets]]\npath = "a"\nresolution = [256, 512]\n[[datasets]]\npath = "b"\n')
    known, planned = backbone("sana-0.6b"), resolve("lora", {"model": "sana-0.6b", "dataset": str(file), "resolution": 384})
    assert memory.image_size(known, planned) == 512
    assert not any("--resolution" in flags for flags, _, _ in table.changes(planned))
    file.write_text('path = "a"\nresolution = [250, 512]')
    with pytest.raises(TrainerError, match="resolution is 250; expected a multiple of 32"):
        memory.image_size(known, planned)


@pytest.mark.parametrize("name", ["sana-0.6b"])
def test_encoding_is_a_stage_of_its_own(name):
    """Each way to make it lighter does; what computes elsewhere takes nothing of the card; the largest stage is the run's."""
    known = backbone(name)
    wanted = dict(model=name, resolution=512, rank=4, encode_batch=4)

    def bytes_of(what, **changes):
        return [v for k, v in memory.plan(known, settings(**wanted | changes)).encoding.items() if what in k]

    images = lambda **changes: bytes_of("images", **changes)[0]
    texts = lambda **changes: bytes_of("captions", **changes)
    assert images() > images(encode_batch=1) > images(encode_batch=1, vae_dtype="bf16")
    assert images(resolution=1024) > images(resolution=1024, vae_tiling=True)
    assert texts(encoders_device="cpu") == [] and texts(encoders_device="cuda") >= texts() == texts(encoders_device="stream")
    assert texts(encoders_dtype="nf4", encoders_device="cuda") < texts(encoders_device="cuda")
    it = memory.plan(known, settings(**wanted))
    assert it.peak == max(it.total, it.grids, *it.encoding.values()) and it.grids < it.total + it.encoding.popitem()[1]
    assert memory.plan(known, settings(**wanted, sample_every=0)).grids == 0


def test_the_autoencoder_is_counted_as_its_real_class_allocates():
    """All that lives at a time, of a real one on the CPU, against the count on fake tensors."""
    from trainer.backbones.images import ImageCodec
    from trainer.plan import encoding

    known = backbone("z-image")
    small = dict(known.size.vae) | dict(block_out_channels=(32, 32, 64, 64), norm_num_groups=8)
    tiny = TINY["z-image"]
    tiny.size = dataclasses.replace(tiny.size, vae=small)
    counted = encoding.images(tiny, PIXELS, 2, torch.float32, False, False)
    codec = ImageCodec(diffusers.AutoencoderKL(**small))
    with encoding.Live() as live:
        codec.encode_image(torch.zeros(2, 3, PIXELS, PIXELS))
    assert counted == pytest.approx(live.most + nbytes(codec.vae.parameters()), rel=0.05)


@pytest.mark.parametrize("mode, name", [("lora", "digits"), ("full", "digits"), ("lora", "emoji"), ("full", "emoji")])
def test_small_models_have_a_plan_too(mode, name, capsys):
    assert main(mode, ["--model", name, "--plan"]) == 0
    text = capsys.readouterr().out
    assert "host memory" in text and "states to go on from" in text and "weights files" in text and "captions" not in text


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_files_on_disk_are_as_planned(mode, tmp_path):
    """The state and the weights file of a real run."""
    from trainer.config.saved import read_settings
    from trainer.plan import disk
    from trainer.training import checkpoint
    from trainer.weights import files

    few = dict(
        threads=1, base_steps=1, base_batch=8, steps=2, batch=16, save_every=1, sample_every=0, evaluate=0, tracker="none"
    )
    options = ["--model=digits", f"--out={tmp_path}", *(f"--{n.replace('_', '-')}={v}" for n, v in few.items())]
    assert main(mode, options) == 0
    folder = tmp_path / f"digits-{mode}"
    known, done = backbone("digits"), read_settings(folder)
    states = checkpoint.list_all(folder / "checkpoints")
    state = sum(p.stat().st_size for p in [states[0], *states[0].glob("*")] if p.is_file())
    assert disk.states(known, done).each == pytest.approx(state, rel=0.05)
    assert disk.weights(known, done).each == pytest.approx(files.final(folder, done.run.name).stat().st_size, rel=0.05)
