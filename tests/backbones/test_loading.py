"""The transformer from every kind of source, with its settings read off config.json or off the tensors."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from trainer import TrainerError
from trainer.backbones import sources

from .conftest import families


def same(model, wanted):
    state, wanted = model.state_dict(), wanted.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])


def says_the_same(family, model, wanted):
    """The same velocity, so what no state dict holds (rotary tables, settings) is right, too."""
    x, cond, _ = family.batch(2)
    t = torch.tensor([0.7, 0.3])
    wanted = deepcopy(wanted).requires_grad_(False)  # torch takes other kernels for what is trained
    with torch.no_grad():
        ours, theirs = (family.backbone.velocity(m, x, t, cond) for m in (model, wanted))
    assert torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def standard(family):
    """Sana's heads can be read off the two published widths only: one layer of the smaller one there, else as it was."""
    if family.backbone.name not in ("sana", "openuni"):
        return family
    wide = dict(num_attention_heads=36, attention_head_dim=32, num_cross_attention_heads=16, cross_attention_head_dim=72)
    return family_with(family, **wide, cross_attention_dim=1152, num_layers=1)


def family_with(family, **settings):
    config = family.config | settings

    def plain():
        torch.manual_seed(0)
        return family.cls(**config).eval()

    return SimpleNamespace(**vars(family) | dict(config=config, plain=plain))


def test_a_whole_model_and_its_transformer_folder(family, whole):
    for source in (whole.folder, whole.folder / "transformer"):
        model = family.backbone.load(str(source))
        same(model, whole.pipeline.transformer)
        says_the_same(family, model, whole.pipeline.transformer)
        assert all(model.config[name] == value for name, value in whole.pipeline.transformer.config.items() if name[0] != "_")


