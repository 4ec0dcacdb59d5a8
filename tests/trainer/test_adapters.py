"""What is trained, who teaches, and what is written, on the digits transformer."""

import pytest
import torch

from trainer.backbones.digits import BACKBONES
from trainer.config.resolving import resolve
from trainer.training import optimizers
from trainer.weights import lora
from trainer.weights.teachers import WithWeights
from trainer.weights.trainee import Trainee, VelocityModel
from twinflow.weights import WeightsError


def plain():
    torch.manual_seed(0)
    model = BACKBONES["digits"].fresh(torch.Generator().manual_seed(0))
    for p in model.parameters():  # nothing zero: every layer must matter
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def trainee(mode="lora", **settings):
    made = Trainee(BACKBONES["digits"], plain(), resolve(mode, settings))
    with torch.no_grad():
        for p in made.tensors.values():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return made


def groups_of(made):
    return optimizers.groups_of(made.network, made.tensors, made.settings.training, made.second)


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    x, embeds = torch.randn(3, 3, 8, 8, generator=g), torch.randn(3, 2, 64, generator=g)
    t, r = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.0, 0.4, 0.3])
    return x, t, r, (embeds, torch.ones(3, 2, dtype=torch.bool))


def plain_velocity(x, t, cond):
    return BACKBONES["digits"].velocity(plain(), x, t, cond)


@pytest.mark.parametrize(("mode", "time"), [("lora", "two"), ("lora", "fold"), ("full", "two")])
def test_untrained_it_says_what_the_base_says(mode, time, inputs):
    x, t, _, cond = inputs
    made = Trainee(BACKBONES["digits"], plain(), resolve(mode, {"time": time} if mode == "lora" else {}))
    r = t if time == "two" else torch.zeros_like(t)
    torch.testing.assert_close(made.network(x, t, r, cond), plain_velocity(x, t, cond), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mode", "time"), [("lora", "two"), ("lora", "fold"), ("full", "two")])
def test_the_base_stays_what_it_was_while_training(mode, time, inputs):
    x, t, _, cond = inputs
    made = Trainee(BACKBONES["digits"], plain(), resolve(mode, {"guide": "base"} | ({"time": time} if mode == "lora" else {})))
    base = made.base()
    with torch.no_grad():
        for p in made.tensors.values():
            p.add_(0.1)
    torch.testing.assert_close(base(x, t, t, cond), plain_velocity(x, t, cond), rtol=0, atol=1e-6)


def test_a_folded_base_can_be_asked_at_the_folded_time(inputs):
    x, t, _, cond = inputs
    asked = trainee(time="fold", guide="base", base_time="folded").base()(x, t, t, cond)
    torch.testing.assert_close(asked, plain_velocity(x, t / 2, cond), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"time": "two"}, {"time": "fold"}, {"time": "two", "alpha": 3, "rslora": True, "rank": 4}]
)
def test_the_file_gives_the_network_back(settings, inputs):
    made = trainee(**settings)
    model = plain()
    time = lora.merge(BACKBONES["digits"], model, made.file(made.tensors), "x")
    assert time == settings["time"]
    expected = made.network(*inputs)
    torch.testing.assert_close(VelocityModel(BACKBONES["digits"], model, time)(*inputs), expected, rtol=0, atol=2e-5)
    assert not torch.allclose(VelocityModel(BACKBONES["digits"], plain(), "fold")(*inputs), expected, atol=1e-2)


def test_full_weights_file(inputs):
    made = trainee("full")
    model = plain()
    BACKBONES["digits"].core.time.install(model)
    model.load_state_dict(made.file(made.tensors))
    torch.testing.assert_close(VelocityModel(BACKBONES["digits"], model, "two")(*inputs), made.network(*inputs), rtol=0, atol=0)


def test_other_values_leave_no_trace(inputs):
    made = trainee(dropout=0.5)
    made.network.train()
    before = {name: p.clone() for name, p in made.tensors.items()}
    other = WithWeights(made.network, {name: p.detach() + 0.3 for name, p in made.tensors.items()})
    first, second = other(*inputs), other(*inputs)
    assert torch.equal(first, second), "no dropout in a teacher"
    assert first.grad_fn is None
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in made.tensors.items())
    assert not torch.equal(made.network(*inputs), made.network(*inputs)), "the student still drops"


