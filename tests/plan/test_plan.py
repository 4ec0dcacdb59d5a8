"""The plan's figures against published numbers, and against what real tiny models allocate."""

import inspect
from dataclasses import replace

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn
from trainer.plan.sizes import SIZES, size

from trainer import TrainerError
from trainer.cli import main
from trainer.plan import memory
from trainer.plan import table as plan
from trainer.plan.activations import Counter
from trainer.plan.memory import GIB, KEPT_WHOLE, Setup
from trainer.training import optimizers
from trainer.weights.trainee import Trainee

from .tiny import PIXELS, TINY

torch.set_num_threads(1)
SETUP = Setup(rank=8, resolution=PIXELS)


def config_of(setup):
    """What Trainee reads; only memory matters, so the rest is not validated."""
    names = ("mode", "time", "rank", "targets", "optimizer", "dtype")
    own = {name: getattr(setup, name) for name in names} | dict(checkpointing=False)
    return Config.model_construct(**own, guide="base" if setup.frozen_copy else "teacher")


def real(tiny, setup):
    """The trainee of a real model in the setup's dtype."""
    torch.manual_seed(0)
    return Trainee(tiny.backbone, tiny.transformer().to(memory.DTYPES[setup.dtype]), config_of(setup))


def nbytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(
    "name, billions, gib",
    [
        ("qwen-image", 20.43, 38.1),
        ("qwen-image-edit", 20.43, 38.1),
        ("z-image", 6.15, 11.5),
        ("z-image-turbo", 6.15, 11.5),
        ("sd3.5", 2.24, 4.2),
        ("sd3.5-large", 8.06, 15.0),
        ("sana-0.6b", 0.59, 1.1),
        ("sana", 1.60, 3.0),
        ("openuni", 1.60, 3.0),
    ],
)
def test_published_sizes(name, billions, gib):
    """Parameters as published, weights in bf16 to the digits of shared/training.md."""
    model, second = memory.skeleton(SIZES[name]), SIZES[name].backbone.core.time.name + "."
    count = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(second))
    assert round(count / 1e9, 2) == billions
    assert abs(memory.weights(model, second, "bf16", "none") / GIB - gib) < 0.06


@pytest.mark.parametrize("quantize, gib", [("int8", 19.0), ("fp8", 19.0), ("nf4", 9.8)])
def test_published_quantised_weights(quantize, gib):
    model = memory.skeleton(SIZES["qwen-image"])
    assert abs(memory.weights(model, "time_text_embed_2.", "bf16", quantize) / GIB - gib) < 0.2


def test_published_activations():
    """Qwen-Image, a row at 1024 px: computed independently as 2.35 GiB with checkpointing."""
    kept = memory.kept(SIZES["qwen-image"], "full", "", 1, "bf16", 1024)
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
    tiny, setup = TINY[name], replace(SETUP, **change)
    planned, full = memory.plan(tiny, setup), setup.mode == "full"
    trainee = real(tiny, setup)
    trained = list(trainee.tensors.values())
    built = optimizers.build(trainee.groups(), betas=(0.9, 0.999), weight_decay=0.0)
    side = PIXELS // tiny.factor
    x, t, dtype = torch.randn(2, tiny.channels, side, side), torch.tensor([0.7, 0.3]), memory.DTYPES[setup.dtype]
    width = next(getattr(trainee.network.model.config, k) for k in WIDTHS if hasattr(trainee.network.model.config, k))
    embeds = torch.randn(2, 20, width, dtype=dtype)
    second = torch.ones(2, 20, dtype=torch.bool) if not name.startswith("sd3") else torch.randn(2, 40, dtype=dtype)
    trainee.network(x, t, t / 2, (embeds, second)).float().square().mean().backward()
    for optimizer in built:
        optimizer.step()
    got = {
        f"weights ({'fp32' if full else setup.dtype})": nbytes(trainee.network.parameters()) - nbytes(trained) * (not full),
        "adapter": nbytes(trained) * (not full),
        "buffers": nbytes(trainee.network.buffers()),
        "gradients": nbytes(p.grad for p in trained if p.grad is not None),
        f"optimiser ({setup.optimizer})": nbytes(v for o in built for state in o.state.values() for v in state.values()),
        "averages (EMA)": setup.averages * nbytes(trained),
        "frozen copy of the base": nbytes((trainee._base or {}).values()),
    }
    assert planned.trainable == sum(p.numel() for p in trained)
    for item, real_bytes in got.items():
        assert planned.items.get(item, 0) == pytest.approx(real_bytes, rel=0.05), item


