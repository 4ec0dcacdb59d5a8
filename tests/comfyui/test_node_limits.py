"""Every input of every node, from its schema alone: all that its range allows works, nothing else does, and NaN never."""

import math
import random

import pytest
import tiny
import torch

WIDGETS = "INT", "FLOAT", "COMBO", "STRING", "BOOLEAN"
FILES = {"TwinFlowModelLoader": "limits_two.safetensors", "TwinFlowLoraLoader": "limits_lora.safetensors"}
PARTS = "TwinFlowSchedule", "TwinFlowUnifiedSampler"
SHAPE = (1, 16, 1, 8, 8)
LEAST_SEED = -(2**63)


@pytest.fixture(scope="module")
def values(comfy, goldens):
    """A value for every type of input that is no widget, and one for every combo of files."""
    golden = tiny.read(goldens, "qwen")
    unets, loras, prompts = (comfy.models / name for name in ("diffusion_models", "loras", "prompts"))
    tiny.save(golden.weights, unets / FILES["TwinFlowModelLoader"])
    parts = tiny.lora(golden.weights, ("attn.to_q",))
    tensors = {f"diffusion_model.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab, strict=True)}
    tiny.save(tensors, loras / FILES["TwinFlowLoraLoader"])
    tiny.save({"a.embeds": torch.randn(2, 64)}, prompts / "limits.safetensors", {"twinflow.prompts": '{"a": "a"}'})
    load = comfy.nodes["TwinFlowModelLoader"].execute
    return {
        "MODEL": lambda: load(model_name=FILES["TwinFlowModelLoader"], weight_dtype="float32").args[0],
        "CONDITIONING": lambda: golden.conditioning(),
        "LATENT": lambda: {"samples": torch.zeros(SHAPE)},
        "SIGMAS": lambda: torch.tensor([1.0, 0.5, 0.0]),
        "SAMPLER": lambda: sampler(comfy),
        "VAE": lambda: None,
        "file": {
            "model_name": FILES["TwinFlowModelLoader"],
            "lora_name": FILES["TwinFlowLoraLoader"],
            "adapter": "none",
        },
    }


def sampler(comfy, **options):
    usual = dict(style="few", order="1", noise="constant", stochasticity=1.0, extrapolation=0.0)
    return comfy.nodes["TwinFlowUnifiedSampler"].execute(**usual | options).args[0]


def nodes_of(comfy):
    return {node.define_schema().node_id: node for node in comfy.part("nodes").NODES}


def inputs_of(node):
    return {own.id: own for own in node.define_schema().inputs}


def usual(node_id, node, values, *, optional=False):
    """Inputs that the node works with: each widget's default, a value for each type."""
    found = {}
    for name, own in inputs_of(node).items():
        kind = str(own.io_type)
        if name in node.files:
            prompts = node_id == "TwinFlowCachedPrompt"
            found[name] = values["file"].get(name, "limits.safetensors" if prompts else FILES["TwinFlowModelLoader"])
        elif kind in WIDGETS:
            default = own.default if own.default is not None else own.options[0]
            found[name] = default
        elif optional or not own.optional:
            assert kind in values, f"{node_id}.{name}: this test knows no {kind} yet"
            found[name] = values[kind]()
    if node_id == "TwinFlowEmojiImage":
        found["latent"] = {"samples": torch.zeros(1, 12, 16, 16)}
    return {name: value for name, value in found.items() if value is not None}


def within(own, rng=None):
    """The ends of the range that a widget allows, or a random value of it."""
    if str(own.io_type) == "COMBO":
        return [rng.choice(own.options)] if rng else own.options
    if str(own.io_type) not in ("INT", "FLOAT"):
        return []
    if rng is None:
        return [own.min, own.max]
    ends = [own.min, own.max, min(own.max, own.min + (own.step or 1))]
    inner = rng.randint(own.min, own.max) if str(own.io_type) == "INT" else rng.uniform(own.min, own.max)
    return [rng.choice([*ends, inner])]


def finite(value):
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, torch.Tensor) or bool(value.float().isfinite().all())


def refused(node, inputs, name):
    with pytest.raises(ValueError) as error:
        node.execute(**inputs)
    text = str(error.value)
    assert name in text and "\n" not in text and len(text) < 300, text


