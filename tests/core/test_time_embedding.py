"""Both times in a backbone: exact transport, and embedders that stand in for the backbone's own without hiding it."""

import copy
import importlib
import json
from pathlib import Path

import diffusers
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file

from twinflow.time_embedding import SECOND_EMBEDDERS, fold, stack, to_signal

GOLDENS = Path(__file__).parents[1] / "goldens" / "data"
BACKBONES = {  # name: diffusers' class, file of its tiny configuration, our module, a layer of the embedder
    "qwen-image": ("QwenImageTransformer2DModel", "qwen", "qwen_image", "timestep_embedder.linear_1"),
    "z-image": ("ZImageTransformer2DModel", "zimage", "z_image", "mlp.0"),
    "sd3.5": ("SD3Transformer2DModel", "sd3", "sd3", "text_embedder.linear_2"),
    "sana": ("SanaTransformer2DModel", "sana", "sana", "linear"),  # a direct child of the embedder
}
T, R = torch.tensor([0.999, 0.4]), torch.tensor([0.3, 0.0])


@pytest.fixture(scope="module", params=list(BACKBONES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def models(name):
    """The plain model, the one with both embedders, and velocity(model, t, r, time)."""
    cls, file, module, _ = BACKBONES[name]
    config = json.loads((GOLDENS / f"{file}.json").read_text())["config"]
    weights = {k: v.float() for k, v in load_file(GOLDENS / f"{file}_weights.safetensors").items()}
    tensors = load_file(GOLDENS / f"{file}.safetensors")
    plain, two = (getattr(diffusers, cls)(**config).eval() for _ in range(2))
    SECOND_EMBEDDERS[name].install(two)
    two.load_state_dict(weights)
    plain.load_state_dict({k: v for k, v in weights.items() if k in plain.state_dict()})
    cond = tensors["c0"], tensors["c1"] if name == "sd3.5" else tensors["c1"].bool()
    backbone = importlib.import_module(f"trainer.backbones.{module}")

    @torch.no_grad()
    def velocity(model, t=T, r=R, time="two"):
        return backbone.velocity(model, tensors["x"], t, r, cond, time=time)

    return plain, two, velocity


def test_at_equal_times_the_second_embedder_is_silent_to_the_last_bit(models):
    plain, two, velocity = models
    for t in (T, torch.tensor([1.0, 0.05])):
        assert torch.equal(velocity(two, t, t), velocity(plain, t, 0 * t, time="fold"))
    assert not torch.allclose(velocity(two, T, R), velocity(two, T, T))


def test_the_backbone_still_takes_one_time(models):
    plain, two, velocity = models
    assert torch.equal(velocity(two, time="fold"), velocity(plain, time="fold"))


def test_every_original_parameter_keeps_its_name_and_appears_once(name, models):
    plain, two, _ = models
    second = SECOND_EMBEDDERS[name]
    own = {second.name + k.removeprefix(second.embedder) for k in plain.state_dict() if k.startswith(second.embedder + ".")}
    assert set(two.state_dict()) == set(plain.state_dict()) | own and own
    assert len(list(two.named_parameters(remove_duplicate=False))) == len(list(two.parameters()))


def test_a_layer_that_peft_replaces_in_the_embedder_is_used(name, models):
    _, two, velocity = models
    second, layer = SECOND_EMBEDDERS[name], BACKBONES[name][3]
    before, model = velocity(two), copy.deepcopy(two)
    target = f"{second.embedder}.{layer}"
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[target], init_lora_weights=False), model)
    assert f"{target}.lora_A.default.weight" in model.state_dict()
    after = velocity(model)
    assert not torch.allclose(after, before, atol=1e-4)
    for p in (p for n, p in model.named_parameters() if "lora_B" in n):
        p.data.zero_()
    assert torch.equal(velocity(model), before)


def test_a_deep_copy_stands_on_its_own(name, models):
    _, two, velocity = models
    before, model = velocity(two), copy.deepcopy(two)
    assert torch.equal(velocity(model), before)
    for p in getattr(model, SECOND_EMBEDDERS[name].embedder).parameters():
        p.data.add_(0.1)
    assert torch.equal(velocity(two), before) and not torch.allclose(velocity(model), before)


