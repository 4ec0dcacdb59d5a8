"""LoRAs of every layout that is met: rewritten, applied to the right slices, reported; zero applied is an error."""

import pytest
import tiny
import torch

LAYOUTS = {
    "transformer": "transformer.{}.lora_{}.weight",
    "diffusion_model": "diffusion_model.{}.lora_{}.weight",
    "bare": "{}.lora_{}.weight",
    "peft": "base_model.model.{}.lora_{}.weight",
    "released trainer": "base_model.model.transformer.{}.lora_{}.default.weight",
    "an adapter's name": "transformer.{}.lora_{}.turbo-v2.weight",
    "no ending": "transformer.{}.lora_{}",
    "compiled": "transformer._orig_mod.{}.lora_{}.weight",
    "data parallel": "module.{}.lora_{}.weight",
    "DiffSynth": "pipe.dit.{}.lora_{}.default.weight",
    "kohya": "lora_unet_{}.lora_{}.weight",
    "kohya, two underscores": "lora_unet__{}.lora_{}.weight",
    "OneTrainer": "transformer_{}.lora_{}.weight",
    "musubi": "lora_dit_{}.lora_{}.weight",
}
FLAT = ("kohya", "kohya, two underscores", "OneTrainer", "musubi")
MODULES = {
    "qwen": (
        "attn.to_q",
        "attn.add_v_proj",
        "attn.to_out.0",
        "img_mlp.net.0.proj",
        "img_mod.1",
        "timestep_embedder.linear_1",
        "img_in",
    ),
    "zimage": (
        "attention.to_q",
        "attention.to_k",
        "attention.to_v",
        "attention.to_out.0",
        "feed_forward.w1",
        "t_embedder.mlp.0",
        "all_x_embedder.2-1",
    ),
    "sd3": (
        "attn.to_q",
        "attn.add_k_proj",
        "attn2.to_v",
        "attn.to_out.0",
        "ff.net.2",
        "norm1_context.linear",
        "norm_out.linear",
        "text_embedder.linear_2",
    ),
    "qwen21": (
        "attn.to_q",
        "attn.to_out.0",
        "img_mlp.gate_layer",
        "img_mlp.proj",
        "img_mlp.out",
        "time_text_embed.timestep_embedder.linear_1",
        "txt_in.out_layer",
        "norm_out.linear",
    ),
    "krea2": (
        "attn.to_q",
        "attn.to_gate",
        "attn.to_out.0",
        "ff.gate",
        "ff.down",
        "time_embed.linear_1",
        "time_mod_proj",
        "txt_in.linear_2",
        "final_layer.linear",
    ),
    "flux2": (
        "attn.to_q",
        "attn.add_v_proj",
        "attn.to_qkv_mlp_proj",
        "ff_context.linear_out",
        "double_stream_modulation_txt.linear",
        "timestep_embedder.linear_1",
        "norm_out.linear",
    ),
}


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def base(golden, comfy, run):
    """Plain, as core's loader gives it."""
    weights = {k: v.float() for k, v in native(golden, comfy, golden.plain).items()}
    return run(
        "UNETLoader",
        unet_name=golden.write(comfy.models / "diffusion_models", weights, name="lora_base"),
        weight_dtype="default",
    )[0]


def native(golden, comfy, tensors):
    return comfy.part("twinflow.backbones").find(golden.weights).layout.to_native(tensors)


def written(golden, comfy, parts, layout, *, alpha=None, extra=None, metadata=None) -> str:
    tensors = {}
    for module, (a, b) in parts.items():
        name = module.replace(".", "_") if layout in FLAT else module
        down, up = ("down", "up") if layout in FLAT else ("A", "B")
        tensors[LAYOUTS[layout].format(name, down)], tensors[LAYOUTS[layout].format(name, up)] = a, b
        if alpha:
            tensors[LAYOUTS[layout].split("{}.lora")[0] + name + ".alpha"] = torch.tensor(alpha)
    return golden.write(
        comfy.models / "loras", tensors | (extra or {}), name=f"lora_{layout.replace(' ', '_')}", metadata=metadata
    )


