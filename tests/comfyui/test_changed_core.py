"""What the pack does where ComfyUI, or another pack, is not as the oldest one was: dynamic models, other classes for our
files, other names for them, and classes that are gone.
"""

import asyncio
import inspect
import sys
import types
from pathlib import Path

import pytest
import tiny
import torch
from probe import answer, backbone, without_second


@pytest.fixture(params=list(tiny.NAMES))
def golden(request, comfy, goldens):
    tiny.need_backbone(request.param, comfy.version)
    return tiny.read(goldens, request.param)


@pytest.fixture
def load(comfy, run):
    """A file's model, by one of the two loaders."""

    def load(file: str, loader: str = "ours"):
        if loader == "stock":
            return run("UNETLoader", unet_name=file, weight_dtype="default")[0]
        return run("TwinFlowModelLoader", model_name=file, weight_dtype="float32")[0]

    return load


def written(golden, comfy, name: str, tensors=None) -> str:
    return golden.write(comfy.models / "diffusion_models", tensors or tiny.native(golden, comfy), name=name)


def hears(golden, comfy, model) -> bool:
    """Whether the target time changes its answer."""
    return not torch.allclose(answer(golden, comfy, model, r=0.0), answer(golden, comfy, model, r=0.7), atol=1e-5)


def detected_as(monkeypatch, what):
    """Let core's detection change what it found: what(found, its state dict, the prefix)."""
    import comfy.model_detection as detection

    real = detection.detect_unet_config

    def detect(state_dict, prefix, *args, **kwargs):
        found = real(state_dict, prefix, *args, **kwargs)
        return found and {**found, **what(found, state_dict, prefix)}

    monkeypatch.setattr(detection, "detect_unet_config", detect)
    return detect


# Dynamic models: core's default with an NVIDIA card


@pytest.fixture
def dynamic(comfy, monkeypatch):
    import comfy.model_patcher as patchers

    if "disable_dynamic" not in inspect.signature(patchers.ModelPatcher.clone).parameters:
        pytest.skip("this ComfyUI has no dynamic models")

    class Dynamic(patchers.ModelPatcher):
        """As ModelPatcherDynamic is for those who ask; core makes none of those for the CPU."""

        non_dynamic_delegate_model = None
        get_non_dynamic_delegate = patchers.ModelPatcherDynamic.get_non_dynamic_delegate

        def is_dynamic(self):
            return True

    monkeypatch.setattr(patchers, "CoreModelPatcher", Dynamic)


@pytest.mark.parametrize("how", ["checkpoint", "adapter", "stock"])
def test_a_dynamic_model_has_a_copy_that_is_not(golden, comfy, run, load, dynamic, monkeypatch, how):
    loading, loads = comfy.part("nodes.loading"), []
    real = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loads.append(a) or real(*a, **k))
    if how == "adapter":
        weights, plain = tiny.native(golden, comfy), without_second(golden, comfy)
        second = {key: tensor for key, tensor in weights.items() if key not in plain}
        base = written(golden, comfy, "dynamic_base", plain)
        adapter = golden.write(comfy.models / "loras", second, name="dynamic")
        model = run("TwinFlowModelLoader", model_name=base, adapter=adapter, weight_dtype="float32")[0]
    else:
        model = load(written(golden, comfy, "dynamic"), "stock" if how == "stock" else "ours")
    assert model.is_dynamic()
    before = len(loads)
    copy = model.clone(disable_dynamic=True)
    assert len(loads) - before == (how != "stock"), "the copy reads the file once"
    assert not copy.is_dynamic() and copy.model is not model.model and type(copy.model) is type(model.model)
    again, arguments = model.cached_patcher_init[:2]
    assert not again(*arguments, disable_dynamic=True).is_dynamic()
    assert tiny.rms(answer(golden, comfy, copy, r=0.2), answer(golden, comfy, model, r=0.2)) < 1e-5