WIDTHS = ("joint_attention_dim", "cap_feat_dim", "caption_channels")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("change", [dict(targets="all"), dict(targets="attention"), dict(mode="full", dtype="fp32")], ids=str)
def test_a_real_forward_keeps_as_planned(name, change):
    """Counted on the real model with PEFT's own layers; the stand-in and the fake tensors change nothing."""
    tiny, setup = TINY[name], replace(SETUP, time="fold", **change)
    planned = memory.kept(tiny, setup.mode, setup.targets, setup.rank, setup.dtype, PIXELS)
    model = real(tiny, setup).network.model
    got = Counter(model.train())(tiny.inputs(model, PIXELS, memory.DTYPES[setup.dtype]))
    assert got.whole == pytest.approx(planned.whole, rel=0.05)
    assert got.bytes(True) == pytest.approx(planned.bytes(True), rel=0.05)


@pytest.mark.parametrize("name", TINY)
def test_fp8_weights_are_as_planned(name):
    """Stored by diffusers' layerwise casting, of the same layers."""
    tiny, setup = TINY[name], replace(SETUP, quantize="fp8", time="fold")
    model = tiny.transformer().bfloat16()
    full = nbytes(model.parameters())
    wanted = {name for name, _ in memory.quantised(model)}
    others = [rf"^{n}$".replace(".", r"\.") for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in wanted]
    apply_layerwise_casting(model, torch.float8_e4m3fn, torch.bfloat16, others, (nn.Conv2d, nn.Embedding))
    got = nbytes(model.parameters())
    assert got < 0.95 * full
    assert memory.plan(tiny, setup).items["weights (fp8)"] == pytest.approx(got, rel=0.05)


@pytest.mark.parametrize("name", TINY)
def test_int8_weights_are_as_planned(name):
    """Stored by torchao."""
    quantization = pytest.importorskip("torchao.quantization")
    tiny, setup = TINY[name], replace(SETUP, quantize="int8", time="fold")
    model = tiny.transformer().bfloat16()
    wanted = {name for name, _ in memory.quantised(model)}
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), lambda module, name: name in wanted)
    got = 0
    for p in model.parameters():
        inner = p.__tensor_flatten__()[0] if hasattr(p, "__tensor_flatten__") else ()
        got += nbytes(getattr(p, name) for name in inner) if inner else nbytes([p])
    assert memory.plan(tiny, setup).items["weights (int8)"] == pytest.approx(got, rel=0.05)


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
    """State of bitsandbytes' AdamW, of small tensors and large ones."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tiny, setup = TINY["qwen-image"], replace(SETUP, rank=rank, targets="all", optimizer="adamw8bit")
    trained = list(real(tiny, setup).tensors.values())
    optimizer = bitsandbytes.optim.AdamW8bit(trained)
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    got = nbytes(v for state in optimizer.state.values() for k, v in state.items() if torch.is_tensor(v) and "qmap" not in k)
    assert memory.plan(tiny, setup).items["optimiser (adamw8bit)"] == pytest.approx(got, rel=0.05)


@pytest.mark.parametrize("name", SIZES)
def test_time_embedders_and_last_layers_are_never_quantised(name):
    model = memory.skeleton(SIZES[name])
    names = {n for n, _ in memory.quantised(model)}
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    whole = linear - names
    second = SIZES[name].backbone.core.time
    assert {n for n in linear if n.startswith((second.embedder + ".", second.name + "."))} <= whole
    assert whole and all(KEPT_WHOLE.search(n) for n in whole) and len(names) > 0.8 * len(linear)
    assert any(last in n for last in ("proj_out", "final_layer") for n in whole)


def test_a_setup_is_cheaper_for_each_thing_that_saves():
    whole = Setup(resolution=512, batch=2, checkpointing=False)
    before = memory.plan(SIZES["sana-0.6b"], whole).total
    for change in (
        dict(checkpointing=True), dict(optimizer="adamw8bit"), dict(quantize="int8"), dict(quantize="nf4"), dict(averages=0),
        dict(batch=1), dict(time="fold"), dict(rank=4),
    ):  # fmt: skip
        assert memory.plan(SIZES["sana-0.6b"], replace(whole, **change)).total < before, change


def test_advice_fits_and_is_needed():
    """Every advice makes the plan fit; where there is none the setup fits, or nothing does."""
    tiny = TINY["z-image"]
    setup = replace(SETUP, batch=64, checkpointing=False, resolution=1024, targets="all")
    total = memory.plan(tiny, setup).total / GIB
    assert plan.advice(tiny, setup, total + 0.01) == ""
    assert plan.advice(tiny, setup, 1) is None
    found = set()
    for card in (1.51 + (total - 1.51) * k / 12 for k in range(12)):
        flags = plan.advice(tiny, setup, card)
        new = dict((f, s) for f, s in plan.changes(setup)).get(flags)
        assert new is None or memory.plan(tiny, new).total <= card * GIB
        assert flags != ""
        found.add(flags)
    assert "--checkpointing" in found and len(found) >= 3
    batches = [new for flags, new in plan.changes(replace(setup, accumulation=3)) if flags == "--batch 1 --accumulation 192"]
    assert [new.batch for new in batches] == [1]


def test_full_training_is_never_told_to_quantise():
    assert not any(new.quantize != "none" for _, new in plan.changes(Setup(mode="full")))
    assert any(new.gpus == 8 for _, new in plan.changes(Setup(mode="full")))


def test_sharding():
    tiny, setup = TINY["qwen-image"], replace(SETUP, mode="full", dtype="fp32")
    one, four = memory.plan(tiny, setup), memory.plan(tiny, replace(setup, gpus=4))
    assert four.items["gradients"] == one.items["gradients"] / 4
    assert four.items["activations"] == one.items["activations"]
    assert four.items["blocks gathered by FSDP"] > 0 and "blocks gathered by FSDP" not in one.items


def test_table_and_command_line(capsys):
    """The trainer's own options, without data, without weights."""
    options = ["--model", "sana-0.6b", "--resolution", "256", "--rank", "4", "--no-checkpointing", "--plan"]
    assert main("lora", options) == 0
    text = capsys.readouterr().out
    for part in ("LoRA rank 4", "weights (bf16)", "activations", "on disk", " 12 GB  fits", " 80 GB  fits"):
        assert part in text
    assert main("full", ["--model", "sana-0.6b", "--resolution", "256", "--plan", "4"]) == 0
    assert "4 cards" in capsys.readouterr().out
    assert main("lora", ["--model", "digits", "--plan"]) == 2
    assert "expected one whose size is known: qwen-image" in capsys.readouterr().err