def test_ends_of_every_range(comfy, values):
    tried = 0
    for node_id, node in nodes_of(comfy).items():
        for name, own in inputs_of(node).items():
            if name in node.files:
                continue
            seeds = [LEAST_SEED, -753306448484336] if name == "seed" else []  # as core's Int node draws them
            for value in [*within(own), *seeds]:
                inputs = usual(node_id, node, values) | {name: value}
                if skipped(node_id, inputs):
                    continue
                assert finite(node.execute(**inputs).args), (node_id, name, value)
                tried += 1
    assert tried > 80


def skipped(node_id, inputs):
    """What another input must be given for, and says so."""
    asks_for_more = inputs.get("cfg", 1) != 1 and "negative" not in inputs
    no_settings = "by the file" in inputs.get("preset", "")
    return node_id == "TwinFlowSampleLatent" and (asks_for_more or no_settings)


def test_ranges_together(comfy, values):
    """Of the nodes that are quick, many random settings: ends, and numbers between them."""
    rng, tried = random.Random(5), 0
    for node_id in ("TwinFlowSchedule", "TwinFlowUnifiedSampler", "TwinFlowSampleLatent", "TwinFlowModelPatch"):
        node = nodes_of(comfy)[node_id]
        for _ in range(300 if node_id == "TwinFlowSchedule" else 12):
            inputs = usual(node_id, node, values, optional=rng.random() < 0.5)
            inputs |= {name: rng_value for name, own in inputs_of(node).items() for rng_value in within(own, rng)}
            if skipped(node_id, inputs):
                continue
            (out,) = node.execute(**inputs).args[:1]
            assert finite(out), (node_id, inputs)
            if node_id == "TwinFlowSchedule":
                assert len(out) == 0 or (out[-1] == 0 and out[0] <= 1 and (out.diff() < 0).all()), inputs
            tried += 1
    assert tried > 300


@pytest.mark.parametrize("seed", range(3))
def test_any_schedule_with_any_sampler(comfy, values, seed):
    """The whole way to a latent, with settings from the whole of both nodes' ranges."""
    rng, nodes = random.Random(seed), nodes_of(comfy)
    model = values["MODEL"]()
    for _ in range(25):
        settings = [
            {name: value for name, own in inputs_of(nodes[node_id]).items() for value in within(own, rng)} for node_id in PARTS
        ]
        settings[0] |= dict(preset="custom", steps=rng.choice([1, 2, 3, 5, 12, 40]))
        sigmas, sampler = (
            nodes[k].execute(**s).args[0] for k, s in zip(("TwinFlowSchedule", "TwinFlowUnifiedSampler"), settings)
        )
        inputs = usual("TwinFlowSampleLatent", nodes["TwinFlowSampleLatent"], values)
        out = nodes["TwinFlowSampleLatent"].execute(**inputs | dict(model=model, sigmas=sigmas, sampler=sampler)).args[0]
        assert out["samples"].isfinite().all(), settings


def test_numbers_out_of_range(comfy, values):
    tried = 0
    for node_id, node in nodes_of(comfy).items():
        for name, own in inputs_of(node).items():
            if str(own.io_type) in ("INT", "FLOAT"):
                wrong = [
                    math.nan,
                    math.inf,
                    -math.inf,
                    own.max + 1,
                    (LEAST_SEED if name == "seed" else own.min) - 1,
                    "1",
                    10**400,
                ]
            elif str(own.io_type) == "COMBO" and name not in node.files:
                wrong = ["no such", "", math.nan]
            else:
                continue
            for value in wrong:
                refused(node, usual(node_id, node, values) | {name: value}, name)
                tried += 1
    assert tried > 150


def spoilt(kind, value, number):
    """The same with one number that is none, in each of its parts."""
    if kind == "SIGMAS":
        yield torch.where(torch.arange(len(value)) == 1, number, value)
    elif kind == "LATENT":
        yield {"samples": value["samples"].clone().index_fill_(0, torch.tensor([0]), number)}
        yield {**value, "noise_mask": torch.full((1, 1, 8, 8), number)}
    elif kind == "CONDITIONING":
        (embeds, extra), *_ = value
        yield [[embeds + number, extra]]
        yield [*value, [embeds, {**extra, "pooled_output": torch.full((1, 8), number)}]]
        yield [[embeds, {**extra, "strength": number}]]
        yield [[embeds, {**extra, "reference_latents": [torch.full(SHAPE, number)]}]]


def test_no_nan_inside(comfy, values):
    tried = set()
    for node_id, node in nodes_of(comfy).items():
        inputs = usual(node_id, node, values, optional=True)
        for name, own in inputs_of(node).items():
            for number in (math.nan, math.inf):
                for value in spoilt(str(own.io_type), inputs.get(name), number):
                    refused(node, inputs | {name: value}, name)
                    tried.add((node_id, name))
    assert len(tried) >= 8, tried


