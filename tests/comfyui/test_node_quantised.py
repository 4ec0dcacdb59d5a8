"""Quantised files, in every form that ComfyUI and its converters write: right within 3 %, or refused by the format's name.

The reference dequantises by the format's definition (comfy-kitchen's for the packed ones) and is loaded as float32.
"""

import asyncio
import json

import pytest
import tiny
import torch

F8 = torch.float8_e4m3fn
RIGHT = 0.03
STYLES = ("scaled_fp8", "scales only", "comfy_quant", "metadata", "metadata without the prefix")


@pytest.fixture(params=tiny.NAMES)
def golden(request, goldens, comfy):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def models(comfy):
    return comfy.models / "diffusion_models"


def is_matrix(key, tensor):
    return key.endswith(".weight") and tensor.ndim == 2 and all(n % 16 == 0 for n in tensor.shape)


def fp8(weight, by_row=False, dtype=F8):
    """(the weight in fp8, its scale)"""
    size = weight.abs().amax(dim=1, keepdim=True) if by_row else weight.abs().max()
    scale = size.clamp(min=1e-12) / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def int8(weight, by_row=False):
    size = weight.abs().amax(dim=1, keepdim=True) if by_row else weight.abs().max()
    scale = size.clamp(min=1e-12) / 127
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def scaled(tensors, style="comfy_quant", prefix="", only=lambda key: True, by_row=False, quantise=fp8, kind="float8_e4m3fn"):
    """(a file's tensors, what they stand for, its metadata)"""
    out, exact, layers = {}, {}, {}
    for key, tensor in tensors.items():
        if not (is_matrix(key, tensor) and only(key)):
            out[prefix + key] = exact[key] = tensor
            continue
        weight, scale = quantise(tensor, by_row)
        module = key.removesuffix(".weight")
        out[prefix + key], exact[key] = weight, weight.float() * scale
        out[f"{prefix}{module}.{'scale_weight' if style == 'scaled_fp8' else 'weight_scale'}"] = scale
        if style == "comfy_quant":
            out[f"{prefix}{module}.comfy_quant"] = mark(kind)
        layers[("" if "without" in style else prefix) + module] = {"format": kind}
    if style == "scaled_fp8":
        out[prefix + "scaled_fp8"] = torch.zeros(0, dtype=F8)
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return out, exact, metadata if style.startswith("metadata") else None


def mark(kind, **options):
    return torch.tensor(list(json.dumps({"format": kind, **options}).encode()), dtype=torch.uint8)


def reference(run, models, golden, tensors):
    name = golden.write(models, tensors, name="exact")
    return tiny.sampled(run, run("TwinFlowModelLoader", model_name=name, weight_dtype="float32")[0], golden)


def loaded(run, golden, name, **inputs):
    model, report = run("TwinFlowModelLoader", model_name=name, **inputs)
    return tiny.sampled(run, model, golden), report


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "some.wrapper."])
def test_one_file(golden, comfy, models, run, style, prefix):
    tensors, exact, metadata = scaled(tiny.native(golden, comfy), style, prefix)
    name = golden.write(models, tensors, name="q", metadata=metadata)
    got, report = loaded(run, golden, name)
    assert tiny.rms(got, reference(run, models, golden, exact)) < RIGHT
    assert "float8_e4m3fn scaled" in report


@pytest.mark.parametrize("style", STYLES)
def test_diffusers_names(golden, comfy, models, run, style):
    """q, k and v have scales of their own, so what ComfyUI fuses is unpacked, and the report says so."""
    weights = {k: v.float() for k, v in golden.weights.items()}
    tensors, exact, metadata = scaled(weights, style, "transformer.")
    name = golden.write(models, tensors, name="d", metadata=metadata)
    got, report = loaded(run, golden, name)
    assert tiny.rms(got, reference(run, models, golden, exact)) < RIGHT
    assert golden.name in ("qwen", "krea2") or "unpacked to bf16" in report


