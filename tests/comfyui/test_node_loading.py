"""Files as they are met: every prefix, adapters, embedder files; and those that must be refused, with a line that helps."""

import pytest
import tiny
import torch
from safetensors.torch import save_file


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def models(comfy):
    return comfy.models / "diffusion_models"


def weights_of(patcher) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in patcher.model.diffusion_model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("prefix", ["", "transformer.", "model.diffusion_model.", "diffusion_model.", "extended_weights."])
def test_prefixes(golden, models, run, prefix):
    bare = run("TwinFlowModelLoader", model_name=golden.write(models, golden.weights), weight_dtype="float32")[0]
    model, report = run(
        "TwinFlowModelLoader",
        model_name=golden.write(models, golden.weights, prefix=prefix, name="prefixed"),
        weight_dtype="float32",
    )
    assert same(weights_of(model), weights_of(bare))
    assert tiny.NAMES[golden.name] in report and "missing: none" in report


def test_stock_loader_keeps_the_second_embedder(golden, models, run, comfy):
    backbone = comfy.part("twinflow.backbones").find(golden.weights)
    file = golden.write(models, backbone.layout.to_native(golden.weights), name="native")
    model = run("UNETLoader", unet_name=file, weight_dtype="default")[0]
    assert comfy.part("nodes.time_conditioning").has_second_embedder(model.model)
    assert set(backbone.second) <= set(model.model.diffusion_model.state_dict())


def test_plain_file_gets_a_plain_model(golden, models, run, comfy):
    backbone = comfy.part("twinflow.backbones").find(golden.weights)
    file = golden.write(models, backbone.layout.to_native(golden.plain), name="plain_stock")
    model = run("UNETLoader", unet_name=file, weight_dtype="default")[0]
    assert not comfy.part("nodes.time_conditioning").has_second_embedder(model.model)


@pytest.mark.parametrize("source", ["bare embedder", "whole checkpoint"])
def test_plain_base_with_an_embedder_equals_the_whole_file(golden, models, run, source):
    whole = run("TwinFlowModelLoader", model_name=golden.write(models, golden.weights), weight_dtype="float32")[0]
    base = golden.write(models, golden.plain, name="base")
    extra = golden.write(
        models, golden.second if source == "bare embedder" else golden.weights, name="extra", prefix="diffusion_model."
    )
    model, report = run("TwinFlowModelLoader", model_name=base, adapter=extra, weight_dtype="float32")
    assert same(weights_of(model), weights_of(whole))
    assert "from " + extra in report


def test_adapter_reads_only_what_it_needs(golden, models, run, comfy, monkeypatch):
    """Of a whole checkpoint named as adapter, no tensor but the second embedder is read."""
    base, extra = golden.write(models, golden.plain, name="base"), golden.write(models, golden.weights, name="extra")
    files, asked = comfy.part("nodes.model_files"), {}
    original = files.load
    monkeypatch.setattr(
        files, "load", lambda path, keys: asked.setdefault(path.rpartition("/")[2], list(keys)) and original(path, keys)
    )
    run("TwinFlowModelLoader", model_name=base, adapter=extra)
    assert sorted(asked[extra]) == sorted(golden.second)