def test_swapped_blocks_leave_the_card():
    tiny, setup = TINY["qwen-image"], replace(SETUP, checkpointing=True)
    model = memory.skeleton(tiny)
    whole, two = memory.plan(tiny, setup), memory.plan(tiny, replace(setup, block_swap=2))
    away = sum(p.numel() for block in model.transformer_blocks[:2] for p in block.parameters()) * 2
    assert whole.items["weights (bf16)"] - two.items["weights (bf16)"] == away
    assert two.items["visiting blocks"] == away  # two at a time, and these are as large as each other
    assert any("--block-swap" in flags for flags, _ in plan.changes(setup, blocks=60))


def test_cache_on_disk():
    """A 1024 px latent is 0.5 MB and 256 tokens x 3584 are 1.8 MB (shared/training.md)."""
    assert memory.plan(SIZES["qwen-image"], Setup(mode="full")).cache == 16 * 128 * 128 * 2 + 256 * 3584 * 2


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mode="half"), "mode is 'half'"),
        (dict(quantize="int3"), "quantize is 'int3'"),
        (dict(mode="full", quantize="int8"), "expected none"),
        (dict(rank=0), "rank is 0"),
        (dict(optimizer="sgd"), "optimizer is 'sgd'; expected one of adamw, adamw8bit, muon"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(TrainerError, match=message):
        Setup(**change)


def test_resolution_must_suit_the_model():
    with pytest.raises(TrainerError, match="resolution is 1000; expected a multiple of 32"):
        memory.plan(SIZES["sana"], Setup(resolution=1000))


def test_sizes_are_settings_of_the_class():
    """No setting that the class would ignore or refuse."""
    import diffusers

    for it in SIZES.values():
        known = inspect.signature(getattr(diffusers, it.backbone.transformer_class).__init__).parameters
        assert set(it.config) <= set(known)
    with pytest.raises(TrainerError, match="known"):
        size("gpt-5")