@pytest.mark.parametrize("name", ["TwinFlow emoji: base", "TwinFlow emoji: distilled"])
def test_models_that_come_with_the_pack_have_a_copy_that_is_not_dynamic(comfy, run, dynamic, name):
    """It computes in float32, whatever the file's dtype."""
    if name not in comfy.part("nodes.shipped").models():
        pytest.skip("not there yet")
    stored, wide = (run("TwinFlowModelLoader", model_name=name, weight_dtype=kind)[0] for kind in ("default", "float32"))
    copy = stored.clone(disable_dynamic=True)
    assert stored.is_dynamic() and not copy.is_dynamic() and type(copy.model) is type(stored.model)
    positive, _, latent = run("TwinFlowEmojiPrompt", words="pizza")
    how = dict(positive=positive, latent_image=latent, preset="1 step", seed=1, cfg=1.0, denoise=1.0)
    others = copy, wide.clone(disable_dynamic=True)
    made, wanted = (run("TwinFlowSampleLatent", model=model, **how)[0]["samples"] for model in others)
    assert tiny.rms(made, wanted) < 1e-5


def test_core_nodes_copy_a_dynamic_model(comfy, goldens, run, load, dynamic):
    """Torch Compile and a prompt with a LoRA hook; Select Model Device, where there is one."""
    import nodes

    core = Path(nodes.__file__).parent / "comfy_extras"
    for extra in ("torch_compile", "hooks"):
        assert asyncio.run(nodes.load_custom_node(str(core / f"nodes_{extra}.py"), module_parent="comfy_extras"))
    golden = tiny.read(goldens, "qwen")
    model = load(written(golden, comfy, "compiled"))
    compiled = run("TorchCompileModel", model=model, backend="inductor")[0]
    assert not compiled.is_dynamic() and type(compiled.model) is type(model.model)
    parts = tiny.lora(golden.plain, ("to_q", "to_v")).items()
    lora = {f"diffusion_model.{name}.lora_{half}.weight": t for name, pair in parts for half, t in zip("AB", pair, strict=True)}
    name = tiny.save(lora, comfy.models / "loras" / "hook.safetensors")
    hooks = run("CreateHookLoraModelOnly", lora_name=name, strength_model=1.0)[0]
    prompt = dict(cond_NEW=golden.conditioning(), strength=1.0, set_cond_area="default", hooks=hooks)
    hooked = run("ConditioningSetProperties", **prompt)[0]
    steps = dict(latent_image={"samples": torch.zeros(1, 16, 1, 8, 8)}, preset="4 steps", seed=3, cfg=1.0, denoise=1.0)
    made = run("TwinFlowSampleLatent", model=model, positive=hooked, **steps)[0]["samples"]
    patched = run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0)[0]
    wanted = tiny.sampled(run, patched, golden)
    assert tiny.rms(made, wanted) < 1e-4 < tiny.rms(tiny.sampled(run, model, golden), wanted)


def test_select_model_device_copies_a_dynamic_model(comfy, goldens, run, load, dynamic):
    import nodes

    file = Path(nodes.__file__).parent / "comfy_extras" / "nodes_multigpu.py"
    if not file.is_file():
        pytest.skip("this ComfyUI has no Select Model Device")
    assert asyncio.run(nodes.load_custom_node(str(file), module_parent="comfy_extras"))
    golden = tiny.read(goldens, "qwen")
    model = load(written(golden, comfy, "device"))
    moved = run("SelectModelDevice", model=model, device="cpu")[0]
    assert type(moved.model) is type(model.model)
    assert tiny.rms(answer(golden, comfy, moved, r=0.2), answer(golden, comfy, model, r=0.2)) < 1e-5


# Others' classes for our files


@pytest.fixture
def theirs(golden, comfy, monkeypatch):
    """Another class for files with a second time embedder, of core or of another pack, put in front of ours after us."""
    import comfy.supported_models as stock

    record, kind = backbone(golden, comfy)

    class Theirs(kind.config):
        taken = 0

        @classmethod
        def matches(cls, unet_config, state_dict=None, unet_key_prefix=""):
            return state_dict is not None and record.second[0] in state_dict

        def get_model(self, state_dict, prefix="", device=None):
            type(self).taken += 1
            raise RuntimeError("not ours")

    monkeypatch.setattr(stock, "models", [Theirs, *stock.models])
    return Theirs