def test_shards_become_one_model(family, whole, tmp_path):
    whole.pipeline.transformer.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    same(family.backbone.load(str(tmp_path)), whole.pipeline.transformer)
    next((tmp_path / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        family.backbone.load(str(tmp_path))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
@pytest.mark.parametrize("native", [False, True], ids=["diffusers", "native"])
def test_one_file_of_any_names(standard, native, prefix, tmp_path):
    backbone, model = standard.backbone, standard.plain()
    tensors = model.state_dict()
    tensors = backbone.to_file(tensors) if native else tensors
    tensors = {prefix + name: t.contiguous() for name, t in tensors.items()}
    if prefix.startswith("model."):
        tensors["vae.decoder.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "one.safetensors")
    loaded = backbone.load(str(tmp_path / "one.safetensors"))
    same(loaded, model)
    if standard.backbone.name not in ("sana", "openuni"):
        says_the_same(standard, loaded, model)
    for name, value in standard.config.items():
        if name not in ("sample_size", "axes_lens"):  # of tables, whose content is in the file or made on demand
            found = loaded.config[name]
            assert (list(found) if isinstance(found, (list, tuple)) else found) == value, name


def test_dtypes(family, whole, tmp_path):
    model = family.backbone.load(str(whole.folder), dtype=torch.bfloat16)
    exact = {*(family.cls._keep_in_fp32_modules or ())}
    kept = {name for name in model.state_dict() if exact & {*name.split(".")}}
    assert bool(kept) == (family.backbone.name == "krea2")
    wanted = whole.pipeline.transformer
    for name, t in model.state_dict().items():
        right = wanted.state_dict()[name] if name in kept else wanted.state_dict()[name].bfloat16()
        assert t.dtype == right.dtype and torch.equal(t, right), name
    save_file({k: t.to(torch.float8_e4m3fn) for k, t in wanted.state_dict().items()}, tmp_path / "f8.safetensors")
    (tmp_path / "config.json").write_text((whole.folder / "transformer" / "config.json").read_text())
    assert family.backbone.load(str(tmp_path / "f8.safetensors")).dtype == torch.bfloat16


def test_what_does_not_fit_is_one_line(family, whole, tmp_path):
    backbone, tensors = family.backbone, dict(whole.pipeline.transformer.state_dict())
    (tmp_path / "config.json").write_text((whole.folder / "transformer" / "config.json").read_text())
    name = sorted(tensors)[-1]

    def load(changed):
        save_file({k: t.contiguous() for k, t in changed.items()}, tmp_path / "x.safetensors")
        with pytest.raises(TrainerError) as error:
            backbone.load(str(tmp_path / "x.safetensors"))
        assert "\n" not in str(error.value) and str(tmp_path / "x.safetensors") in str(error.value)
        return str(error.value)

    assert f"has no {name!r}" in load({k: t for k, t in tensors.items() if k != name})
    assert "of another size" in load(tensors | {name: torch.zeros(3)})
    assert "holds 'extra.weight'" in load(tensors | {"extra.weight": torch.zeros(3)})
    two = family.plain()
    backbone.core.time.install(two)
    assert "a second time embedder" in load(two.state_dict())
    (tmp_path / "config.json").unlink()
    assert f"is not a transformer of {backbone.name}" in load({"layer.weight": torch.zeros(3)})


def test_another_family_s_folder_is_refused(family, whole, tmp_path):
    config = json.loads((whole.folder / "transformer" / "config.json").read_text())
    target = tmp_path / "transformer"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))
    save_file({"a": torch.zeros(1)}, target / "diffusion_pytorch_model.safetensors")
    with pytest.raises(TrainerError, match=f"is a FluxTransformer2DModel; expected a {family.backbone.transformer_class}"):
        family.backbone.load(str(tmp_path))


@pytest.mark.parametrize("source", ["/no/such/model", "./nothing", "model.safetensors"])
def test_a_path_to_nothing(family, source):
    with pytest.raises(TrainerError, match="there is no such file or folder; expected a diffusers folder"):
        family.backbone.load(source)


def test_other_formats_are_never_opened(family, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"cos\nsystem\n")
    with pytest.raises(TrainerError, match="is a .ckpt file; expected .safetensors"):
        family.backbone.load(str(tmp_path / "model.ckpt"))


@families(lambda backbone: backbone.name != "openuni")  # its parts lie in several repositories: see test_openuni
def test_of_the_hub_only_what_is_needed_is_fetched(family, whole, monkeypatch):
    asked = []

    def snapshot_download(repository, allow_patterns, ignore_patterns):
        asked.append((repository, allow_patterns))
        return str(whole.folder)

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    same(family.backbone.load("owner/model"), whole.pipeline.transformer)
    assert asked.pop() == ("owner/model", ["transformer/*", "model_index.json"])
    family.backbone.load()
    assert asked.pop()[0] == family.backbone.repository
    family.backbone.image_codec("owner/model")
    assert asked.pop()[1][0] == "vae/*"
    one = whole.folder / "transformer" / "diffusion_pytorch_model.safetensors"
    monkeypatch.setattr(sources, "hf_hub_download", lambda repository, file: asked.append((repository, file)) or str(one))
    same(family.backbone.load("owner/model/a/file.safetensors"), whole.pipeline.transformer)
    assert asked == [("owner/model", "a/file.safetensors")]


def test_offline_is_one_line(family, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for source in ("owner/model", "owner/model/file.safetensors"):
        with pytest.raises(TrainerError, match=f"'{source}'.*could not be fetched from the hub") as error:
            family.backbone.load(source)
        assert "\n" not in str(error.value)
    assert not list(Path(tmp_path).glob("models--*/snapshots"))


@families(lambda backbone: backbone.core.layout.older)
def test_names_of_older_files(family, tmp_path):
    """As FLUX.2's makers name its norms, and ComfyUI once did."""
    wanted = family.plain().state_dict()
    native = family.backbone.to_file(dict(wanted))
    (before, now), *_ = family.backbone.core.layout.older
    older = {name.removesuffix(now) + before if name.endswith(now) else name: t.clone() for name, t in native.items()}
    assert older.keys() != native.keys()
    save_file(older, tmp_path / "older.safetensors")
    found = family.backbone.load(str(tmp_path / "older.safetensors")).state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], t) for name, t in wanted.items())


@families(lambda backbone: backbone.name == "flux2-klein")
@pytest.mark.parametrize("form", ["folder", "file"])
def test_flux2_dev_is_refused(family, form, tmp_path):
    model = family.cls(**family.config | dict(guidance_embeds=True))
    if form == "folder":
        model.save_pretrained(tmp_path / "transformer")
    else:
        save_file(family.backbone.to_file(model.state_dict()), tmp_path / "dev.safetensors")
    with pytest.raises(TrainerError, match="is FLUX.2 dev, which takes a guidance scale as an input; expected FLUX.2 klein"):
        family.backbone.load(str(tmp_path if form == "folder" else tmp_path / "dev.safetensors"))