@pytest.mark.parametrize("base", ["bf16", "scaled_fp8", "comfy_quant", "Q8_0"])
@pytest.mark.parametrize("adapter", ["scaled_fp8", "metadata", "int8", "bf16", "Q8_0"])
@pytest.mark.parametrize("whole", [True, False])
def test_any_base_with_any_adapter(golden, comfy, models, run, monkeypatch, base, adapter, whole):
    """The adapter as a whole TwinFlow file, or as its embedder alone."""
    import nodes

    if "Q8_0" in (base, adapter):
        gguf = pytest.importorskip("gguf")
        monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", dict(nodes.NODE_CLASS_MAPPINGS))
        assert comfy.gguf is None or asyncio.run(nodes.load_custom_node(str(comfy.gguf)))
    weights = tiny.native(golden, comfy)
    second = {k: v for k, v in weights.items() if is_second(k)}
    plain = {k: v for k, v in weights.items() if k not in second}

    def write(folder, tensors, how, name):
        if how == "Q8_0":
            from test_node_gguf import write as write_gguf

            q8 = gguf.GGMLQuantizationType.Q8_0
            there = {
                k: torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(v.numpy(), q8), q8)).float()
                if v.ndim == 2 and v.shape[1] % 32 == 0
                else v
                for k, v in tensors.items()
            }
            return write_gguf(folder / f"{golden.name}_{name}.gguf", tensors, q8), there
        if how == "bf16":
            half = {k: v.bfloat16() for k, v in tensors.items()}
            return golden.write(folder, half, name=name), {k: v.float() for k, v in half.items()}
        forms = dict(quantise=int8, kind="int8_tensorwise", by_row=True) if how == "int8" else {}
        out, exact, metadata = scaled(tensors, "comfy_quant" if how == "int8" else how, **forms)
        return golden.write(folder, out, name=name, metadata=metadata), exact

    base_name, base_exact = write(models, plain, base, "base")
    name, exact = write(models, weights if whole else second, adapter, "adapter")
    got, report = loaded(run, golden, base_name, adapter=name)
    want = reference(run, models, golden, base_exact | {k: v for k, v in exact.items() if k in second})
    assert tiny.rms(got, want) < RIGHT and f"from {name}" in report


def is_second(key):
    return key.startswith((*tiny.SECOND, "y_embedder_2."))


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, F8])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("style", ["scaled_fp8", "comfy_quant", "scales only"])
def test_fp8_kinds(goldens, comfy, models, run, dtype, by_row, style):
    golden = tiny.read(goldens, "qwen")
    kind = {F8: "float8_e4m3fn"}.get(dtype, "float8_e5m2")
    weights = tiny.native(golden, comfy)
    tensors, exact, _ = scaled(weights, style, by_row=by_row, quantise=lambda w, r: fp8(w, r, dtype), kind=kind)
    got, _ = loaded(run, golden, golden.write(models, tensors, name="kinds"))
    assert tiny.rms(got, reference(run, models, golden, exact)) < RIGHT


@pytest.mark.parametrize("by_row", [False, True])
def test_int8(goldens, comfy, models, run, by_row):
    golden = tiny.read(goldens, "qwen")
    weights = tiny.native(golden, comfy)
    tensors, exact, _ = scaled(weights, quantise=int8, kind="int8_tensorwise", by_row=by_row)
    got, _ = loaded(run, golden, golden.write(models, tensors, name="int8"))
    assert tiny.rms(got, reference(run, models, golden, exact)) < RIGHT