@pytest.mark.parametrize("loader", ["ours", "stock"])
@pytest.mark.parametrize("own_name", [False, True])
def test_ours_is_taken(golden, comfy, load, theirs, monkeypatch, loader, own_name):
    """own_name: their detection calls such files otherwise, and sets what the plain network does not take."""
    record, _ = backbone(golden, comfy)
    if own_name:
        special = {"image_model": "twinflow", "second_time": True}
        detected_as(monkeypatch, lambda found, tensors, prefix: special if prefix + record.second[0] in tensors else {})
    model = load(written(golden, comfy, "known"), loader)
    assert not theirs.taken and hears(golden, comfy, model)
    assert "second_time" not in model.model.model_config.unet_config


def test_a_file_of_another_kind_is_theirs(golden, comfy, theirs, monkeypatch):
    """Only what our own classes match is taken from the list."""
    import comfy.model_detection as detection

    monkeypatch.setattr(theirs, "matches", classmethod(lambda *args, **kwargs: True))
    found = {"image_model": theirs.unet_config.get("image_model"), "hidden_size": 32}
    assert type(detection.model_config_from_unet_config(found, {"other.weight": torch.zeros(1)})) is theirs


def test_a_lora_on_the_second_embedder_stays_there(golden, comfy, run, load, monkeypatch):
    """Core's branch for TwinFlow maps its keys onto the first embedder."""
    import comfy.lora as loras

    real = loras.model_lora_keys_unet

    def mapped(*args):
        first = {"t_embedder_2": "t_embedder", "time_text_embed_2": "time_text_embed", "y_embedder_2": "y_embedder"}
        first["time_in_2"] = "time_in"
        moved = lambda key: next((key.replace(a, b) for a, b in first.items() if isinstance(key, str) and a in key), key)
        return {name: moved(key) for name, key in real(*args).items()}

    monkeypatch.setattr(loras, "model_lora_keys_unet", mapped)
    record, _ = backbone(golden, comfy)
    modules = [key.removesuffix(".weight") for key in record.second if key.endswith(".weight")]
    parts = tiny.lora(tiny.native(golden, comfy), tuple(modules))
    lora = {
        f"diffusion_model.{name}.lora_{half}.weight": t
        for name, pair in parts.items()
        for half, t in zip("AB", pair, strict=True)
    }
    file = tiny.save(lora, comfy.models / "loras" / f"{golden.name}_second.safetensors")
    patched = run("TwinFlowLoraLoader", model=load(written(golden, comfy, "keys")), lora_name=file, strength=1.0)[0]
    assert set(patched.patches) == {f"diffusion_model.{module}.weight" for module in modules}


# Other names for our files, and files of others


def test_a_z_image_that_core_takes_for_ming_image(comfy, goldens, load, monkeypatch):
    """From 0.36: one without pad tokens, whose positions core would shift as Ming-Image wants them."""
    import comfy.supported_models as stock

    tiny.need_backbone("zimage", comfy.version)
    golden = tiny.read(goldens, "zimage")
    weights = {key: tensor for key, tensor in tiny.native(golden, comfy).items() if "pad_token" not in key}
    file = written(golden, comfy, "unpadded", weights)
    before = load(file, "stock")
    ming = {"image_model": "ming_image", "masked_pad_multiple": 32}
    padded = lambda tensors, prefix: f"{prefix}cap_pad_token" in tensors
    detect = detected_as(monkeypatch, lambda found, tensors, prefix: {} if padded(tensors, prefix) else ming)
    for loader in ("stock", "ours"):
        model = load(file, loader)
        assert hears(golden, comfy, model)
        assert tiny.rms(answer(golden, comfy, model, r=0.2), answer(golden, comfy, before, r=0.2)) < 1e-5
    plain = {key: tensor for key, tensor in without_second(golden, comfy).items() if "pad_token" not in key}
    ours = [c for c in stock.models if hasattr(c, "twinflow_backbone")]
    assert ours and not any(c.matches(detect(plain, ""), plain, "") for c in ours), "a plain one stays core's"