def patched(patcher):
    """The weights as ComfyUI's memory management patches them when it loads the model."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    weights = {k: v.clone() for k, v in patcher.model.diffusion_model.state_dict().items()}
    patcher.detach()
    return weights


def expected(golden, comfy, parts, strength, scale=1.0):
    """Merged in the file's own layout, then converted: the LoRA's slices are judged by the converter."""
    weights = {k: v.float() for k, v in golden.plain.items()}
    for module, (a, b) in parts.items():
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + strength * scale * (b @ a).reshape(
            weights[f"{module}.weight"].shape
        )
    return native(golden, comfy, weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_applied_whole(golden, base, comfy, run, layout):
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    assert len(parts) > len(MODULES[golden.name]) - 1
    alpha = 1.0 if layout in FLAT else None
    before = patched(base)
    model, report = run(
        "TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, parts, layout, alpha=alpha), strength=0.7
    )
    assert f"applied: {len(parts)}, dropped: 0" in report
    wanted, got = expected(golden, comfy, parts, 0.7, 0.5 if alpha else 1.0), patched(model)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key].float(), value, rtol=1e-4, atol=1e-5, msg=key)
    after = patched(base)
    assert all(torch.equal(before[k], after[k]) for k in before), "the model that came in was changed"


def test_native_names(golden, base, comfy, run):
    weights = native(golden, comfy, {k: v.float() for k, v in golden.plain.items()})
    parts = {k: v for k, v in tiny.lora(weights, ("qkv", "to_q", "wq", "out", "fc1", "w1", "mlp.up", "gate_up")).items()}
    model, report = run("TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, parts, "diffusion_model"))
    assert f"applied: {len(parts)}, dropped: 0" in report


def test_dropped_modules_are_named(golden, base, comfy, run):
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    stray = {
        "transformer.no_such_module.lora_A.weight": torch.zeros(2, 4),
        "transformer.no_such_module.lora_B.weight": torch.zeros(4, 2),
    }
    _, report = run("TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, parts, "transformer", extra=stray))
    assert "dropped: 1" in report and "no_such_module" in report


def test_zero_applied_is_an_error(golden, base, comfy, run):
    stray = {
        "transformer.no_such_module.lora_A.weight": torch.zeros(2, 4),
        "transformer.no_such_module.lora_B.weight": torch.zeros(4, 2),
    }
    file = golden.write(comfy.models / "loras", stray, name="stray")
    with pytest.raises(ValueError, match=f"{file}: none of its 1 LoRA modules fits.*no such module.*no_such_module"):
        run("TwinFlowLoraLoader", model=base, lora_name=file)


def test_loras_stack_with_each_other_and_with_the_stock_loader(golden, base, comfy, run):
    ours, theirs = tiny.lora(golden.plain, MODULES[golden.name][:2]), tiny.lora(golden.plain, MODULES[golden.name][:3], seed=9)
    first = run("TwinFlowLoraLoader", model=base, lora_name=written(golden, comfy, ours, "peft"), strength=0.5)[0]
    file = written(golden, comfy, theirs, "transformer")
    ours_twice = patched(run("TwinFlowLoraLoader", model=first, lora_name=file, strength=0.25)[0])
    if golden.name == "zimage" and comfy.version < (0, 8):
        return  # the stock loader does not know these names
    with_stock = patched(run("LoraLoaderModelOnly", model=first, lora_name=file, strength_model=0.25)[0])
    assert all(torch.equal(ours_twice[k], with_stock[k]) for k in ours_twice)


def test_lora_on_the_second_embedder(golden, comfy, run):
    file = golden.write(comfy.models / "diffusion_models", golden.weights, name="two")
    model = run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]
    parts = tiny.lora(golden.second, ("linear_1", "mlp.0"))
    assert parts
    before = patched(model)
    after = patched(run("TwinFlowLoraLoader", model=model, lora_name=written(golden, comfy, parts, "transformer"))[0])
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert len(changed) == len(parts) and all("_2." in k for k in changed)


@pytest.mark.parametrize("rule", ["fold", "two"])
def test_time_rule_of_the_metadata(golden, base, comfy, run, rule):
    metadata = {"twinflow.time": rule, "twinflow.base_model": golden.name, "twinflow.sampler": '[{"steps": 8, "style": "any"}]'}
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    file = written(golden, comfy, parts, "transformer", metadata=metadata)
    if rule == "two":
        with pytest.raises(ValueError, match="second time embedder"):
            run("TwinFlowLoraLoader", model=base, lora_name=file)
        return
    model, report = run("TwinFlowLoraLoader", model=base, lora_name=file)
    assert "time conditioning: fold" in report
    assert comfy.part("nodes.sampler").recommended(model).style == "any"
    assert run("TwinFlowModelPatch", model=model, times="auto", branch="real")[1].find("t - r/2") > 0


PUBLISHED = {  # a file of the model's, as its publisher calls it, and its advice
    "qwen": ("Qwen-Image-Lightning-4steps-V1.0", "4 steps, shift 3, strength 1, cfg 1"),
    "qwen21": (
        "Qwen-Image-2.1-viggle-turbo-v0.3-6step-lora-r128",
        "6 steps, sigmas 1, 0.9677, 0.9333, 0.8571, 0.6667, 0.4, 0, strength 1, cfg 1",
    ),
    "zimage": ("Z-Image-Fun-Lora-Distill-8-Steps-2603-ComfyUI", "8 steps, shift 3, strength 0.8, cfg 1"),
}


@pytest.fixture
def user_list(comfy):
    path = comfy.models / "loras" / "twinflow_known_files.json"
    yield path
    path.unlink(missing_ok=True)


def test_a_few_step_lora_of_others_is_known(golden, base, comfy, run):
    """By its name and its modules; the sampler draws as its publisher does, and any other file changes nothing."""
    halves_of = halves(tiny.lora(golden.plain, MODULES[golden.name]))
    for name, (file, advice) in PUBLISHED.items():
        file = tiny.save(halves_of, comfy.models / "loras" / f"{file}.safetensors")
        model, report = run("TwinFlowLoraLoader", model=base, lora_name=file)
        if name != golden.name:
            assert "recommended" not in report
            with pytest.raises(ValueError, match="names sampling settings"):
                comfy.part("nodes.sampler").recommended(model)
            continue
        assert f"recommended: {advice}" in report.splitlines()[0] and "source: https://" in report
        found = comfy.part("nodes.sampler").recommended(model)
        if golden.name != "qwen21":
            t = 1 - torch.arange(found.steps + 1) / found.steps
            torch.testing.assert_close(found.times().float(), 3 * t / (1 + 2 * t))
        whole = golden.write(comfy.models / "diffusion_models", golden.weights, name="whole")
        both, report = run("TwinFlowModelLoader", model_name=whole, adapter=file)
        assert f"recommended: {advice}" in report.splitlines()[0] and "source: https://" in report
        assert comfy.part("nodes.sampler").recommended(both) == found
        style = tiny.save(halves_of, comfy.models / "loras" / "some_style.safetensors")
        model, report = run("TwinFlowLoraLoader", model=model, lora_name=style)
        assert "recommended" not in report and comfy.part("nodes.sampler").recommended(model) == found


def test_recommended_by_the_file_is_euler_at_those_sigmas(golden, base, comfy, run):
    """The TwinFlow Sampler with the recommendation equals core's euler with the sigmas of ModelSamplingAuraFlow and simple."""
    if golden.name not in PUBLISHED:
        pytest.skip("nothing is known of this model's LoRAs")
    file = f"{PUBLISHED[golden.name][0]}.safetensors"
    tiny.save(halves(tiny.lora(golden.plain, MODULES[golden.name])), comfy.models / "loras" / file)
    model = run("TwinFlowLoraLoader", model=base, lora_name=file)[0]
    latent, prompt = {"samples": torch.zeros(golden.latents(1))}, golden.conditioning()
    common = dict(positive=prompt, latent_image=latent, seed=3, cfg=1.0)
    ours = run("TwinFlowSampleLatent", model=model, preset="recommended by the file", denoise=1.0, **common)[0]
    sigmas = comfy.part("nodes.sampler").recommended(model).times().float()
    euler = run("KSamplerSelect", sampler_name="euler")[0]
    common = dict(positive=prompt, negative=prompt, latent_image=latent, cfg=1.0, noise_seed=3, add_noise=True)
    core = run("SamplerCustom", model=model, sampler=euler, sigmas=sigmas, **common)[0]
    torch.testing.assert_close(ours["samples"], core["samples"], rtol=1e-4, atol=1e-4)


