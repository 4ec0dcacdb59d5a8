"""GGUF files: unpacked by the `gguf` package, kept quantised by ComfyUI-GGUF where that is installed."""

import asyncio
import struct

import pytest
import tiny
import torch

try:
    import gguf
except ImportError:
    gguf = None

WIDE = dict(width=128, head=32, layers=1, text=64)


def write(path, tensors, kind, arch="qwen"):
    """A GGUF file whose matrices with rows of whole blocks have this type, and all else float32."""
    writer = gguf.GGUFWriter(path, arch)
    for key, tensor in tensors.items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(key, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.name


@pytest.fixture(autouse=True)
def needed(comfy):
    if gguf is None:
        pytest.skip("no 'gguf' package in ComfyUI's interpreter")


@pytest.fixture
def weights():
    plain = tiny.digits(**WIDE)
    return plain | tiny.second_embedder(plain)


@pytest.fixture
def models(comfy):
    return comfy.models / "diffusion_models"


def sampled(run, model):
    latent = {"samples": torch.zeros(1, 3, 1, 8, 8)}
    conditioning = [[torch.linspace(-1, 1, 128).reshape(1, 2, 64), {}]]
    inputs = dict(positive=conditioning, latent_image=latent, preset="4 steps", seed=3, cfg=1.0, denoise=1.0)
    return run("TwinFlowSampleLatent", model=model, **inputs)[0]["samples"]


def close(a, b, tolerance=0.15):
    return (a - b).pow(2).mean().sqrt() < tolerance * b.std()


@pytest.mark.parametrize("kind", ["Q8_0", "BF16", "F16"])
def test_unpacked(models, run, weights, kind):
    """The architecture field says `qwen`, as files in the wild do; the keys are what counts."""
    exact = tiny.save(weights, models / "exact.safetensors")
    file = write(models / f"model_{kind}.gguf", weights, gguf.GGMLQuantizationType[kind])
    model, report = run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")
    assert kind in report
    assert close(sampled(run, model), sampled(run, run("TwinFlowModelLoader", model_name=exact, weight_dtype="float32")[0]))


def test_diffusers_names_are_renamed(models, run, comfy, goldens):
    """Z-Image in diffusers' names, with its separate q, k and v."""
    tiny.need_backbone("zimage", comfy.version)
    golden = tiny.read(goldens, "zimage")
    file = write(models / "z.gguf", golden.weights, gguf.GGMLQuantizationType.Q8_0)
    model, report = run("TwinFlowModelLoader", model_name=file)
    assert "diffusers names" in report and model.model.diffusion_model.has_second_embedder


def test_plain_gguf_with_an_embedder_file(models, run, weights):
    plain = {k: v for k, v in weights.items() if not k.startswith(tiny.SECOND)}
    file = write(models / "plain.gguf", plain, gguf.GGMLQuantizationType.Q8_0)
    extra = tiny.save({k: v for k, v in weights.items() if k not in plain}, comfy_loras(models) / "embedder.safetensors")
    model, report = run("TwinFlowModelLoader", model_name=file, adapter=extra)
    assert "from embedder.safetensors" in report
    assert torch.equal(
        model.model.diffusion_model.state_dict()["time_text_embed_2.timestep_embedder.linear_1.bias"].float(),
        weights["time_text_embed_2.timestep_embedder.linear_1.bias"],
    )


def comfy_loras(models):
    return models.parent / "loras"


def test_unknown_type_is_refused(models, run, weights):
    file = models / write(models / "odd.gguf", weights, gguf.GGMLQuantizationType.Q8_0)
    raw = bytearray(file.read_bytes())
    name = b"proj_out.weight"
    at = raw.index(name) + len(name)
    dims = int.from_bytes(raw[at : at + 4], "little")
    raw[at + 4 + 8 * dims] = 250  # the type's number
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"odd.gguf.*gguf"):
        run("TwinFlowModelLoader", model_name="odd.gguf")


def test_kept_quantised_by_comfyui_gguf(comfy, models, run, weights, monkeypatch):
    """ComfyUI-GGUF's own loader keeps the second embedder, and ours keeps its quantised storage; both sample alike."""
    if comfy.gguf is None:
        pytest.skip("no custom_nodes/ComfyUI-GGUF in the ComfyUI under test")
    import nodes

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict(nodes.NODE_CLASS_MAPPINGS))
    assert asyncio.run(nodes.load_custom_node(str(comfy.gguf)))
    file = write(models / "kept.gguf", weights, gguf.GGMLQuantizationType.Q8_0, arch="qwen_image")
    model, _ = run("TwinFlowModelLoader", model_name=file)
    theirs = nodes.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(file)[0]
    for patcher in (model, theirs):
        weight = patcher.model.diffusion_model.time_text_embed_2.timestep_embedder.linear_2.weight
        assert weight.tensor_type == gguf.GGMLQuantizationType.Q8_0
    ours, stock = sampled(run, model), sampled(run, theirs)
    torch.testing.assert_close(ours, stock)
    exact = run("TwinFlowModelLoader", model_name=tiny.save(weights, models / "exact.safetensors"), weight_dtype="float32")[0]
    assert close(ours, sampled(run, exact))
    with pytest.raises(ValueError, match="are kept as GGUF"):
        run("TwinFlowSave", model=model, filename_prefix="packed", save_as="one file", dtype="as it is")