@pytest.mark.parametrize("where", ["positive", "negative", "noise", "cfg", "mask", "latent", "sigmas"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_nan_through_core_s_nodes(comfy, values, run, where, number):
    """Which hand prompts, noise and masks to the sampler without a look."""
    prompt, latent = values["CONDITIONING"](), values["LATENT"]()
    bad = lambda name, value: next(spoilt(name, value, number)) if where in ("latent", "sigmas") else value
    spoil = lambda name: next(spoilt("CONDITIONING", prompt, number)) if where == name else prompt
    cfg = {"cfg": number}.get(where, 2.0)
    guider = run("CFGGuider", model=values["MODEL"](), positive=spoil("positive"), negative=spoil("negative"), cfg=cfg)[0]
    latent = bad("LATENT", latent) if where == "latent" else latent
    latent |= {"noise_mask": torch.full((1, 1, 8, 8), number)} if where == "mask" else {}
    sigmas = bad("SIGMAS", values["SIGMAS"]()) if where == "sigmas" else values["SIGMAS"]()
    noise = tiny.FixedNoise(torch.full(SHAPE, number if where == "noise" else 1.0))
    parts = dict(noise=noise, guider=guider, sampler=sampler(comfy), sigmas=sigmas, latent_image=latent)
    with pytest.raises(ValueError, match=where) as error:
        run("SamplerCustomAdvanced", **parts)
    assert "\n" not in str(error.value)


def test_a_model_that_answers_nan(comfy, values):
    """Damage that no header shows: the picture is not passed on black."""
    model = values["MODEL"]().clone()
    model.set_model_unet_function_wrapper(lambda apply, a: apply(a["input"], a["timestep"], **a["c"]) * math.nan)
    inputs = usual("TwinFlowSampleLatent", nodes_of(comfy)["TwinFlowSampleLatent"], values)
    refused(nodes_of(comfy)["TwinFlowSampleLatent"], inputs | {"model": model}, "what Qwen-Image drew")


@pytest.mark.parametrize(
    "folder, key", [("loras", "lora_A.weight"), ("diffusion_models", "img_in.weight"), ("prompts", "a.embeds")]
)
def test_no_nan_in_files(comfy, values, folder, key):
    from safetensors import safe_open

    name, node_id, field = {
        "loras": (FILES["TwinFlowLoraLoader"], "TwinFlowLoraLoader", "lora_name"),
        "diffusion_models": (FILES["TwinFlowModelLoader"], "TwinFlowModelLoader", "model_name"),
        "prompts": ("limits.safetensors", "TwinFlowCachedPrompt", "file"),
    }[folder]
    with safe_open(comfy.models / folder / name, "pt") as file:
        tensors, about = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
    found = next(k for k in tensors if k.endswith(key))
    tensors[found].view(-1)[tensors[found].numel() // 2] = math.nan
    tiny.save(tensors, comfy.models / folder / "bad.safetensors", about)
    node = nodes_of(comfy)[node_id]
    refused(node, usual(node_id, node, values) | {field: "bad.safetensors"}, "bad.safetensors")


def test_a_large_lora_is_looked_at_whole(comfy, values):
    module = "diffusion_model.transformer_blocks.0.attn.to_q"
    tensors = {f"{module}.lora_A.weight": torch.randn(2**15, 32), f"{module}.lora_B.weight": torch.randn(32, 2**15)}
    tensors[f"{module}.lora_A.weight"][12345, 6] = math.nan
    tiny.save(tensors, comfy.models / "loras" / "large.safetensors")
    node = nodes_of(comfy)["TwinFlowLoraLoader"]
    refused(
        node, usual("TwinFlowLoraLoader", node, values) | {"lora_name": "large.safetensors"}, "large.safetensors: has values"
    )


SIZES = {"wide": (1, 16, 1, 8, 2**27), "large": (1, 16, 1, 2**15, 2**15), "many": (4096, 16, 1, 256, 256)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("node_id", ["TwinFlowSampleLatent", "TwinFlowVelocityFields"])
def test_absurd_sizes_are_refused_before_memory_is_taken(comfy, values, size, node_id):
    node = nodes_of(comfy)[node_id]
    latent = {"samples": torch.zeros(1).expand(SIZES[size])}  # of four bytes
    refused(node, usual(node_id, node, values) | {"latent_image": latent}, "GB")
