"""One TwinFlow step of the published roles, guidance on, through every family, as each mode trains it."""

from dataclasses import replace

import pytest
import torch

from trainer.config.flat import from_flat
from trainer.weights.trainee import Trainee
from twinflow import objective
from twinflow.presets import OBJECTIVES
from twinflow.roles import share_out

MODES = {
    "lora-two": dict(mode="lora", time="two", rank=2, targets="attention"),
    "lora-fold": dict(mode="lora", time="fold", rank=2, targets="all"),
    "full": dict(mode="full"),
}
ROWS = 4


@pytest.fixture(params=MODES)
def trainee(request, family):
    torch.manual_seed(0)
    made = Trainee(family.backbone, family.plain(), from_flat({**MODES[request.param], "dtype": "fp32"}))
    g = torch.Generator().manual_seed(1)
    for name, p in made.tensors.items():
        if ".lora_B." in name:  # zero at the start, and then lora_A has no gradient
            p.data = torch.randn(p.shape, generator=g) * 0.05
    return made


def step(family, trainee):
    """The loss, and the gradients by name."""
    x, cond, uncond = family.batch(ROWS)
    settings = replace(OBJECTIVES["twinflow"], guidance_ratio=0.5, order=2)
    draws = objective.draw(x, settings, torch.Generator().manual_seed(2))
    roles = share_out(ROWS, settings.roles)
    loss = objective.loss(objective.Networks(trainee.network), objective.Batch(x, cond, uncond), settings, roles, draws)
    trainee.network.zero_grad(set_to_none=True)
    loss.total.backward()
    return loss, {name: p.grad for name, p in trainee.network.named_parameters()}


def test_every_intended_parameter_has_a_gradient_and_no_other(family, trainee):
    loss, gradients = step(family, trainee)
    assert loss.total.isfinite() and set(loss.terms) == {"one_step", "multi_step", "any_step", "fake", "rectify"}
    assert all(term.isfinite() for term in loss.terms.values())
    idle = tuple(f"model.{name}." for name in family.backbone.idle(trainee.network.model))
    trained = {name for name in gradients if name in trainee.tensors}
    assert trained and not [name for name in trained if name.startswith(idle or ("\0",))]
    for name, gradient in gradients.items():
        if name in trained:
            assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0, name
        else:
            assert gradient is None, name
    second = [name for name in trained if name.startswith(f"model.{family.backbone.core.time.name}.")]
    assert bool(second) == (trainee.time == "two")
    if trainee.settings.mode == "full":  # all but the idle
        assert {n for n in gradients if not n.startswith(idle or ("\0",))} == trained


def test_what_is_idle_would_get_no_gradient(family):
    """So `idle` names neither too much nor, by the test above, too little."""
    trainee = Trainee(family.backbone, family.plain(), from_flat(dict(mode="full", dtype="fp32")))
    trainee.network.requires_grad_(True)
    _, gradients = step(family, trainee)
    idle = tuple(f"model.{name}." for name in family.backbone.idle(trainee.network.model))
    silent = {name for name, g in gradients.items() if g is None or not g.abs().sum()}
    assert silent == {name for name in gradients if name.startswith(idle or ("\0",))}


def test_gradient_checkpointing_changes_nothing(family, trainee):
    plain, gradients = step(family, trainee)
    model, calls = trainee.network.model, []
    model.enable_gradient_checkpointing()
    checkpoint = model._gradient_checkpointing_func
    model._gradient_checkpointing_func = lambda *args: calls.append(args) or checkpoint(*args)
    again, checkpointed = step(family, trainee)
    assert calls
    torch.testing.assert_close(again.total, plain.total, rtol=1e-5, atol=1e-6)
    for name in trainee.tensors:
        torch.testing.assert_close(checkpointed[name], gradients[name], rtol=1e-4, atol=1e-6)


def test_the_twin_is_told_from_the_real_one(family, trainee):
    """Z-Image hears |u| in the released code, and then they are the same: ours hears the sign, and t >= 0 as before."""
    x, cond, _ = family.batch(2)
    t = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        real, fake = (trainee.network(x, s, s, cond) for s in (t, -t))
        assert (real - fake).abs().max() > 1e-4
        if family.backbone.name == "z-image" and trainee.time == "two":
            trainee.network.model.t_embedder.signed = False
            assert torch.equal(trainee.network(x, t, t, cond), real)
            assert torch.equal(trainee.network(x, -t, -t, cond), real)
