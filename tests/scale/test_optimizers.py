"""The 8-bit optimiser: near AdamW, and kept exactly in a checkpoint of plain tensors."""

import pytest
import torch
from torch import nn

from trainer import TrainerError
from trainer.config.sections import Training
from trainer.training import checkpoint, optimizers
from twinflow.weights import load


def made(kind="adamw8bit"):
    torch.manual_seed(0)
    network = nn.ModuleDict({"large": nn.Linear(64, 64), "small": nn.Linear(64, 3)})
    tensors = dict(network.named_parameters())
    groups = [dict(kind=kind, params=list(tensors.values()), lr=1e-2, peak=1e-2)]
    (optimizer,) = optimizers.build(groups, Training(betas=(0.9, 0.99), weight_decay=0.1))
    return network, checkpoint.State(tensors, [optimizer], {})


def step(network, state, number):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(number))
    network["small"](network["large"](x).relu()).square().mean().backward()
    optimizers.set_rate(state.optimizers[0], 1 / (number + 1))
    state.optimizers[0].step()
    state.optimizers[0].zero_grad()
    state.step = number + 1


def test_eight_bits_go_where_adamw_goes():
    pytest.importorskip("torchao")
    ends = []
    for kind in ("adamw", "adamw8bit"):
        network, state = made(kind)
        start = {name: p.detach().clone() for name, p in state.tensors.items()}
        for number in range(5):
            step(network, state, number)
        ends.append(torch.cat([(p.detach() - start[name]).flatten() for name, p in state.tensors.items()]))
    assert torch.cosine_similarity(*ends, dim=0) > 0.98
    assert ends[1].norm() / ends[0].norm() == pytest.approx(1, abs=0.05)


def test_a_checkpoint_holds_eight_bits_and_gives_them_back_exactly(tmp_path):
    pytest.importorskip("torchao")
    network, state = made()
    for number in range(3):
        step(network, state, number)
    saved = load(checkpoint.write(state, tmp_path, "x", 1))
    assert saved["optimizer.0.0.exp_avg.codes"].dtype == torch.uint8
    assert saved["optimizer.0.2.exp_avg"].dtype == torch.float32, "too small to be quantised"
    again, other = made()
    assert checkpoint.restore(other, tmp_path, "x") and other.step == 3
    for number in range(3, 5):
        step(network, state, number)
        step(again, other, number)
    for name, tensor in checkpoint.contents(state).items():
        assert torch.equal(checkpoint.contents(other)[name], tensor), name


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(TrainerError, match="--optimizer adamw8bit: torchao is not installed; pip install torchao"):
        optimizers.check_optimizer("adamw8bit")
