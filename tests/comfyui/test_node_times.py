"""The pair (t, r) in ComfyUI's own classes: exact, for one forward and one thread only, and the stock class at r = t."""

import threading

import pytest
import tiny
import torch


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def load(golden, comfy, run):
    def load(dtype="float32"):
        file = golden.write(comfy.models / "diffusion_models", golden.weights, name="times")
        return run("TwinFlowModelLoader", model_name=file, weight_dtype=dtype)[0].model

    return load


@pytest.fixture
def forward(golden, comfy):
    """The network's output at (t, r), or as the stock class answers where r is None."""

    def forward(model, t: list[float], r: list[float] | None = None, network=None):
        dtype = model.get_dtype()
        t, scale = torch.tensor(t), float(model.model_sampling.timestep(torch.tensor(0.5))) / 0.5
        x = golden.tensors["x"][: len(t)].to(dtype)
        cond = golden.tensors["c0"][: len(t)].to(dtype)
        extra = {"zimage": dict(num_tokens=cond.shape[1]), "sd3": dict(y=golden.tensors["c1"][: len(t)].to(dtype))}
        options = {}
        if r is not None:
            options["twinflow"] = comfy.part("nodes.times").TimeConditioning(target=torch.tensor(r))
        arguments = dict(context=cond, transformer_options=options, **extra.get(golden.name, {}))
        x = x.unsqueeze(2) if golden.name == "qwen" else x
        with torch.no_grad():
            return (model.diffusion_model if network is None else network)(x, t * scale, **arguments)

    return forward


def test_r_equal_to_t_is_the_stock_forward(load, forward):
    """To the last bit, since the second time embedder's part is multiplied by zero."""
    model = load()
    t = [0.7310, 0.2477]
    stock = forward(model, t)
    assert torch.equal(forward(model, t, t), stock)
    assert not torch.allclose(forward(model, t, [0.0, 0.1]), stock, rtol=1e-2)


def times_seen(model, monkeypatch) -> list[torch.Tensor]:
    """What the two time embedders are asked at, in the order of the calls."""
    embedder, seen = model.diffusion_model.backbone.native_time.of(model.diffusion_model), []
    original = embedder._with_time
    monkeypatch.setattr(embedder, "_with_time", lambda args, time, whole: seen.append(time) or original(args, time, whole))
    return seen


def test_times_are_exact_in_bfloat16(golden, load, forward, monkeypatch):
    model = load("bfloat16")
    assert next(model.diffusion_model.parameters()).dtype == torch.bfloat16
    seen = times_seen(model, monkeypatch)
    t, r = 0.9990234, 0.3010234  # bfloat16 has 0.9961 or 1, and 0.3008 or 0.3027
    forward(model, [t], [r])
    wanted = {"qwen": [r, t], "sd3": [1000 * r, 1000 * t], "zimage": [1000 * (t - r), 1000 * (1 - t)]}
    wanted = (wanted | dict.fromkeys(("flux2", "krea2"), wanted["sd3"]) | {"qwen21": wanted["qwen"]})[golden.name]
    assert [time.item() for time in seen] == pytest.approx(wanted, rel=1e-6 if golden.name != "zimage" else 1e-4)
    assert all(time.dtype in (torch.float32, torch.float64) for time in seen)


def test_two_threads_keep_their_times(load, forward):
    """One model, two threads in turn: each forward has its own pair, or none."""
    model, wanted, got = load(), {}, {}
    cases = {"jump": ([0.8], [0.0]), "small": ([0.8], [0.7]), "stock": ([0.8], None)}
    for name, case in cases.items():
        wanted[name] = forward(model, *case)
    start = threading.Barrier(len(cases))

    def work(name):
        start.wait()
        got[name] = [forward(model, *cases[name]) for _ in range(8)]

    threads = [threading.Thread(target=work, args=(name,)) for name in cases]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(out, wanted[name]) for name in cases for out in got[name])
    assert not torch.allclose(wanted["jump"], wanted["stock"], rtol=1e-2)


@pytest.mark.parametrize("golden", ["sd3"], indirect=True)  # the one with most beside the time; a minute for each
def test_compiled(load, forward):
    """torch.compile of the diffusion model, as core's TorchCompileModel does it."""
    model = load()
    torch._dynamo.reset()
    compiled = torch.compile(model.diffusion_model, backend="eager")
    for case in (([0.8, 0.6], [0.0, 0.5]), ([0.7, 0.3], [0.2, 0.1])):
        torch.testing.assert_close(forward(model, *case, network=compiled), forward(model, *case))
    torch._dynamo.reset()


def test_reference_images_take_no_target_time(golden, load, forward, monkeypatch):
    """Rows that the class adds for reference images keep the stock class's time."""
    model = load()
    embedder = model.diffusion_model.backbone.native_time.of(model.diffusion_model)
    argument = torch.tensor([0.8, 0.0]) if embedder.entry.rows == "first" else torch.tensor([0.0, 0.8])
    more = {"qwen": (torch.zeros(2, 4),), "flux2": (), "krea2": ()}.get(golden.name, (torch.float32,))
    time = argument * 1000 if embedder.entry.sinusoid is None else embedder.entry.sinusoid(argument * 1000)
    with torch.no_grad():
        stock = embedder(time, *more)
        both = embedder.at(torch.tensor([0.8]), torch.tensor([0.1]), embedder, time, *more)
    sample, reference = (0, 1) if embedder.entry.rows == "first" else (1, 0)
    assert torch.equal(both[reference], stock[reference])
    assert not torch.equal(both[sample], stock[sample])


def test_qwen_image_21_keeps_its_text_from_step_to_step(comfy, goldens, run):
    """Text hears time 0, and not r: what core keeps of it in the first step is right in the others."""
    tiny.need_backbone("qwen21", comfy.version)
    golden = tiny.read(goldens, "qwen21")
    path = golden.write(comfy.models / "diffusion_models", golden.weights, name="kept")
    model = run("TwinFlowModelLoader", model_name=path)[0]
    anew = model.clone()
    anew.model_options["transformer_options"]["qwen_image21_cache"] = {"device": "off"}
    kept, made = (tiny.sampled(run, each, golden) for each in (model, anew))
    assert kept.isfinite().all() and tiny.rms(kept, made) < 1e-5


def test_krea_s_second_call_is_of_the_references(comfy, goldens, run, monkeypatch):
    """index_timestep_zero: core asks the embedder again, at 0, for the reference images' tokens."""
    tiny.need_backbone("krea2", comfy.version)
    golden = tiny.read(goldens, "krea2")
    file = golden.write(comfy.models / "diffusion_models", golden.weights, name="references")
    network = run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0].model.diffusion_model
    x, t = golden.tensors["x"], torch.tensor([0.8, 0.6])
    given = dict(context=golden.tensors["c0"], ref_latents=[x[:1] * 0.3], ref_latents_method="index_timestep_zero")
    embedder, heard = network.backbone.native_time.of(network), []
    embedder.register_forward_hook(lambda _, args, out: heard.append(out))

    @torch.no_grad()
    def velocity(r):
        ask = lambda: network._forward.__wrapped__(network, x, t, **given)
        heard.clear()
        return ask() if r is None else embedder.at(t, torch.tensor(r), ask)

    stock = velocity(None)
    _, zero = heard
    assert torch.equal(velocity([0.8, 0.6]), stock)
    assert not torch.allclose(velocity([0.0, 0.1]), stock, rtol=1e-2) and torch.equal(heard[1], zero)
