"""Time conditioning: (t, r) beside the time argument, in the present backbones and in toys of each awkward kind."""

import copy
import json
import pickle
import threading
from pathlib import Path

import diffusers
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from trainer.backbones import backbone
from twinflow.backbones import all_backbones
from twinflow.time_embedding import COMPILED, SecondEmbedder, TwoTimeEmbedder, fold, sinusoid, to_signal

GOLDENS = Path(__file__).parents[1] / "goldens" / "data"
BACKBONES = {  # command-line name: file of the record, diffusers' class, tiny configuration, a layer of the embedder
    "qwen-image": ("qwen_image", "QwenImageTransformer2DModel", "qwen", "timestep_embedder.linear_1"),
    "z-image": ("z_image", "ZImageTransformer2DModel", "zimage", "mlp.0"),
    "sd3.5": ("sd3", "SD3Transformer2DModel", "sd3", "text_embedder.linear_2"),
    "sana": ("sana", "SanaTransformer2DModel", "sana", "linear"),
}
T, R = torch.tensor([0.999, 0.4]), torch.tensor([0.3, 0.0])


def record(name):
    return all_backbones()[BACKBONES[name][0]]


def tiny(name):
    _, cls, file, _ = BACKBONES[name]
    return getattr(diffusers, cls)(**json.loads((GOLDENS / f"{file}.json").read_text())["config"]).eval()


@pytest.fixture(scope="module", params=list(BACKBONES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def models(name):
    """The plain model, the one with both embedders, ask(model, t) and ask_both(model, t, r)."""
    file = BACKBONES[name][2]
    weights = {k: v.float() for k, v in load_file(GOLDENS / f"{file}_weights.safetensors").items()}
    tensors = load_file(GOLDENS / f"{file}.safetensors")
    plain, two, time = tiny(name), tiny(name), record(name).time
    time.install(two)
    two.load_state_dict(weights)
    plain.load_state_dict({k: v for k, v in weights.items() if k in plain.state_dict()})
    cond = tensors["c0"], tensors["c1"] if name == "sd3.5" else tensors["c1"].bool()
    velocity = backbone(name).velocity

    def ask(model, t=T):
        return velocity(model, tensors["x"], t, cond)

    def ask_both(model, t=T, r=R):
        return time.of(model).at(t, r, velocity, model, tensors["x"], t, cond)

    return plain, two, ask, ask_both


@torch.no_grad()
def test_the_embedding_is_the_formula_written_out(name, models):
    """E(t) + (t - r) E_r(r), Z-Image's E(u) + |u - w| E_r(w - u), from what the two embedders were given and gave."""
    _, two, _, ask_both = models
    embedder, seen = record(name).time.of(two), []
    hooks = [m.register_forward_hook(lambda m, args, out: seen.append((args[0], out))) for m in (*embedder._held, embedder)]
    try:
        ask_both(two)
    finally:
        for hook in hooks:
            hook.remove()
    (r_in, there), (t_in, here), (_, total) = seen
    if name == "z-image":
        u, w = to_signal(T), to_signal(R)
        asked, gap = (u * 1000, (w - u) * 1000), (u - w).abs()
    else:
        scale = 1.0 if name == "qwen-image" else 1000.0
        asked, gap = (T * scale, R * scale), T - R
    assert torch.equal(t_in.float(), asked[0])
    torch.testing.assert_close(r_in.float(), asked[1], rtol=1e-6, atol=1e-6)
    several = lambda out: out if isinstance(out, tuple) else (out,)
    for a, b, c in zip(several(here), several(there), several(total), strict=True):
        torch.testing.assert_close(c, a + gap[:, None] * b, rtol=0, atol=1e-6)


@torch.no_grad()
def test_qwen_image_in_bfloat16_is_given_float32_times():
    model, time = tiny("qwen-image"), record("qwen-image").time
    time.install(model)
    model.bfloat16()
    tensors, seen = load_file(GOLDENS / "qwen.safetensors"), []
    for part in (model.time_text_embed_2, model.time_text_embed):
        part.time_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    cond = tensors["c0"], tensors["c1"].bool()
    time.of(model).at(T, R, backbone("qwen-image").velocity, model, tensors["x"], T, cond)
    assert [s.dtype for s in seen] == [torch.float32] * 2 and torch.equal(torch.stack(seen), torch.stack([R, T]))
    assert not torch.equal(T.bfloat16().float(), T)


@torch.no_grad()
def test_at_equal_times_the_second_embedder_adds_nothing_to_the_last_bit(models):
    plain, two, ask, ask_both = models
    for t in (T, torch.tensor([1.0, 0.05])):
        assert torch.equal(ask_both(two, t, t), ask(plain, t))
    assert not torch.allclose(ask_both(two, T, R), ask_both(two, T, T))


@torch.no_grad()
def test_the_backbone_still_takes_one_time(models):
    plain, two, ask, _ = models
    assert torch.equal(ask(two), ask(plain))


def test_every_original_parameter_keeps_its_name_and_appears_once(name, models):
    plain, two, *_ = models
    time = record(name).time
    own = {time.name + k.removeprefix(time.embedder) for k in plain.state_dict() if k.startswith(time.embedder + ".")}
    assert set(two.state_dict()) == set(plain.state_dict()) | own and own
    assert len(list(two.named_parameters(remove_duplicate=False))) == len(list(two.parameters()))


@torch.no_grad()
def test_a_layer_that_peft_replaces_in_the_embedder_is_used(name, models):
    _, two, _, ask_both = models
    before, model = ask_both(two), copy.deepcopy(two)
    target = f"{record(name).time.embedder}.{BACKBONES[name][3]}"
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[target], init_lora_weights=False), model)
    assert f"{target}.lora_A.default.weight" in model.state_dict()
    assert not torch.allclose(ask_both(model), before, atol=1e-4)
    for p in (p for n, p in model.named_parameters() if "lora_B" in n):
        p.zero_()
    assert torch.equal(ask_both(model), before)


