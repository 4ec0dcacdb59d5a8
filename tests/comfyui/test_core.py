"""What the pack takes for granted of ComfyUI, asked of the one that is found.

A test fails with one line: what was taken for granted, where the pack uses it, and what is there instead.
"""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import pytest
import tiny
import torch
from probe import answer, backbone

NODES = Path(__file__).parents[2] / "nodes"
NEWER = {"comfy.ops.mixed_precision_ops", "comfy.ops.QUANT_ALGOS"}  # than 0.3.64, and asked for only where they are there


def granted(what: str, used: str):
    """A test from a function that returns what it found instead, or nothing.  An error that it raises counts, too."""

    def test_of(ask):
        @functools.wraps(ask)
        def test(*args, **kwargs):
            try:
                instead = ask(*args, **kwargs)
            except Exception as error:
                instead = f"{type(error).__name__}: {error}"
            if instead:
                pytest.fail(f"{what} (used in {used}), but: {' '.join(str(instead).split())}", pytrace=False)

        return test

    return test_of


def lacks(function, *args, partly: bool = False, **kwargs) -> str | None:
    """Why a call with these arguments would fail.  partly: with some more, which are not known."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C
        return None
    try:
        (signature.bind_partial if partly else signature.bind)(*args, **kwargs)
    except TypeError as error:
        return f"{function.__module__}.{function.__qualname__}{signature}: {error}"
    return None


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def model(golden, comfy, run):
    """The tiny model with its second time embedder, from core's own loader."""
    file = golden.write(comfy.models / "diffusion_models", tiny.native(golden, comfy), name="core")
    try:
        return run("UNETLoader", unet_name=file, weight_dtype="default")[0]
    except Exception as error:
        pytest.fail(f"core's loader builds no {golden.name} (used in nodes/registry.py): {error}", pytrace=False)


# What every file of nodes/ calls by name


ROOTS = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "server")


def uses(path: Path):
    """(dotted name, file and line, its call or None) of all that a file uses of ComfyUI."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name) or id(node) in inner:
            continue
        parts, root = [], node
        while isinstance(root, ast.Attribute):
            parts, root = [root.attr, *parts], root.value
        name = known.get(root.id, "") if isinstance(root, ast.Name) else ""
        if name.split(".")[0] in ROOTS:
            yield ".".join([name, *parts]), f"nodes/{path.relative_to(NODES)}:{node.lineno}", called.get(id(node))


USES = [use for path in sorted(NODES.rglob("*.py")) for use in uses(path)]


def found(name: str):
    """The object of this dotted name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[n:], value)
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize(("name", "place", "call"), [pytest.param(*use, id=f"{use[1]}-{use[0]}") for use in USES])
def test_it_is_there_and_takes_what_we_give(comfy, name, place, call):
    for file, family in {"z_image": "zimage", "flux2_klein": "flux2", "krea2": "krea2", "qwen_image_21": "qwen21"}.items():
        if place.startswith(f"nodes/backbones/{file}.py"):
            tiny.need_backbone(family, comfy.version)
    if name in NEWER and comfy.version < (0, 4):
        pytest.skip("a newer ComfyUI brought it")

    @granted(f"{name} is there and takes what the pack gives it", place)
    def ask():
        thing = found(name)
        if call is None:
            return None
        given = [a for a in call.args if not isinstance(a, ast.Starred)]
        named = {k.arg: k.value for k in call.keywords if k.arg is not None}
        return lacks(thing, *given, partly=(len(given), len(named)) != (len(call.args), len(call.keywords)), **named)

    ask()


# Detection and loading


@granted("detection asks the classes of supported_models.models in order and takes the first", "nodes/registry.py")
def test_classes_are_asked_in_order(comfy, goldens, monkeypatch):
    import comfy.model_detection as detection
    import comfy.supported_models as stock

    weights, questions = tiny.read(goldens, "qwen").plain, []

    class First(stock.QwenImage):
        @classmethod
        def matches(cls, unet_config, state_dict=None, unet_key_prefix=""):
            questions.append((unet_config.get("image_model"), state_dict is weights))
            return True

    monkeypatch.setattr(detection, "model_config_from_unet_config", inspect.unwrap(detection.model_config_from_unet_config))
    monkeypatch.setattr(stock, "models", [First, *stock.models])
    taken = detection.model_config_from_unet(weights, "")
    if questions != [("qwen_image", True)]:
        return f"asked with {questions}"
    return None if isinstance(taken, First) else f"took {type(taken).__name__}"


@granted("model_config_from_unet asks by the name model_config_from_unet_config", "nodes/registry.py, stand_in_front")
def test_we_stand_in_front(comfy, goldens, monkeypatch):
    import comfy.model_detection as detection

    taken = []
    monkeypatch.setattr(detection, "model_config_from_unet_config", lambda *a, **k: taken.append(a) or object.__new__(Config))

    class Config:
        quant_config = None

    detection.model_config_from_unet(tiny.read(goldens, "qwen").weights, "")
    return None if taken else "it asks in another way"