@pytest.fixture
def with_pack(comfy, monkeypatch):
    if comfy.gguf is None:
        pytest.skip("no custom_nodes/ComfyUI-GGUF in the ComfyUI under test")
    import nodes

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict(nodes.NODE_CLASS_MAPPINGS))
    assert asyncio.run(nodes.load_custom_node(str(comfy.gguf)))
    return nodes.NODE_CLASS_MAPPINGS


def write_as_ggml(path, tensors, kind, *, arch="lumina2", prefix="", everything=False):
    """As ggml's own writers do: leading dimensions of 1 are dropped, and any tensor may be of any type."""
    writer = gguf.GGUFWriter(path, arch or "x")
    if arch is None:
        writer.kv_data[0].pop("general.architecture", None)
    for key, tensor in tensors.items():
        values = tensor.float().numpy()
        while values.ndim > 1 and values.shape[0] == 1:
            values = values[0]
        if (everything or values.ndim == 2) and values.shape[-1] % 32 == 0:
            writer.add_tensor(prefix + key, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(prefix + key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.name


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("arch, prefix", [(None, "model.diffusion_model."), ("wrong", ""), ("sd3", "transformer.")])
@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("names", ["ComfyUI", "diffusers"])
def test_files_of_ggmls_writers(comfy, goldens, models, run, request, name, names, arch, prefix, everything, kept):
    """Z-Image's pad tokens and SD3's positions without their leading 1, or quantised; no architecture; any prefix."""
    tiny.need_backbone(name, comfy.version)
    if kept:
        request.getfixturevalue("with_pack")
    golden = tiny.read(goldens, name)
    weights = tiny.native(golden, comfy)
    exact = run("TwinFlowModelLoader", model_name=golden.write(models, weights, name="exact"), weight_dtype="float32")[0]
    tensors = weights if names == "ComfyUI" else golden.weights
    q8 = gguf.GGMLQuantizationType.Q8_0
    file = write_as_ggml(models / f"{name}_ggml.gguf", tensors, q8, arch=arch, prefix=prefix, everything=everything)
    model, _ = run("TwinFlowModelLoader", model_name=file)
    assert tiny.rms(tiny.sampled(run, model, golden), tiny.sampled(run, exact, golden)) < 0.05


def test_memory_is_counted_as_comfyui_gguf_counts_it(models, run, weights, with_pack):
    file = write(models / "size.gguf", weights, gguf.GGMLQuantizationType.Q8_0, arch="qwen_image")
    ours = run("TwinFlowModelLoader", model_name=file)[0]
    theirs = with_pack["UnetLoaderGGUF"]().load_unet(file)[0]
    assert ours.model_size() == theirs.model_size()


@pytest.mark.parametrize("kind", ["Q8_0", "BF16", "F16", "F32"])
def test_scheduled_loras(comfy, models, run, weights, with_pack, kind):
    """Weights may be written to in place; quantised ones say that they cannot be scheduled."""
    import comfy.hooks

    kinds = gguf.GGMLQuantizationType
    if kind == "F32":
        file = write(models / "hooked.gguf", {k: v for k, v in weights.items()}, kinds.F32)
    else:
        file = write(models / "hooked.gguf", weights, kinds[kind])
    model = run("TwinFlowModelLoader", model_name=file)[0]
    parts = tiny.lora(weights, ("attn.to_q",))
    halves = {f"diffusion_model.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab)}
    lora = tiny.save(halves, models.parent / "loras" / "hooked.safetensors")
    before, wanted = (
        sampled(run, model),
        sampled(run, run("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)[0]),
    )
    hooks = comfy.hooks.create_hook_lora(lora=halves, strength_model=1.0, strength_clip=0.0)
    latent = {"samples": torch.zeros(1, 3, 1, 8, 8)}
    conditioning = [[torch.linspace(-1, 1, 128).reshape(1, 2, 64), {"hooks": hooks}]]
    inputs = dict(model=model, positive=conditioning, latent_image=latent, preset="4 steps", seed=3, cfg=1.0, denoise=1.0)
    if kind == "Q8_0":
        with pytest.raises(ValueError, match="a scheduled .hook. LoRA cannot change weights that are kept quantised"):
            run("TwinFlowSampleLatent", **inputs)
    else:
        torch.testing.assert_close(run("TwinFlowSampleLatent", **inputs)[0]["samples"], wanted, rtol=1e-3, atol=1e-3)
        assert not close(wanted, before, 0.01)
    torch.testing.assert_close(sampled(run, model), before)


@pytest.mark.parametrize("kind, count", [(4, 2**60), (4, 2**31), (8, 2**60), (0, 2**63 - 1)])
def test_a_list_without_end_ends_with_the_file(kind, count, comfy, tmp_path):
    """The package would count on."""
    text = lambda s: struct.pack("<Q", len(s)) + s.encode()
    path = tmp_path / "endless.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("x") + struct.pack("<IIQ", 9, kind, count) + bytes(100))
    with pytest.raises(ValueError, match="endless.gguf.*ends within its header"):
        comfy.part("nodes.gguf_files").read_header(str(path))
