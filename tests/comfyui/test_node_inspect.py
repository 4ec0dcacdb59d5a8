"""TwinFlow Inspect: what it says of core's loaders is what they do."""

import re

import pytest
import tiny
import torch

LAYOUTS = (
    ("transformer.", "."), ("diffusion_model.", "."), ("", "."), ("base_model.model.", "."), ("lora_unet_", "_"),
    ("lycoris_", "_"), ("lora_transformer_", "_"), ("base_model.model.transformer.", "."),
)  # fmt: skip
MODULES = ("to_q", "to_k", "to_v", "to_out.0", "img_mod.1", "img_mlp.proj", "feed_forward.w1", "ff.net.2", "norm1.linear")


def applied(model, tensors) -> set[str]:
    """The modules of a LoRA file that core's loader has a place for."""
    from comfy.lora import load_lora, model_lora_keys_unet

    known = model_lora_keys_unet(model.model, {})
    halves = lambda module: {key: t for key, t in tensors.items() if key.startswith(f"{module}.")}
    modules = {re.sub(r"\.lora_(A|B|up|down)\.weight$", "", key) for key in tensors}
    return {module for module in modules if load_lora(halves(module), known, log_missing=False)}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_what_core_s_lora_loader_applies(comfy, goldens, run, name, native):
    """Of every layout that is met, by name."""
    tiny.need_backbone(name, comfy.version)
    if comfy.version < (0, 8):
        return  # the text is of newer versions: older ones know fewer names
    golden = tiny.read(goldens, name)
    weights, record = tiny.native(golden, comfy), comfy.part("twinflow.backbones").find(golden.weights)
    file = golden.write(comfy.models / "diffusion_models", weights, name="to_inspect")
    model = run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]
    named = weights if native else record.layout.to_diffusers(weights)
    fused = ("attention.qkv", "attention.out", "attn.qkv", "attn.proj", "attn.wq", "mlp.fc1", "gate_up") if native else ()
    ends = (*fused, *MODULES)
    parts = tiny.lora({key: t for key, t in named.items() if not key.startswith(tiny.SECOND)}, ends)
    assert parts
    inspection = comfy.part("twinflow.inspection")
    for i, (prefix, dot) in enumerate(LAYOUTS):
        half = dict(zip("AB", (("lora_A", "lora_B") if dot == "." else ("lora_down", "lora_up"))))
        tensors = {f"{prefix}{m.replace('.', dot)}.{half[h]}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab)}
        metadata = {"twinflow.base_model": record.name, "twinflow.time": "fold"}
        lora = golden.write(comfy.models / "loras", tensors, name=f"layout_{i}_{native}", metadata=metadata)
        kept, lost = inspection.stock(inspection.opened(comfy.models / "loras" / lora))
        assert set(kept) == applied(model, tensors), (prefix, set(kept) ^ applied(model, tensors))
        text = run("TwinFlowInspect", file=lora)[0]
        assert f"applies {len(kept)} of {len(kept) + len(lost)} modules" in text and ("and drops" in text) == bool(lost)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_what_the_loaders_do_with_a_model(comfy, goldens, run, name):
    tiny.need_backbone(name, comfy.version)
    golden = tiny.read(goldens, name)
    weights, folder = tiny.native(golden, comfy), comfy.models / "diffusion_models"
    second = comfy.part("twinflow.backbones").find(golden.weights).second
    for i, (prefix, found) in enumerate({"": True, "model.diffusion_model.": True, "transformer.": False}.items()):
        file = golden.write(folder, weights, prefix=prefix, name=f"prefix_{i}")
        text = run("TwinFlowInspect", file=file)[0]
        assert "TwinFlow Model Loader loads it, two times; nothing is dropped" in text
        assert run("TwinFlowModelLoader", model_name=file)[0].model.diffusion_model.has_second_embedder
        assert ("Load Diffusion Model loads it; without this pack they drop the second time embedder" in text) == found
        assert ("find no model behind the prefix 'transformer.'" in text) != found
        assert not found or all(key in text for key in list(second)[:1])
        try:
            loaded = run("UNETLoader", unet_name=file, weight_dtype="default")[0] is not None
        except RuntimeError:
            loaded = False
        assert loaded == found, prefix
    plain = {key: t for key, t in weights.items() if key not in second}
    text = run("TwinFlowInspect", file=golden.write(folder, plain, name="plain_one"))[0]
    assert "a plain model" in text and "takes it as the base of an adapter" in text


def test_faults_are_one_line(comfy, run):
    (comfy.models / "loras" / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="cut.safetensors") as error:
        run("TwinFlowInspect", file="cut.safetensors")
    assert "\n" not in str(error.value)
    tiny.save({"x.weight": torch.zeros(2)}, comfy.models / "loras" / "odd.safetensors")
    assert "nothing that is known here" in run("TwinFlowInspect", file="odd.safetensors")[0]