@granted("core's loader takes metadata and disable_dynamic where core asks for models that are not dynamic", "nodes/loading.py")
def test_loader(comfy):
    import comfy.model_patcher as patchers
    import comfy.sd as sd

    asks = hasattr(getattr(patchers, "ModelPatcherDynamic", None), "get_non_dynamic_delegate")  # since 0.15
    newer = {"metadata": {}, "disable_dynamic": True} if asks else {}
    return lacks(sd.load_diffusion_model_state_dict, {}, model_options={}, **newer)


@granted("a stock model hands unet_model to BaseModel, in place of which ours gets in", "nodes/registry.py, WithNetwork")
def test_our_network_gets_in(golden, comfy, model):
    network = model.model.diffusion_model
    two = comfy.part("nodes.backbones").TwoTimes
    return None if isinstance(network, two) else f"{golden.name}: {type(model.model).__name__} has a {type(network).__name__}"


@granted("a network's constructor has the settings that we change for small models", "settings() in nodes/backbones")
def test_settings_are_arguments(golden, comfy):
    record, kind = backbone(golden, comfy)
    settings = comfy.part("nodes.registry").settings_of(record, kind, tiny.native(golden, comfy), "")
    takes = {name for c in kind.network.__mro__[1:] for name in inspect.signature(c.__init__).parameters}
    if golden.name == "flux2":  # which hands them to a dataclass
        from comfy.ldm.flux.model import FluxParams

        takes |= set(inspect.signature(FluxParams).parameters)
    return None if settings.keys() <= takes else f"{kind.network.__name__} takes no {', '.join(settings.keys() - takes)}"


# A forward


@granted("apply_model gives the network timestep(sigma) in float32, and transformer_options", "nodes/backbones, with_pair")
def test_time_reaches_the_network(golden, comfy, model, monkeypatch):
    network, seen = model.model.diffusion_model, []
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda x, t, *a, **k: seen.append((t, k)) or forward(x, t, *a, **k))
    answer(golden, comfy, model, r=0.2)
    ((t, given),) = seen
    scale = comfy.part("twinflow.backbones").find(golden.weights).native_scale
    if t.dtype != torch.float32 or not torch.allclose(t, torch.tensor([0.7 * scale])):
        return f"{golden.name}: sigma 0.7 came as {t} ({t.dtype})"
    key = comfy.part("nodes.times").KEY
    return None if key in given.get("transformer_options", {}) else f"{golden.name}: got {', '.join(given)}"


@granted("the network calls its time embedder once, with the time times its scale", "twinflow/backbones, native_time")
def test_time_reaches_the_embedder(golden, comfy, model, monkeypatch):
    from_ours = comfy.part("twinflow.time_embedding").Pair
    entry = comfy.part("twinflow.backbones").find(golden.weights).native_time
    embedder, seen = entry.of(model.model.diffusion_model), []
    forward = embedder.forward
    monkeypatch.setattr(embedder, "forward", lambda *a, **k: seen.append(a) or forward(*a, **k))
    answer(golden, comfy, model, r=0.7)
    wanted = entry.times(from_ours(torch.tensor([0.7]), torch.tensor([0.7])))[0]
    if len(seen) != 1:
        return f"{golden.name}: called {len(seen)} times"
    time = seen[0][entry.argument][:1]  # Qwen-Image-2.1 puts a row of time 0 behind it
    wanted = wanted if entry.sinusoid is None else entry.sinusoid(wanted)
    return None if torch.allclose(time.float(), wanted, rtol=1e-3) else f"{golden.name}: got {time}, not {wanted}"


@granted("a target time in transformer_options changes what the network answers", "nodes/backbones, with_pair")
def test_target_time_is_heard(golden, comfy, model):
    far, near = answer(golden, comfy, model, r=0.0), answer(golden, comfy, model, r=0.7)
    return f"{golden.name}: r = 0 and r = t give the same" if torch.allclose(far, near, atol=1e-5) else None


@granted("MMDiT is 64 times its depth wide, and has y_embedder", "nodes/backbones/sd3.py, Heads and WithPooled")
def test_sd3_width(comfy, goldens, run):
    golden = tiny.read(goldens, "sd3")
    file = golden.write(comfy.models / "diffusion_models", tiny.native(golden, comfy), name="width")
    network = run("UNETLoader", unet_name=file, weight_dtype="default")[0].model.diffusion_model
    width = golden.weights["pos_embed.proj.weight"].shape[0]
    return None if network.hidden_size == width and network.y_embedder else f"{network.hidden_size} in place of {width}"