def test_only_what_is_meant_to_be_trained_gets_a_gradient(inputs):
    for mode, settings in (("lora", {}), ("lora", {"time": "fold", "targets": "attention"}), ("full", {})):
        made = trainee(mode, **settings)
        made.network(*inputs).square().sum().backward()
        last = f"transformer_blocks.{len(made.network.model.transformer_blocks) - 1}."
        for name, p in made.network.named_parameters():
            unused = last in name and any(part in name for part in ("txt_mlp", "to_add_out", "add_q_proj", "norm_added_q"))
            if name in made.tensors and not unused:  # the last block's text goes nowhere
                assert p.grad is not None and p.grad.abs().sum() > 0, name
            elif name not in made.tensors:
                assert p.grad is None and not p.requires_grad, name


def test_targets():
    model = plain()
    everything, attention = BACKBONES["digits"].lora_targets(model, "all"), BACKBONES["digits"].lora_targets(model, "attention")
    assert set(attention) < set(everything) and len(attention) == 8 * len(model.transformer_blocks) - 2
    BACKBONES["digits"].core.time.install(model)
    assert BACKBONES["digits"].lora_targets(model, "all") == everything, "never the second embedder"
    assert BACKBONES["digits"].lora_targets(model, "proj_out, to_q")[-1] == "proj_out"


def test_the_second_embedder_may_have_its_own_rate():
    groups = groups_of(trainee(embedder_lr=0.5, lr=0.25, optimizer="adamw"))
    assert sorted((g["peak"], len(g["params"])) for g in groups)[1] == (0.5, 4)


@pytest.mark.parametrize("fault", ["rank", "unknown", "half"])
def test_an_adapter_of_another_model_is_refused(fault):
    tensors = trainee().file(trainee().tensors)
    name = lora.PREFIX + "proj_out.lora_A.weight"
    if fault == "rank":
        tensors[name] = torch.zeros(8, 5)
    elif fault == "unknown":
        tensors[lora.PREFIX + "nowhere.lora_A.weight"] = tensors[name]
    else:
        del tensors[lora.PREFIX + "proj_out.lora_B.weight"]
    with pytest.raises(WeightsError, match="x.safetensors: the LoRA of .* does not fit digits"):
        lora.merge(BACKBONES["digits"], plain(), tensors, "x.safetensors")


@pytest.mark.parametrize("time", ["two", "fold"])
def test_asking_the_base_between_forward_and_backward_changes_no_gradient(inputs, time):
    x, t, r, cond = inputs
    gradients = []
    for asks in (False, True):
        made = trainee(guide="base", time=time)
        out = made.network(x, t, r, cond)
        if asks:
            made.base()(x, t, t, cond)
        out.square().sum().backward()
        gradients.append({name: p.grad for name, p in made.tensors.items()})
    assert all(g is not None and torch.equal(g, gradients[1][name]) for name, g in gradients[0].items() if g is not None)
    assert {n for n, g in gradients[0].items() if g is not None} == {n for n, g in gradients[1].items() if g is not None}


def test_muon_trains_the_blocks_matrices_and_adamw_all_else():
    made = trainee(optimizer="muon", matrix_lr=0.5, lr=0.25)
    kinds = {id(p): (g["kind"], g["peak"]) for g in groups_of(made) for p in g["params"]}
    assert len(kinds) == len(made.tensors)
    for name, p in made.tensors.items():
        inside = "transformer_blocks." in name and p.ndim == 2
        assert kinds[id(p)] == (("muon", 0.5) if inside else ("adamw", 0.25)), name


def test_other_values_go_where_the_network_is():
    """A frozen copy is made before the network moves to its GPU."""
    layer = torch.nn.Linear(3, 3)
    frozen = {name: p.detach().clone() for name, p in layer.named_parameters()}
    assert {t.device.type for t in WithWeights(layer.to("meta"), frozen).values.values()} == {"meta"}