def test_a_list_of_the_users_own(golden, base, comfy, run, user_list):
    import json

    tensors = halves(tiny.lora(golden.plain, MODULES[golden.name]))
    file = tiny.save(tensors, comfy.models / "loras" / "my_turbo.safetensors")
    user_list.write_text(json.dumps([{"title": "Mine", "names": ["my-turbo*"], "steps": 2, "sigmas": [1, 0.6, 0]}]))
    model, report = run("TwinFlowLoraLoader", model=base, lora_name=file)
    assert "known as Mine, recommended: 2 steps, sigmas 1, 0.6, 0" in report.splitlines()[0]
    assert comfy.part("nodes.sampler").recommended(model).sigmas == (1, 0.6, 0)
    user_list.write_text("[{}")
    whole = golden.write(comfy.models / "diffusion_models", golden.weights, name="whole")
    assert "twinflow_known_files.json: is not used: " in run("TwinFlowModelLoader", model_name=whole, adapter=file)[1]
    model, report = run("TwinFlowLoraLoader", model=base, lora_name=file)
    assert "warning: " in report.splitlines()[1] and "twinflow_known_files.json: is not used: " in report
    assert f"LoRA {len(tensors) // 2}/{len(tensors) // 2} applied" in report and "known as" not in report


def loaded(golden, comfy, run, base, tensors, metadata=None, strength=1.0):
    """(weights, report) with a LoRA of these tensors."""
    name = golden.write(comfy.models / "loras", tensors, name="some_lora", metadata=metadata)
    model, report = run("TwinFlowLoraLoader", model=base, lora_name=name, strength=strength)
    return patched(model), report