def test_adapter_of_the_trainer(comfy, run, models):
    """LoRA and second embedder in one file, as trainer writes it: the weights are base + B A, and the metadata count."""
    weights, metadata = tiny.digits(), trainer_metadata("two")
    parts = tiny.lora(weights, ("attn.to_q", "img_mlp.net.2"))
    second = {f"diffusion_model.{k}": v for k, v in tiny.second_embedder(weights).items()}
    halves = {f"diffusion_model.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab)}
    save_file(weights, models / "digits_base.safetensors")
    save_file(halves | second, comfy.models / "loras" / "digits_adapter.safetensors", metadata)
    model, report = run("TwinFlowModelLoader", model_name="digits_base.safetensors", adapter="digits_adapter.safetensors")
    assert f"LoRA modules applied: {len(parts)}, dropped: 0" in report and "twinflow.base_model: digits" in report
    patched(model, weights, parts)
    assert comfy.part("nodes.sampler").recommended(model).steps == 4
    with pytest.raises(ValueError, match="TwinFlow Model Loader"):
        plain = run("UNETLoader", unet_name="digits_base.safetensors", weight_dtype="default")[0]
        run("TwinFlowLoraLoader", model=plain, lora_name="digits_adapter.safetensors")
    again, report = run("TwinFlowLoraLoader", model=model, lora_name="digits_adapter.safetensors")
    assert "set from digits_adapter" in report


def trainer_metadata(time: str) -> dict[str, str]:
    sampler = '[{"steps": 4, "style": "any", "stochasticity": 0.0, "gaps": [0.001, 0.5], "warp": [1, 1, 1]}]'
    return {
        "format": "pt",
        "twinflow.version": "0.1.0",
        "twinflow.time": time,
        "twinflow.base_model": "digits",
        "twinflow.sampler": sampler,
    }


def patched(model, weights, parts):
    """ComfyUI's own patching arrives at weight + B A."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    now = model.model.diffusion_model.state_dict()
    for module, (a, b) in parts.items():
        torch.testing.assert_close(
            now[f"{module}.weight"].float(), weights[f"{module}.weight"].float() + b @ a, rtol=1e-4, atol=1e-5
        )
    model.detach()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "fp8_e4m3fn"])
def test_dtypes(golden, models, run, dtype):
    model = run("TwinFlowModelLoader", model_name=golden.write(models, golden.weights), weight_dtype=dtype)[0]
    names = {"fp8_e4m3fn": torch.float8_e4m3fn}
    assert next(model.model.diffusion_model.parameters()).dtype == names.get(dtype, getattr(torch, dtype, None))
    latent = {"samples": torch.zeros_like(golden.tensors["x"][:1])}
    out = run(
        "TwinFlowSampleLatent",
        model=model,
        positive=golden.conditioning(),
        latent_image=latent,
        preset="2 steps",
        seed=1,
        cfg=1.0,
        denoise=1.0,
    )
    assert out[0]["samples"].isfinite().all()


def test_shards_are_one_file(golden, models, run):
    """A release cut into shards, as diffusers writes it: any shard stands for all; a missing one is named."""
    whole = run("TwinFlowModelLoader", model_name=golden.write(models, golden.weights), weight_dtype="float32")[0]
    items = list(golden.weights.items())
    for i in range(3):
        tiny.save(dict(items[i::3]), models / f"{golden.name}_cut-{i + 1:05}-of-00003.safetensors")
    name = f"{golden.name}_cut-00002-of-00003.safetensors"
    assert same(weights_of(run("TwinFlowModelLoader", model_name=name, weight_dtype="float32")[0]), weights_of(whole))
    (models / f"{golden.name}_cut-00003-of-00003.safetensors").unlink()
    refused(run, "1 of its 3 shards", model_name=name)


def refused(run, match, **inputs):
    with pytest.raises(ValueError, match=match) as error:
        run("TwinFlowModelLoader", **inputs)
    assert "\n" not in str(error.value)
    assert type(error.value) is ValueError, "the page would write the module's path before the message"


def test_no_second_embedder_is_refused(golden, models, run):
    file = golden.write(models, golden.plain, name="plain")
    refused(
        run, rf"{file}: is a plain .*, without TwinFlow.s second time embedder. Choose its TwinFlow adapter", model_name=file
    )


def test_half_an_embedder_is_refused(golden, models, run):
    some = dict(list(golden.second.items())[:1])
    refused(run, "missing", model_name=golden.write(models, golden.plain | some, name="half"))


def test_incomplete_model_is_refused(golden, models, run):
    kept = {k: v for k, v in golden.weights.items() if "out.0.weight" not in k and "to_out.0" not in k}
    assert len(kept) < len(golden.weights)
    refused(run, "not in the file|not complete", model_name=golden.write(models, kept, name="incomplete"))


def test_truncated_file_is_refused(golden, models, run):
    file = models / golden.write(models, golden.weights, name="cut")
    file.write_bytes(file.read_bytes()[:-100])
    refused(run, "cut off", model_name=file.name)


def test_wrong_adapters_are_refused(golden, models, run, comfy):
    base = golden.write(models, golden.plain, name="base")
    lora = golden.write(comfy.models / "loras", {"transformer.blocks.0.lora_A.weight": torch.zeros(1, 1)}, name="lora")
    refused(run, f"{lora}.*TwinFlow LoRA Loader", model_name=base, adapter=lora)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, b"\xff" * 64, b"GGUF\x03\x00\x00\x00", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"]
)
@pytest.mark.parametrize("ending", ["safetensors", "gguf"])
def test_garbage_is_refused(models, run, content, ending):
    (models / f"garbage.{ending}").write_bytes(content)
    refused(run, "garbage", model_name=f"garbage.{ending}")


@pytest.mark.parametrize("name", tiny.NEEDED)
def test_a_core_without_the_model_is_told_which_has_it(comfy, goldens, models, run, name):
    if name in tiny.backbones(comfy.version):
        pytest.skip("this ComfyUI has it")
    golden = tiny.read(goldens, name)
    needed = ".".join(map(str, tiny.NEEDED[name]))
    refused(run, rf"{tiny.NAMES[name]}.*{needed} and later", model_name=golden.write(models, golden.weights))


def test_unknown_layout_is_refused(models, run):
    save_file({"input_blocks.0.weight": torch.zeros(2, 2)}, models / "sd1.safetensors")
    refused(
        run,
        "sd1.safetensors: is another model. Choose .* of FLUX.2 klein, Krea 2, Qwen-Image, Qwen-Image-2.1, SD3.5 or Z-Image",
        model_name="sd1.safetensors",
    )


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "C:\\x.safetensors", "x.ckpt", "x.pt", "none.safetensors"],
)
def test_hostile_names_are_refused(run, name):
    refused(run, "refused|not there", model_name=name)


def test_nothing_is_unpickled(models, run, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (models / "bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(run, "bomb", model_name="bomb.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_lora_in_place_of_the_model_is_named(golden, models, run):
    lora = {"transformer.blocks.0.lora_A.weight": torch.zeros(1, 1), "transformer.blocks.0.lora_B.weight": torch.zeros(1, 1)}
    refused(run, "is a LoRA, not a model. Choose the base", model_name=golden.write(models, lora, name="lora"))
    embedder = golden.write(models, golden.second, name="embedder")
    refused(run, "holds a second time embedder only", model_name=embedder)


def test_an_embedder_of_another_width_is_refused(golden, models, run, comfy):
    base = golden.write(models, golden.plain, name="base")
    wide = {k: torch.cat([v, v]) if k.endswith(".bias") else v.repeat(2, 2) for k, v in golden.second.items()}
    extra = golden.write(comfy.models / "loras", wide, name="wide")
    refused(run, rf"{extra}: its second time embedder is \d+ wide, .*made for another model", model_name=base, adapter=extra)


def test_a_file_of_another_size_is_refused_in_a_sentence(golden, models, run):
    ends = "mlp.net.0.proj.weight", "feed_forward.w3.weight", "ff.net.2.weight", "ff_context.linear_in.weight", "ff.down.weight"
    ends += ("img_mlp.out.weight",)
    key = next(k for k in golden.weights if k.endswith(ends))
    tensors = golden.weights | {key: torch.zeros(48, 80)}
    refused(run, "have other sizes than", model_name=golden.write(models, tensors, name="odd"))


def test_layered_is_refused_by_name(models, run, goldens, comfy):
    golden = tiny.read(goldens, "qwen")
    layered = golden.plain | {"time_text_embed.addition_t_embedding.weight": torch.zeros(2, 32)}
    base = golden.write(models, layered, name="layered")
    extra = golden.write(comfy.models / "loras", golden.second, name="emb")
    refused(run, "is Qwen-Image-Layered, which has no TwinFlow weights", model_name=base, adapter=extra)


def test_a_checkpoint_with_other_models_beside(golden, models, run):
    whole = {f"model.diffusion_model.{k}": v for k, v in golden.weights.items()}
    whole |= {"first_stage_model.decoder.conv_in.weight": torch.zeros(2), "text_encoders.t5xxl.scaled_fp8": torch.zeros(0)}
    _, report = run("TwinFlowModelLoader", model_name=golden.write(models, whole, name="all"))
    assert "also in the file, not read: 2 tensors" in report


def test_any_prefix_and_compiled_names(golden, models, run):
    bare = run("TwinFlowModelLoader", model_name=golden.write(models, golden.weights), weight_dtype="float32")[0]
    compiled = {f"a.b.{k.replace('.', '._orig_mod.', 1)}": v for k, v in golden.weights.items()}
    for name, tensors in (("odd", {f"net.module.{k}": v for k, v in golden.weights.items()}), ("compiled", compiled)):
        model, _ = run("TwinFlowModelLoader", model_name=golden.write(models, tensors, name=name), weight_dtype="float32")
        assert same(weights_of(model), weights_of(bare))


def test_merged_file_that_folds_needs_no_embedder(golden, models, run):
    file = golden.write(models, golden.plain, name="merged", metadata=trainer_metadata("fold"))
    model = run("TwinFlowModelLoader", model_name=file)[0]
    assert model.model_options["transformer_options"]["twinflow"].rule == "fold"


def test_norms_under_the_name_of_older_files(models, run, goldens, comfy):
    """FLUX.2 as its makers publish it, with our adapter."""
    tiny.need_backbone("flux2", comfy.version)
    golden = tiny.read(goldens, "flux2")
    older = {key.replace("_norm.weight", "_norm.scale"): t for key, t in tiny.native(golden, comfy).items()}
    extra = golden.write(comfy.models / "loras", golden.second, name="older")
    base = golden.write(models, {key: t for key, t in older.items() if not key.startswith(tiny.SECOND)}, name="older")
    wanted = run("TwinFlowModelLoader", model_name=golden.write(models, golden.weights), weight_dtype="float32")[0]
    model, report = run("TwinFlowModelLoader", model_name=base, adapter=extra, weight_dtype="float32")[:2]
    assert "missing: none" in report and "not used" not in report
    assert torch.equal(tiny.sampled(run, model, golden), tiny.sampled(run, wanted, golden))


def test_flux2_dev_is_refused_by_name(models, run, goldens, comfy):
    tiny.need_backbone("flux2", comfy.version)
    golden = tiny.read(goldens, "flux2")
    dev = golden.weights | {"guidance_in.in_layer.weight": torch.zeros(32, 256)}
    refused(run, "is FLUX.2 dev, which has no TwinFlow weights", model_name=golden.write(models, dev, name="dev"))