@torch.no_grad()
def test_a_deep_copy_stands_on_its_own(name, models):
    _, two, _, ask_both = models
    before, model = ask_both(two), copy.deepcopy(two)
    assert torch.equal(ask_both(model), before)
    for p in model.get_submodule(record(name).time.embedder).parameters():
        p.add_(0.1)
    assert torch.equal(ask_both(two), before) and not torch.allclose(ask_both(model), before)


def test_a_new_second_embedder_starts_as_the_backbone_trained_it(name):
    model, time = tiny(name), record(name).time
    first = {k: v.clone() for k, v in model.get_submodule(time.embedder).state_dict().items()}
    for key, p in time.install(model).state_dict().items():
        if name in ("qwen-image", "z-image"):
            assert torch.equal(p, first[key]), key
        elif key.endswith("bias"):
            assert not p.any(), key
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.2) and abs(p.mean()) < 0.004, key


def test_gradients_reach_both_embedders(name, models):
    _, two, _, ask_both = models
    model, time = copy.deepcopy(two), record(name).time
    ask_both(model).square().mean().backward()
    for part in (time.embedder, time.name):
        assert all(p.grad.abs().sum() > 0 for p in model.get_submodule(part).parameters()), part


@torch.no_grad()
def test_z_image_distinguishes_the_fake_trajectory_only_when_signed():
    tensors, model, time = load_file(GOLDENS / "zimage.safetensors"), tiny("z-image"), record("z-image").time
    time.install(model)
    model.load_state_dict({k: v.float() for k, v in load_file(GOLDENS / "zimage_weights.safetensors").items()})
    cond = tensors["c0"], tensors["c1"].bool()
    ask = lambda t: time.of(model).at(t, t, backbone("z-image").velocity, model, tensors["x"], t, cond)
    signed = ask(T)
    assert not torch.allclose(ask(-T), signed)
    time.of(model).signed = False
    assert torch.equal(ask(T), signed) and torch.equal(ask(-T), signed)


def test_signal_time_runs_from_the_noise_and_sends_zero_there():
    assert to_signal(torch.tensor([1.0, 0.25, 0.0, -0.25, -1.0])).tolist() == [0, 0.75, 0, -0.75, 0]


def test_folding_keeps_the_few_step_time():
    assert torch.equal(fold(T, torch.zeros(2)), T) and torch.equal(fold(T, T), T / 2)


# Toys: what a host may do with its time before and after its embedder.