@pytest.mark.parametrize("where", ["base", "adapter"])
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp8", "convrot", "convrot_w4a4"])
def test_packed_formats(comfy, models, run, kind, where):
    """comfy-kitchen packs them, and says what they stand for; kept in a base, dequantised in an adapter."""
    ops = pytest.importorskip("comfy.ops")
    if not hasattr(ops, "mixed_precision_ops") or ("int8_tensorwise" if kind == "convrot" else kind) not in ops.QUANT_ALGOS:
        pytest.skip(f"this ComfyUI does not know {kind}")
    from comfy.quant_ops import QuantizedTensor

    layout, options = {
        "nvfp4": ("TensorCoreNVFP4Layout", {}),
        "mxfp8": ("TensorCoreMXFP8Layout", {}),
        "convrot": ("TensorWiseINT8Layout", dict(per_channel=True, convrot=True, convrot_groupsize=16)),
        "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", dict(convrot_groupsize=16)),
    }[kind]
    name = "int8_tensorwise" if kind == "convrot" else kind
    plain = tiny.digits(width=128, head=32, layers=1, text=64)
    weights = plain | tiny.second_embedder(plain)
    tensors, exact = {}, {}
    for key, tensor in weights.items():
        if not is_matrix(key, tensor) or tensor.shape[1] % 64 or tensor.shape[0] % 32:
            tensors[key] = exact[key] = tensor
            continue
        packed = QuantizedTensor.from_float(tensor, layout, **options)
        exact[key] = packed.dequantize().float()
        for suffix, part in packed.layout_cls.state_dict_tensors(packed._qdata, packed._params).items():
            tensors[f"{key}{suffix}"] = part.view(torch.uint8) if part.dtype == getattr(torch, "float8_e8m0fnu", None) else part
        extra = dict(convrot=True, convrot_groupsize=16) if kind == "convrot" else {}
        extra = dict(convrot_groupsize=16) if kind == "convrot_w4a4" else extra
        tensors[key.removesuffix("weight") + "comfy_quant"] = mark(name, **extra)
    assert any(key.endswith("_scale") for key in tensors)
    second = {k: v for k, v in exact.items() if is_second(k)}
    if where == "adapter":
        name = tiny.save({k: v for k, v in plain.items()}, models / "plain.safetensors")
        adapter = tiny.save(tensors, models / "packed.safetensors")
        model = run("TwinFlowModelLoader", model_name=name, adapter=adapter, weight_dtype="float32")[0]
        wanted, limit = plain | second, 1e-3
    else:
        model = run("TwinFlowModelLoader", model_name=tiny.save(tensors, models / "packed.safetensors"))[0]
        wanted, limit = exact, 0.15 if kind == "convrot_w4a4" else RIGHT  # that format rounds the activations to 4 bits
    from test_node_gguf import sampled

    want = run("TwinFlowModelLoader", model_name=tiny.save(wanted, models / "exact.safetensors"), weight_dtype="float32")[0]
    got, want = sampled(run, model), sampled(run, want)
    assert tiny.rms(got, want) < limit


