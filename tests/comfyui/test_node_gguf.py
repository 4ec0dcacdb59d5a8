"""GGUF files: unpacked by the `gguf` package, kept quantised by ComfyUI-GGUF where that is installed."""

import asyncio

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