class Embedder(nn.Module):
    """Sinusoid and a layer; deeper: one more dimension of the output; pair: a tuple of two outputs."""

    def __init__(self, features=True, deeper=False, pair=False):
        super().__init__()
        self.features, self.deeper, self.pair = features, deeper, pair
        self.layer = nn.Linear(16, 8)

    def forward(self, time):
        f = sinusoid(time, 16) if self.features else time
        out = self.layer(f.to(self.layer.weight.dtype))
        out = out[:, None] if self.deeper else out
        return (out, out.sin()) if self.pair else out


class SecondArgument(Embedder):
    def forward(self, x, time):
        return super().forward(time) + x.mean()


class Host(nn.Module):
    """host(embedder, t) -> the output; the rest of the forward is one layer."""

    def __init__(self, call, embedder=None):
        super().__init__()
        self.inner, self.out, self.call = nn.Module(), nn.Linear(8, 8), call
        self.inner.embed = embedder or Embedder()

    def forward(self, t):
        return self.out(self.call(self.inner.embed, t))


def plain_call(embed, t):
    return embed(t * 1000)


def sinusoid_outside(embed, t):
    return embed(sinusoid(t * 1000, 16))


def sinusoid_unsqueezed(embed, t):
    return embed(sinusoid(t * 1000, 16)[:, None])[:, 0]


def row_after(embed, t):
    out = embed(torch.cat([t, t.new_zeros(1)]) * 1000)
    return out[:-1] + out[-1]


def row_before(embed, t):
    out = embed(torch.cat([t.new_zeros(1), t]) * 1000)
    return out[1:] + out[0]


def second_call(embed, t):
    return embed(t * 1000) + embed(0 * t)


def tuple_output(embed, t):
    a, b = embed(t * 1000)
    return a + b


def deeper_output(embed, t):
    return embed(t * 1000)[:, 0]


def second_argument(embed, t):
    return embed(torch.ones(3), t * 1000)


def rounded_outside(embed, t):
    return embed(t.bfloat16() * 1000)


features = lambda time: sinusoid(time, 16)
TOYS = {  # the call, its embedder, what the record states
    "plain": (plain_call, Embedder, {}),
    "sinusoid outside": (sinusoid_outside, lambda: Embedder(False), dict(sinusoid=features)),
    "sinusoid (B, 1, width)": (sinusoid_unsqueezed, lambda: Embedder(False), dict(sinusoid=features)),
    "row after": (row_after, Embedder, {}),
    "row before": (row_before, Embedder, dict(rows="last")),
    "second call": (second_call, Embedder, {}),
    "tuple": (tuple_output, lambda: Embedder(pair=True), {}),
    "one more dimension": (deeper_output, lambda: Embedder(deeper=True), {}),
    "second argument": (second_argument, SecondArgument, dict(argument=1)),
    "rounded outside": (rounded_outside, Embedder, {}),
}


def toy(kind="plain", seed=0):
    torch.manual_seed(seed)
    call, embedder, given = TOYS[kind]
    model, time = Host(call, embedder()), SecondEmbedder("inner.embed", "inner.embed_2", scale=1000.0, init="normal", **given)
    plain = copy.deepcopy(model)
    for p in time.install(model).parameters():
        nn.init.normal_(p)
    return plain, model, time


def both(model, time, t=T, r=R):
    return time.of(model).at(t, r, model, t)


def by_hand(model, t, r, kind="plain"):
    """out(E(t) + (t - r) E_r(r)) and what else the host adds, from the two embedders alone."""
    first, second = model.inner.embed._held
    call = TOYS[kind][0] if kind != "rounded outside" else plain_call
    term = call(second, r)
    if kind in ("row after", "row before", "second call"):  # the host's own zero time belongs to no sample
        term = term - second(torch.zeros(1))
    return model.out(call(first, t) + (t - r)[:, None] * term)


@torch.no_grad()
@pytest.mark.parametrize("kind", TOYS)
def test_toys_add_the_second_embedder_and_nothing_at_equal_times(kind):
    plain, model, time = toy(kind)
    if kind == "rounded outside":  # what the host rounds reaches neither embedder
        plain.call = plain_call
    assert torch.equal(both(model, time, T, T), plain(T))
    torch.testing.assert_close(both(model, time), by_hand(model, T, R, kind), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both(model, time), plain(T), atol=1e-2)