def halves(parts, prefix="transformer."):
    return {f"{prefix}{m}.lora_{h}.weight": t.clone() for m, ab in parts.items() for h, t in zip("AB", ab)}


def close(got, wanted):
    for key, value in wanted.items():
        torch.testing.assert_close(got[key].float(), value, rtol=1e-4, atol=1e-5, msg=key)


def test_another_width_is_refused(golden, base, comfy, run):
    parts = {m: (a.repeat(1, 2), b.repeat(2, 1)) for m, (a, b) in tiny.lora(golden.plain, MODULES[golden.name]).items()}
    with pytest.raises(ValueError, match=r"none of its \d+ LoRA modules fits .*the model's weight \d+x\d+"):
        loaded(golden, comfy, run, base, halves(parts))


def test_one_module_of_another_width_is_named(golden, base, comfy, run):
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    odd = next(iter(parts))
    parts[odd] = (parts[odd][0].repeat(1, 3), parts[odd][1])
    got, report = loaded(golden, comfy, run, base, halves(parts))
    assert f"LoRA {len(parts) - 1}/{len(parts)} applied" in report and f"dropped: {odd}" in report
    close(got, expected(golden, comfy, {m: ab for m, ab in parts.items() if m != odd}, 1.0))


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_and_its_patterns_in_the_metadata(golden, base, comfy, run, rslora):
    """lora_adapter_metadata, as diffusers writes it: alpha 6 for rank 2, and another one for a module of its own."""
    import json

    parts = tiny.lora(golden.plain, MODULES[golden.name])
    odd = next(iter(parts))
    settings = {"r": 2, "lora_alpha": 6, "alpha_pattern": {odd: 1}, "rank_pattern": {}, "use_rslora": rslora}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    got, _ = loaded(golden, comfy, run, base, halves(parts), metadata)
    rank = 2**0.5 if rslora else 2
    scaled = {m: (a, b * ((1 if m == odd else 6) / rank)) for m, (a, b) in parts.items()}
    close(got, expected(golden, comfy, scaled, 1.0))


@pytest.mark.parametrize("start", ["", "transformer."])
@pytest.mark.parametrize("tensor", [True, False])
def test_alpha_under_a_name_of_its_own_in_the_metadata(golden, base, comfy, run, start, tensor):
    """As SimpleTuner writes it; a tensor in the file counts before it, and a text encoder's alpha is another's."""
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    tensors = halves(parts) | ({f"transformer.{m}.alpha": torch.tensor(1.0) for m in parts} if tensor else {})
    metadata = {f"{start}lora_alpha": "8", f"{start}r": "2", "text_encoder.lora_alpha": "64"}
    got, _ = loaded(golden, comfy, run, base, tensors, metadata)
    close(got, expected(golden, comfy, parts, 0.5 if tensor else 4.0))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_dora_of_peft(golden, base, comfy, run, strength):
    """m V / |V| by rows, V = W + B A; also where q, k and v are fused and where scale and shift are swapped."""
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    g = torch.Generator().manual_seed(7)
    weights, tensors = {k: v.float() for k, v in golden.plain.items()}, halves(parts)
    for module, (a, b) in parts.items():
        w = weights[f"{module}.weight"]
        v, m = w + b @ a, w.norm(dim=1) * (1 + torch.rand(len(w), generator=g))
        tensors[f"transformer.{module}.lora_magnitude_vector"] = m
        weights[f"{module}.weight"] = w + strength * (m[:, None] * v / v.norm(dim=1, keepdim=True) - w)
    got, report = loaded(golden, comfy, run, base, tensors, strength=strength)
    assert f"LoRA {len(parts)}/{len(parts)} applied" in report
    close(got, native(golden, comfy, weights))