@pytest.mark.parametrize("second", [False, True])
def test_a_norm_of_z_image_that_core_never_calls(comfy, run, goldens, monkeypatch, second):
    """0.3.74 to 0.6 make one, which no file holds."""
    import comfy.ldm.lumina.model as lumina

    tiny.need_backbone("zimage", comfy.version)
    made = lumina.NextDiT.__init__

    def with_norm(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.norm_final = torch.nn.RMSNorm(8)

    golden = tiny.read(goldens, "zimage")
    base = written(golden, comfy, "base", None if second else without_second(golden, comfy))
    extra = {} if second else {"adapter": golden.write(comfy.models / "loras", golden.second, name="second")}
    monkeypatch.setattr(lumina.NextDiT, "__init__", with_norm)
    model, report = run("TwinFlowModelLoader", model_name=base, weight_dtype="float32", **extra)[:2]
    assert "missing: none" in report and hears(golden, comfy, model)
    assert not any("norm_final" in key for key in model.model.diffusion_model.state_dict())


@pytest.mark.parametrize("image_model", ["mage_flow", "qwen_image_2.1", "zimage_pixel"])
@pytest.mark.parametrize("second", [False, True])
def test_a_relative_is_not_ours(golden, comfy, monkeypatch, image_model, second):
    """Mage-Flow and Qwen-Image 2.1 are subclasses of core's QwenImage; Mage-Flow's tensors are named as Qwen-Image's, too."""
    import comfy.supported_models as stock

    record, kind = backbone(golden, comfy)
    if "image_model" not in kind.config.unet_config:
        pytest.skip(f"core tells {record.title} by other means")
    detect = detected_as(monkeypatch, lambda *_: {"image_model": image_model})
    weights = tiny.native(golden, comfy) if second else without_second(golden, comfy)
    ours = [c for c in stock.models if hasattr(c, "twinflow_backbone")]
    assert ours and not any(c.matches(detect(weights, ""), weights, "") for c in ours)


def test_a_mage_flow_model_is_refused(comfy, goldens, run, monkeypatch):
    """Its time embedder is as wide as Qwen-Image's, so an adapter of that one would fit."""
    import comfy.model_base as models
    import comfy.supported_models as stock

    golden = tiny.read(goldens, "qwen")

    class MageFlow(models.QwenImage):
        pass

    class Relative(stock.QwenImage):
        unet_config = {"image_model": "mage_flow"}

        def get_model(self, state_dict, prefix="", device=None):
            settings = comfy.part("nodes.registry").settings_of(*backbone(golden, comfy), state_dict, prefix)
            self.unet_config = {**self.unet_config, **settings}
            return MageFlow(self, device=device)

    monkeypatch.setattr(stock, "models", [Relative, *stock.models])
    detected_as(monkeypatch, lambda *_: {"image_model": "mage_flow"})
    plain = without_second(golden, comfy)
    base = written(golden, comfy, "mage", plain)
    second = {key: tensor for key, tensor in tiny.native(golden, comfy).items() if key not in plain}
    adapter = golden.write(comfy.models / "loras", second, name="mage")
    with pytest.raises(
        ValueError, match="ComfyUI takes it for MageFlow, which has no second time embedder. Choose a Qwen-Image"
    ):
        run("TwinFlowModelLoader", model_name=base, adapter=adapter, weight_dtype="float32")


def test_a_gguf_pack_that_is_one_file(comfy, goldens, run, load, monkeypatch):
    """As calcuis' pack, whose loader has another name and whose operations stand beside it."""
    import nodes

    if comfy.gguf is None:
        pytest.skip("no ComfyUI-GGUF in this ComfyUI")
    import gguf

    assert asyncio.run(nodes.load_custom_node(str(comfy.gguf)))
    pack = comfy.part("nodes.gguf_files").quantised_pack()
    one = types.ModuleType("pig")
    for name in ("GGMLOps", "GGUFModelPatcher", "UnetLoaderGGUF"):
        setattr(one, name, type(name, (getattr(pack, name),), {"__module__": one.__name__}))
    one.GGMLTensor = sys.modules[pack.GGMLOps.__module__].GGMLTensor
    monkeypatch.setitem(sys.modules, one.__name__, one)
    others = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__ != pack.__name__}
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {**others, "LoaderGGUF": one.UnetLoaderGGUF})
    assert comfy.part("nodes.gguf_files").quantised_pack() is one
    golden = tiny.read(goldens, "qwen")
    writer = gguf.GGUFWriter(str(comfy.models / "diffusion_models" / "one.gguf"), "qwen_image")
    kind = gguf.GGMLQuantizationType.Q8_0
    for key, tensor in tiny.native(golden, comfy).items():
        packed = tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and key.startswith("transformer_blocks.")
        array = gguf.quants.quantize(tensor.numpy(), kind) if packed else tensor.numpy()
        writer.add_tensor(key, array, raw_dtype=kind if packed else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = load("one.gguf")
    assert isinstance(model, pack.GGUFModelPatcher) and hears(golden, comfy, model)
    assert (
        tiny.rms(answer(golden, comfy, model, r=0.2), answer(golden, comfy, load(written(golden, comfy, "one")), r=0.2)) < 0.1
    )


# Classes that are gone


@pytest.fixture
def unregistered(comfy, monkeypatch):
    """ComfyUI as it was before the pack came; register() changes a copy of its list."""
    import comfy.model_detection as detection
    import comfy.supported_models as stock

    monkeypatch.setattr(stock, "models", [c for c in stock.models if not hasattr(c, "twinflow_backbone")])
    monkeypatch.setattr(detection, "model_config_from_unet_config", inspect.unwrap(detection.model_config_from_unet_config))


def test_a_network_that_core_has_moved(comfy, goldens, load, unregistered, monkeypatch, caplog):
    """Its backbone is left out with one line; its files are refused with the reason, by core's loader, too."""
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit

    monkeypatch.delitem(sys.modules, f"{comfy.root}.nodes.backbones.sd3")
    monkeypatch.delattr(mmdit, "OpenAISignatureMMDITWrapper")
    added = comfy.part("nodes.registry").register()
    (line,) = [r.message for r in caplog.records if "left out" in r.message and "SD3.5" in r.message]
    assert "OpenAISignatureMMDITWrapper" in line and "Update" in line and "\n" not in line
    assert len(added) == len(comfy.part("nodes.supported").supported())
    sd3, qwen = tiny.read(goldens, "sd3"), tiny.read(goldens, "qwen")
    for loader in ("ours", "stock"):
        with pytest.raises(ValueError, match=r"SD3.5 is left out, because .*OpenAISignatureMMDITWrapper"):
            load(written(sd3, comfy, "moved"), loader)
        assert hears(qwen, comfy, load(written(qwen, comfy, "not_moved"), loader))


def test_a_model_that_core_builds_otherwise(comfy, goldens, load, monkeypatch):
    """Ours would be deaf: refused when it is built."""
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
    import comfy.model_base as models

    def init(self, model_config, model_type=models.ModelType.FLOW, device=None):
        models.BaseModel.__init__(self, model_config, model_type, device, mmdit.OpenAISignatureMMDITWrapper)

    monkeypatch.setattr(models.SD3, "__init__", init)
    golden = tiny.read(goldens, "sd3")
    for loader in ("ours", "stock"):
        with pytest.raises(ValueError, match=r"SD3.5 is left out, because .*OpenAISignatureMMDITWrapper"):
            load(written(golden, comfy, "otherwise"), loader)


def test_a_network_that_gets_no_options(comfy):
    """t and r travel in them."""

    class Network(torch.nn.Module):
        def forward(self, x, timesteps, context=None):
            return x

    two = comfy.part("nodes.backbones").TwoTimes
    with pytest.raises(TypeError, match="Network.forward takes no transformer_options"):
        type("Deaf", (two, Network), {})