FAULTS = {
    "scale lost": (r"its scale is not in the file", lambda t: t.pop("img_in.weight_scale")),
    "weight lost": (r"belong to no weight", lambda t: t.pop("img_in.weight")),
    "weight not quantised": (r"converted by half", lambda t: t.update({"img_in.weight": t["img_in.weight"].float()})),
    "unknown format": (r"is quantised as int8_blockwise", lambda t: t.update({"img_in.comfy_quant": mark("int8_blockwise")})),
    "NaN": (r"not numbers", lambda t: t["txt_norm.weight"].fill_(torch.nan)),
    "NaN in a scale": (r"not numbers", lambda t: t["img_in.weight_scale"].fill_(torch.nan)),
    "scales by block": (r"scales for its", lambda t: t.update({"img_in.weight_scale": torch.ones(3, 2)})),
    "a mark that is no JSON": (r"not JSON", lambda t: t.update({"img_in.comfy_quant": torch.zeros(9, dtype=torch.uint8)})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_refused(goldens, comfy, models, run, fault):
    golden = tiny.read(goldens, "qwen")
    text, damage = FAULTS[fault]
    tensors, _, _ = scaled(tiny.native(golden, comfy))
    damage(tensors)
    with pytest.raises(ValueError, match=rf"qwen_damaged.safetensors: .*{text}"):
        run("TwinFlowModelLoader", model_name=golden.write(models, tensors, name="damaged"))


@pytest.mark.parametrize("quantise", [fp8, int8])
@pytest.mark.parametrize("where", ["base", "adapter"])
def test_scales_lost_without_a_trace(goldens, comfy, models, run, quantise, where):
    golden = tiny.read(goldens, "qwen")
    weights = tiny.native(golden, comfy)
    tensors = {k: quantise(v)[0] if is_matrix(k, v) else v for k, v in weights.items()}
    plain = golden.write(models, golden.plain, name="plain")
    name = golden.write(models, tensors, name="lost")
    with pytest.raises(ValueError, match=r"qwen_lost.safetensors: .*scales"):
        run("TwinFlowModelLoader", **(dict(model_name=name) if where == "base" else dict(model_name=plain, adapter=name)))


@pytest.mark.parametrize("what", ["rows of int8", "nvfp4", "mxfp8"])
def test_packed_weights_without_their_marks_are_refused(goldens, comfy, models, run, what):
    """Whether int8 rows are rotated, and how block scales lie, cannot be told from the tensors."""
    golden = tiny.read(goldens, "qwen")
    tensors = tiny.native(golden, comfy)
    if what == "rows of int8":
        tensors, _, _ = scaled(tensors, "scales only", by_row=True, quantise=int8)
    else:
        weight = tensors["img_in.weight"]
        rows, columns = weight.shape
        tensors["img_in.weight"] = torch.zeros(rows, columns // 2, dtype=torch.uint8) if what == "nvfp4" else weight.to(F8)
        tensors["img_in.weight_scale"] = torch.zeros(128, 4, dtype=torch.uint8)
        tensors |= {"img_in.weight_scale_2": torch.tensor(1.0)} if what == "nvfp4" else {}
    with pytest.raises(ValueError, match=r"qwen_bare.safetensors: looks like .* but does not say how its weights are laid out"):
        run("TwinFlowModelLoader", model_name=golden.write(models, tensors, name="bare"))


@pytest.mark.parametrize(
    "key, name",
    [
        ("transformer_blocks.0.attn.to_q.wscales", "SVDQuant"),
        ("transformer_blocks.0.attn.to_q.weight.quant_state.bitsandbytes__nf4", "NF4"),
        ("transformer_blocks.0.attn.to_q.SCB", "bitsandbytes int8"),
        ("transformer_blocks.0.attn.to_q.weight._data", "quanto"),
        ("transformer_blocks.0.attn.to_q.qweight", "GPTQ"),
        ("transformer_blocks.0.attn.to_q.weight_scale_inv", "block-wise fp8"),
        ("transformer_blocks.0.attn.to_q.svd_up", "SDNQ"),
    ],
)
def test_other_programs_formats_are_named(goldens, models, run, key, name):
    golden = tiny.read(goldens, "qwen")
    tensors = golden.weights | {key: torch.ones(4)}
    with pytest.raises(ValueError, match=rf"is quantised as .*{name}.* Choose a bf16") as error:
        run("TwinFlowModelLoader", model_name=golden.write(models, tensors, name="foreign"))
    assert "again" not in str(error.value)


def test_plain_fp8_needs_no_scales(golden, comfy, models, run):
    """Weights cast to fp8, as many releases are."""
    tensors = {k: v.to(F8) if is_matrix(k, v) else v for k, v in tiny.native(golden, comfy).items()}
    got, _ = loaded(run, golden, golden.write(models, tensors, name="cast"))
    assert tiny.rms(got, reference(run, models, golden, {k: v.float() for k, v in tensors.items()})) < RIGHT


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_the_second_embedder_is_never_rounded_to_fp8(golden, comfy, models, run, dtype):
    name = golden.write(models, tiny.native(golden, comfy), name="f32")
    network = run("TwinFlowModelLoader", model_name=name, weight_dtype=dtype)[0].model.diffusion_model
    assert {v.dtype for k, v in network.state_dict().items() if is_second(k)} == {torch.float32}