@granted("the model counts flow-matching time: x0 = x - sigma v, noise scaled by sigma", "nodes/comfy_sampler.py")
def test_flow_matching(golden, comfy, model):
    import comfy.model_sampling as sampling

    own, sigma = model.model.model_sampling, torch.tensor([0.6])
    x, v = torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0)
    if not isinstance(own, sampling.CONST):
        return f"{golden.name}: model_sampling is {[c.__name__ for c in type(own).__mro__]}"
    if not torch.allclose(own.calculate_denoised(sigma, v, x), x - 0.6 * v):
        return f"{golden.name}: x0 is {own.calculate_denoised(sigma, v, x).flatten()[0]}"
    noise = own.noise_scaling(sigma, v.clone(), torch.zeros_like(v))
    return None if torch.allclose(noise, 0.6 * v) else f"{golden.name}: noise is scaled by {noise.flatten()[0] / 3}"


@granted("APPLY_MODEL wrappers get x, t, c_concat, c_crossattn, control, transformer_options", "nodes/time_conditioning.py")
def test_apply_model_wrapper(golden, comfy, model):
    import comfy.patcher_extension as extension

    seen = []
    model = model.clone()

    def wrapper(executor, *args, **kwargs):
        seen.append(args)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(extension.WrappersMP.APPLY_MODEL, "test", wrapper)
    answer(golden, comfy, model, r=0.2)
    if not seen or len(seen[0]) < 6 or not isinstance(seen[0][5], dict):
        return f"{golden.name}: {[type(a).__name__ for a in seen[0]] if seen else 'was not called'}"
    model.remove_wrappers_with_key(extension.WrappersMP.APPLY_MODEL, "test")


# Sampling, LoRA


@granted("a KSAMPLER's function gets model, x, sigmas, extra_args, callback, disable and its options", "nodes/comfy_sampler.py")
def test_sampler_function(comfy, goldens, run):
    import comfy.sample as sampling
    import comfy.samplers as samplers
    import latent_preview

    seen: dict = {}

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        base = model.inner_model.inner_model
        seen.update(options, base=type(base).__name__, extra=set(extra_args or {}), latent=model.latent_image)
        assert callback is not None, "no callback is given"
        callback({"i": 0, "x": x, "denoised": x, "sigma": sigmas[0], "sigma_hat": sigmas[0]})
        return x

    golden = tiny.read(goldens, "qwen")
    file = golden.write(comfy.models / "diffusion_models", tiny.native(golden, comfy), name="function")
    patcher = run("UNETLoader", unet_name=file, weight_dtype="default")[0]
    latent = torch.zeros(1, 16, 1, 4, 4)
    steps = []
    sampling.sample_custom(
        patcher,
        sampling.prepare_noise(latent, 1, None),
        1.0,
        samplers.KSAMPLER(function, extra_options={"own": 1}),
        torch.tensor([1.0, 0.0]),
        golden.conditioning(),
        golden.conditioning(),
        latent,
        callback=lambda step, x0, x, total: steps.append((step, total)),
        seed=1,
    )
    assert latent_preview.prepare_callback(patcher, 1)
    if steps != [(0, 1)]:
        return f"the callback was given {steps}"
    if not {"model_options", "seed"} <= seen["extra"] or seen["own"] != 1 or seen["latent"] is None:
        return str(seen)


@granted("an empty latent of four channels is given the model's", "nodes/sampler.py")
def test_empty_latents(golden, model):
    import comfy.sample as sampling

    empty = torch.zeros(1, 4, 8, 8)
    scales = {name: 8 for name in inspect.signature(sampling.fix_empty_latent_channels).parameters if name.endswith("_spacial")}
    shape = sampling.fix_empty_latent_channels(model, empty, **scales).shape
    return None if shape == golden.latents(1) else f"{golden.name}: {tuple(shape)}"


@granted("load_lora(lora, to_load) gives a LoRAAdapter by key, its weights up, down, alpha, mid, dora", "nodes/lora.py")
def test_load_lora(comfy):
    import comfy.lora as loras

    up, down = torch.randn(4, 2), torch.randn(2, 3)
    parts = {"m.lora_up.weight": up, "m.lora_down.weight": down, "m.alpha": torch.tensor(2.0)}
    adapter = loras.load_lora(parts, {"m": "a.weight"}).get("a.weight")
    weights = getattr(adapter, "weights", ())
    if (
        type(adapter).__name__ != "LoRAAdapter"
        or len(weights) < 5
        or weights[0] is not up
        or weights[1] is not down
        or weights[4]
    ):
        return f"{type(adapter).__name__} with {len(weights)} weights"
    made = adapter.calculate_weight(torch.zeros(4, 3), "a.weight", 1.0, 1.0, None, lambda a: a, torch.float32, None)
    return None if torch.allclose(made, up @ down, atol=1e-5) else "alpha / rank is not the scale"