def test_dora_scale_as_comfyui_applies_it(golden, base, comfy, run):
    """dora_scale V / |W| by rows, as core's own loader does, on every kind of module."""
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    weights, tensors = {k: v.float() for k, v in golden.plain.items()}, halves(parts)
    for i, (module, (a, b)) in enumerate(parts.items()):
        w = weights[f"{module}.weight"]
        m = w.norm(dim=1, keepdim=True) * torch.linspace(1, 1.5 + i % 3, len(w))[:, None]
        tensors[f"transformer.{module}.dora_scale"] = m
        weights[f"{module}.weight"] = m * (w + b @ a) / w.norm(dim=1, keepdim=True)
    got, _ = loaded(golden, comfy, run, base, tensors)
    close(got, native(golden, comfy, weights))


@pytest.mark.parametrize("kind", ["diff_b", "lora_B.bias", "lora_B.default.bias"])
def test_biases(golden, base, comfy, run, kind):
    """Also rows of a fused bias and a swapped one; a module without a bias is named."""
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    weights, tensors = {k: v.float() for k, v in golden.plain.items()}, halves(parts)
    without = 0
    for module, (a, b) in parts.items():
        weights[f"{module}.weight"] += b @ a
        bias = torch.linspace(-1, 1, len(b))
        tensors[f"transformer.{module}.{kind}"] = bias
        without += f"{module}.bias" not in weights
        if f"{module}.bias" in weights:
            weights[f"{module}.bias"] = weights[f"{module}.bias"] + bias
    if "default" in kind:
        tensors = {
            k.replace("_A.weight", "_A.default.weight").replace("_B.weight", "_B.default.weight"): v for k, v in tensors.items()
        }
    got, report = loaded(golden, comfy, run, base, tensors)
    close(got, native(golden, comfy, weights))
    assert report.count("has no bias") == without + bool(without)  # each, and the warning


def test_a_module_given_twice_is_applied_once(golden, base, comfy, run):
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    twice = halves(parts) | halves(parts, "base_model.model.")
    got, report = loaded(golden, comfy, run, base, twice)
    close(got, expected(golden, comfy, parts, 1.0))
    assert "dropped: 0" in report
    other = halves({m: (a, -b) for m, (a, b) in parts.items()}, "transformer.base_model.model.")  # behind it in the file
    got, report = loaded(golden, comfy, run, base, halves(parts, "base_model.model.") | other)
    close(got, expected(golden, comfy, parts, 1.0))
    assert report.count("the module again, under another prefix") >= len(parts)


def test_half_a_pair_and_parts_nobody_reads_are_named(golden, base, comfy, run):
    parts = tiny.lora(golden.plain, MODULES[golden.name])
    first, second = list(parts)[:2]
    tensors = halves(parts) | {f"transformer.{second}.lora_C.weight": torch.zeros(1)}
    del tensors[f"transformer.{first}.lora_B.weight"]
    tensors |= {"text_encoder.layers.0.q.lora_A.weight": torch.zeros(2, 2), "lora_te1_x.alpha": torch.tensor(1.0)}
    got, report = loaded(golden, comfy, run, base, tensors)
    assert f"{first} lora_down.weight: lora_down.weight without lora_up.weight" in report
    assert "lora_C.weight) that is not known" in report and report.count("of a text encoder") >= 2
    close(got, expected(golden, comfy, {m: ab for m, ab in parts.items() if m != first}, 1.0))


def test_a_lora_that_was_never_trained_says_so(golden, base, comfy, run):
    parts = {m: (a, torch.zeros_like(b)) for m, (a, b) in tiny.lora(golden.plain, MODULES[golden.name]).items()}
    _, report = loaded(golden, comfy, run, base, halves(parts))
    assert "are all zeros and change nothing" in report