def test_a_new_second_embedder_starts_as_the_backbone_trained_it(name):
    cls, file, *_ = BACKBONES[name]
    config = json.loads((GOLDENS / f"{file}.json").read_text())["config"]
    model, second = getattr(diffusers, cls)(**config), SECOND_EMBEDDERS[name]
    first = {k: v.clone() for k, v in getattr(model, second.embedder).state_dict().items()}
    target = second.install(model)
    for key, p in target.state_dict().items():
        if name in ("qwen-image", "z-image"):
            assert torch.equal(p, first[key]), key
        elif key.endswith("bias"):
            assert not p.any(), key
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.2) and abs(p.mean()) < 0.004, key
    with pytest.raises(ValueError, match=f"already has '{second.name}'; a second embedder is installed once"):
        second.install(model)


def test_gradients_reach_both_embedders(name, models):
    _, two, _ = models
    cls, file, module, _ = BACKBONES[name]
    tensors, second = load_file(GOLDENS / f"{file}.safetensors"), SECOND_EMBEDDERS[name]
    model, backbone = copy.deepcopy(two), importlib.import_module(f"trainer.backbones.{module}")
    cond = tensors["c0"], tensors["c1"] if name == "sd3.5" else tensors["c1"].bool()
    backbone.velocity(model, tensors["x"], T, R, cond).square().mean().backward()
    for part in (second.embedder, second.name):
        assert all(p.grad.abs().sum() > 0 for p in getattr(model, part).parameters()), part


def test_stacked_times_survive_a_cast_to_bfloat16():
    g = torch.Generator().manual_seed(0)
    t = torch.cat([torch.rand(5000, generator=g) * 2 - 1, torch.tensor([0.999, 1.0, -1.0, 0.0, 1e-6, 1 / 3])])
    r = t.flip(0)
    assert stack(t, r).shape == (len(t), 2)
    terms = stack(t, r, through=torch.bfloat16)
    assert torch.equal(terms, terms.bfloat16().float())
    whole = terms.bfloat16().float().unflatten(-1, (2, -1)).sum(-1)
    assert torch.equal(whole, torch.stack([t, r], -1)) and not torch.equal(t.bfloat16().float(), t)


def test_qwen_image_in_bfloat16_hears_float32_times():
    heard = []
    cls, file, *_ = BACKBONES["qwen-image"]
    config = json.loads((GOLDENS / f"{file}.json").read_text())["config"]
    model = getattr(diffusers, cls)(**config)
    SECOND_EMBEDDERS["qwen-image"].install(model)
    model.bfloat16().time_text_embed.time_proj.register_forward_pre_hook(lambda m, args: heard.append(args[0]))
    tensors = load_file(GOLDENS / f"{file}.safetensors")
    velocity = importlib.import_module("trainer.backbones.qwen_image").velocity
    velocity(model, tensors["x"], T, R, (tensors["c0"], tensors["c1"].bool()))
    velocity(model, tensors["x"], T, R, (tensors["c0"], tensors["c1"].bool()), exact=False)
    assert torch.equal(heard[0], T) and heard[0].dtype == torch.float32
    assert torch.equal(heard[1].float(), T.bfloat16().float())


def test_z_image_tells_the_twin_apart_only_when_signed():
    cls, file, *_ = BACKBONES["z-image"]
    config = json.loads((GOLDENS / f"{file}.json").read_text())["config"]
    model, tensors = getattr(diffusers, cls)(**config), load_file(GOLDENS / f"{file}.safetensors")
    SECOND_EMBEDDERS["z-image"].install(model)
    model.load_state_dict({k: v.float() for k, v in load_file(GOLDENS / f"{file}_weights.safetensors").items()})
    velocity = importlib.import_module("trainer.backbones.z_image").velocity
    ask = lambda t: velocity(model, tensors["x"], t, t, (tensors["c0"], tensors["c1"].bool()))
    with torch.no_grad():
        signed = ask(T)
        assert not torch.allclose(ask(-T), signed)
        model.t_embedder.signed = False
        assert torch.equal(ask(T), signed) and torch.equal(ask(-T), signed)


def test_signal_time_runs_from_the_noise_and_sends_zero_there():
    t = torch.tensor([1.0, 0.25, 0.0, -0.25, -1.0])
    assert to_signal(t).tolist() == [0, 0.75, 0, -0.75, 0]


def test_folding_keeps_the_few_step_time():
    assert torch.equal(fold(T, torch.zeros(2)), T) and torch.equal(fold(T, T), T / 2)