@torch.no_grad()
def test_bfloat16_models_get_the_times_in_float32():
    _, model, time = toy("rounded outside")
    model.bfloat16()
    seen = []
    for embed in model.inner.embed._held:
        embed.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    both(model, time)
    assert sorted(s.tolist() for s in seen) == sorted([(T * 1000).tolist(), (R * 1000).tolist()])
    assert all(s.dtype == torch.float32 for s in seen)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_forward_has_the_same_gradients(reentrant):
    _, model, time = toy()
    grads = []
    for run in (
        lambda: both(model, time),
        lambda: checkpoint(lambda t: both(model, time, t), T.clone().requires_grad_(), use_reentrant=reentrant),
    ):
        model.zero_grad()
        run().square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@torch.no_grad()
def test_functional_call_uses_the_given_weights_of_both_embedders():
    _, model, time = toy()
    other = {k: v + 0.1 for k, v in model.state_dict().items()}
    moved = copy.deepcopy(model)
    moved.load_state_dict(other)
    out = time.of(model).at(T, R, functional_call, model, other, (T,))
    assert torch.equal(out, both(moved, time))


@torch.no_grad()
@pytest.mark.parametrize("engine", ["eager", "aot_eager"])
@pytest.mark.parametrize("inside", [True, False], ids=["the model", "all of it"])
def test_compiled_models_follow_every_pair(engine, inside):
    torch._dynamo.reset()
    _, model, time = toy()
    if inside:
        compiled = torch.compile(model, backend=engine, fullgraph=COMPILED)
        run = lambda t, r: time.of(model).at(t, r, compiled, t)
    else:
        run = torch.compile(lambda t, r: time.of(model).at(t, r, model, t), backend=engine, fullgraph=COMPILED)
    for t, r in ((T, R), (T, T), (R, T), (T, 0.5 * R)):
        torch.testing.assert_close(run(t, r), both(model, time, t, r))
    if inside:
        torch.testing.assert_close(compiled(T), model(T))
    torch._dynamo.reset()


@torch.no_grad()
def test_two_threads_on_one_model_keep_their_own_times():
    _, model, time = toy()
    pairs = [(T, R), (R + 0.5, T / 2)]
    want, wrong = [both(model, time, *p) for p in pairs], []

    def work(i):
        with torch.no_grad():
            wrong.extend(i for _ in range(500) if not torch.equal(both(model, time, *pairs[i]), want[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_two_models_in_one_graph_and_one_inside_the_other():
    (_, a, time), (_, b, _) = toy(seed=0), toy(seed=1)
    apart = both(b, time, both(a, time).mean(-1), R)
    nested = time.of(b).at(m := both(a, time).mean(-1), R, lambda: (both(a, time), b(m))[1])
    assert torch.equal(nested, apart)
    apart.sum().backward()
    assert all(p.grad is not None for model in (a, b) for p in model.parameters())


@torch.no_grad()
def test_an_exception_leaves_nothing_behind():
    plain, model, time = toy()

    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        time.of(model).at(T, R, fail)
    assert torch.equal(model(T), plain(T))


@torch.no_grad()
def test_a_nested_forward_of_the_same_model_leaves_the_outer_its_pair():
    _, model, time = toy()
    want = both(model, time)
    assert torch.equal(time.of(model).at(T, R, lambda: (both(model, time, R, T), model(T))[1]), want)


@torch.no_grad()
def test_pickled_models_keep_both_embedders():
    _, model, time = toy()
    again = pickle.loads(pickle.dumps(model.inner.embed))
    assert isinstance(again, TwoTimeEmbedder)
    assert torch.equal(again.at(T, R, again, T * 1000), model.inner.embed.at(T, R, model.inner.embed, T * 1000))


def test_refusals_name_what_is_wrong():
    _, model, time = toy()
    with pytest.raises(ValueError, match="already has 'inner.embed_2'; a second time embedder is installed once"):
        time.install(model)
    with pytest.raises(ValueError, match="Host has no second time embedder; install one"):
        time.of(Host(plain_call))
    for own in (
        lambda e: e.register_parameter("scale", nn.Parameter(torch.ones(1))),
        lambda e: e.register_buffer("scale", torch.ones(1)),
    ):
        host = Host(plain_call)
        own(host.inner.embed)
        with pytest.raises(ValueError, match=r"parameters or buffers of its own \(scale\)"):
            time.install(host)
        assert not time.installed(host)
