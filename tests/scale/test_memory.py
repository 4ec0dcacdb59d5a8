"""Quantised bases, block swap, checkpointing and bf16: what is trained learns, and what is frozen stays."""

import gc
import weakref

import pytest
import torch
from torch import nn

from trainer import TrainerError
from trainer.cli import main
from trainer.training import checkpoint
from trainer.weights import block_swap, quantise
from trainer.weights.teachers import WithWeights
from trainer.weights.trainee import Trainee
from twinflow import objective as twinflow
from twinflow.objective import Objective
from twinflow.roles import share_out
from twinflow.weights import load

from .tiny import LAYERS, batch, config, plain

OBJECTIVE = Objective(guidance_ratio=0.5, dt=0.05)
FLOW_MATCHING = Objective(roles=dict(multi_step=1), order=0, rectify=0.0, loss="l2")  # whose loss says how well it is learnt
STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "fp8-cast": torch.float8_e4m3fn}


def trainee(name="qwen-image", mode="lora", **settings):
    backbone, model = plain(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Trainee(backbone, model, config(mode, **settings))
        with torch.no_grad():
            for p in made.tensors.values():
                p.add_(0.02 * torch.randn_like(p))
    return made


def loss(made, name="qwen-image", teacher=None, objective=OBJECTIVE):
    x, cond, uncond = batch(name, 4)
    draws = twinflow.draw(x, objective, torch.Generator().manual_seed(0))
    roles = share_out(4, objective.roles)
    return twinflow.loss(
        twinflow.Networks(made.network, teacher), twinflow.Batch(x, cond, uncond), objective, roles, draws
    ).total


def gradients(made, *args, **kwargs):
    value = loss(made, *args, **kwargs)
    value.backward()
    return value.detach(), {name: p.grad for name, p in made.tensors.items()}


def frozen_bytes(made):
    """All that is not trained, as bytes."""
    found = {}
    for name, p in made.network.named_parameters():
        if name not in made.tensors:
            parts = [getattr(p, n) for n in p.__tensor_flatten__()[0]] if hasattr(p, "__tensor_flatten__") else [p.data]
            found[name] = [part.contiguous().view(torch.uint8).clone() for part in parts if isinstance(part, torch.Tensor)]
    return found


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-cast"])
@pytest.mark.parametrize("name", ["qwen-image", "sd3.5"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_lora_learns_on_a_quantised_base(name, kind, dtype):
    if kind != "fp8-cast":
        pytest.importorskip("torchao")
    made = trainee(name, quantize=kind, dtype=dtype)
    before = frozen_bytes(made)
    optimizer = torch.optim.AdamW(made.tensors.values(), lr=1e-2)
    losses = []
    for _ in range(6):
        value = loss(made, name, objective=FLOW_MATCHING)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.97 * losses[0], losses
    after = frozen_bytes(made)
    assert before.keys() == after.keys()
    assert all(torch.equal(a, b) for key in before for a, b in zip(before[key], after[key], strict=True))


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-cast"])
def test_only_the_blocks_linear_layers_are_quantised(kind):
    if kind != "fp8-cast":
        pytest.importorskip("torchao")
    network = trainee(quantize=kind, targets="all", dtype="bf16").network
    for name, module in network.model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            weight = module.weight
            stored = getattr(weight, "qdata", weight).dtype
            inside = name.startswith("transformer_blocks.")
            whole = torch.float32 if name.startswith("time_text_embed_2.") else torch.bfloat16
            assert stored == (STORED[kind] if inside else whole), name


@pytest.mark.parametrize("kind", ["int8", "fp8", "fp8-cast"])
def test_a_quantised_base_says_nearly_what_it_said(kind):
    if kind != "fp8-cast":
        pytest.importorskip("torchao")
    (x, cond, _), t = batch("qwen-image", 4), torch.tensor([0.9, 0.6, 0.3, 0.1])
    plain_v, v = (trainee(quantize=k).network(x, t, t / 2, cond) for k in ("none", kind))
    assert 0 < (v - plain_v).norm() / plain_v.norm() < 0.05


def test_nf4_wants_a_gpu():
    pytest.importorskip("bitsandbytes")
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(TrainerError, match="nf4: needs an NVIDIA GPU"):
        trainee(quantize="nf4")


def test_nf4_layers_pass_gradients(monkeypatch):
    """The GPU's road, taken on the CPU, which bitsandbytes can do as well, slowly."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(quantise, "check_quantisation", lambda kind: None)
    made = trainee(quantize="nf4", dtype="bf16")
    made.network.to("cpu")
    weight = made.network.model.transformer_blocks[0].attn.to_q.base_layer.weight
    assert weight.dtype == torch.uint8 and weight.quant_state.nested
    wanted, found = gradients(trainee(dtype="bf16")), gradients(made)
    assert abs(found[0] - wanted[0]) < 0.05 * wanted[0]
    for name, gradient in wanted[1].items():
        assert torch.cosine_similarity(found[1][name].flatten(), gradient.flatten(), dim=0) > 0.9, name


def test_a_run_with_all_of_it(tmp_path):
    """From the command line, resumed halfway."""
    pytest.importorskip("torchao")
    options = (
        "--threads 1 --base-steps 2 --steps 4 --batch 8 --save-every 2 --sample-every 2 --evaluate 0 --tracker none".split()
    )
    options += "--quantize int8 --dtype bf16 --checkpointing --block-swap 2 --optimizer adamw8bit --out".split() + [
        str(tmp_path)
    ]
    assert main("lora", options) == 0
    folder = tmp_path / "digits-lora"
    weights = load(folder / "digits-lora.safetensors")
    (folder / "metrics.json").unlink()
    checkpoint.newest(folder / "checkpoints").unlink()
    assert main("lora", options) == 0
    again = load(folder / "digits-lora.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    assert main("lora", [*options, "--quantize", "fp8"]) == 0  # a frozen base in other bits is the same base


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    kind = "int8" if package == "torchao" else "nf4"
    with pytest.raises(TrainerError, match=f"--quantize {kind}: {package} is not installed; pip install {package}"):
        trainee(quantize=kind)


@pytest.mark.parametrize("name", ["qwen-image", "sd3.5"])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_checkpointing_changes_no_gradient(name, mode):
    wanted, found = (gradients(trainee(name, mode, checkpointing=on), name) for on in (False, True))
    assert torch.equal(wanted[0], found[0])
    for key, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=0, atol=1e-6 * gradient.abs().max().item())


class Residents:
    """Counts the blocks whose weights are on the device: in the module, or held by the autograd graph."""

    def __init__(self, monkeypatch):
        self.alive, self.most, self.visits = {}, 0, 0
        arrive = block_swap.Weight.arrive

        def counted(weight, device):
            arrive(weight, device)
            visit = weight.module._parameters[weight.name]
            block = next(i for i, own in enumerate(self.swap.weights) if any(w is weight for w in own))
            self.visits += 1
            self.alive[self.visits] = block
            weakref.finalize(visit, self.alive.pop, self.visits)
            self.most = max(self.most, len(set(self.alive.values())))

        monkeypatch.setattr(block_swap.Weight, "arrive", counted)


@pytest.mark.parametrize("kind", ["none", "int8", "fp8-cast"])
@pytest.mark.parametrize("name", ["qwen-image", "sd3.5"])
def test_swapped_blocks_train_alike_one_resident_at_a_time(name, kind, monkeypatch):
    if kind == "int8":
        pytest.importorskip("torchao")
    wanted = trainee(name, checkpointing=True, quantize=kind)
    residents = Residents(monkeypatch)
    swapped = trainee(name, checkpointing=True, quantize=kind, block_swap=LAYERS)
    residents.swap = swapped.swap
    results = []
    for made in (wanted, swapped):
        gc.collect()
        teacher = WithWeights(made.network, {key: p.detach() * 0.9 for key, p in made.tensors.items()})
        results.append(gradients(made, name, teacher=teacher))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(gradient, results[1][1][key]) for key, gradient in results[0][1].items())
    assert residents.visits > 5 * LAYERS and residents.most == 1
    assert not residents.alive, "all have left"
    away = [(w.module, w.name) for own in swapped.swap.weights for w in own]
    assert away and all(module._parameters[name] is None for module, name in away)
    swapped.network.to("cpu")  # as accelerate does: nothing that is away moves
    assert all(module._parameters[name] is None for module, name in away)


def test_some_blocks_stay(monkeypatch):
    made = trainee(checkpointing=True, block_swap=2)
    names = {n for n, p in made.network.model.transformer_blocks.named_parameters() if ".lora_" not in n}
    assert names and all(name.startswith("2.") for name in names)


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("lora", dict(block_swap=2), "--block-swap needs --checkpointing"),
        ("lora", dict(block_swap=9, checkpointing=True), "--block-swap is 9; expected at most 3"),
        ("lora", dict(block_swap=1, checkpointing=True, quantize="nf4"), "--block-swap cannot move nf4"),
        ("full", dict(quantize="int8"), "--quantize means nothing to trainer.full"),
    ],
)
def test_what_cannot_be_is_said_at_once(mode, settings, message):
    with pytest.raises(TrainerError, match=message):
        trainee(mode=mode, **settings)


@pytest.mark.parametrize("name", ["qwen-image", "sd3.5"])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_bf16_is_near_fp32_and_trains_in_fp32(name, mode):
    wanted, made = trainee(name, mode, dtype="fp32"), trainee(name, mode, dtype="bf16")
    assert all(p.dtype == torch.float32 for p in made.tensors.values())
    frozen = [p.dtype for key, p in made.network.named_parameters() if key not in made.tensors]
    assert set(frozen) == {torch.bfloat16 if mode == "lora" else torch.float32}
    (value, expected), (low, found) = gradients(wanted, name), gradients(made, name)
    assert abs(low - value) < 0.05 * value
    together = [torch.cat([g.flatten() for g in gs.values()]) for gs in (expected, found)]
    assert together[1].isfinite().all()
    assert torch.cosine_similarity(*together, dim=0) > 0.95
