"""Models that are read when they are sharded, from every kind of source: what waits is what is loaded otherwise."""

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

from trainer import TrainerError
from trainer.backbones import sources
from trainer.config.flat import from_flat
from trainer.runs.resume import fingerprint
from trainer.tensors import deferred
from trainer.weights import origin
from trainer.weights.trainee import Trainee
from twinflow.weights import save

from .conftest import families
from .forms import written

in_comfyui = families(lambda backbone: backbone.core.native_time.name and backbone.name not in ("sana", "openuni"))


def trainee(family, late, **flat):
    """As a run makes it, and the fingerprint of what it starts from."""
    backbone, settings = family.backbone, from_flat(dict(mode="full", model=family.backbone.name) | flat)
    with sources.late() if late else nullcontext():
        model = origin.model(backbone, settings, lambda: backbone.load(settings.data.source))
    known = fingerprint(model)
    torch.manual_seed(0)
    return Trainee(backbone, model, settings), known


def check(family, **flat):
    (ours, known), (theirs, wanted) = trainee(family, True, **flat), trainee(family, False, **flat)
    assert known == wanted and ours.tensors.keys() == theirs.tensors.keys()
    found, other = ours.network, theirs.network
    time = tuple(f"model.{name}." for name in (family.backbone.core.time.embedder, family.backbone.core.time.name))
    assert all(p.is_meta for name, p in found.named_parameters() if not name.startswith(time)), "it waits"
    expected = dict(other.named_parameters())
    for name, p in found.named_parameters():
        value, real = deferred.value_of(p), expected.pop(name)
        assert p.dtype == value.dtype == real.dtype and p.requires_grad == real.requires_grad, name
        assert torch.equal(value, real), name
    assert not expected
    tables = dict(other.named_buffers())
    assert all(torch.equal(b, tables.pop(name)) for name, b in found.named_buffers()) and not tables
    deferred.fill(found)
    x, cond, _ = family.batch(2)
    t, r = torch.tensor([0.7, 0.3]), torch.tensor([0.1, 0.3])
    with torch.no_grad():
        assert torch.equal(found(x, t, r, cond), other(x, t, r, cond))


def test_a_folder(family, whole):
    check(family, source=str(whole.folder))


@in_comfyui
@pytest.mark.parametrize("form", ["weight_scale a row", "int8"])
def test_a_quantised_file_under_comfyui_s_names(family, form, tmp_path):
    path = written(
        family.backbone.to_file(family.plain().state_dict()), form, tmp_path / "x.safetensors", "model.diffusion_model."
    )
    check(family, source=str(path))


@in_comfyui
def test_gguf(family, tmp_path):
    gguf = pytest.importorskip("gguf")
    from .test_packed import write_gguf

    tensors = family.backbone.to_file(family.plain().state_dict())
    check(family, source=str(write_gguf(tmp_path / "x.gguf", tensors, gguf.GGMLQuantizationType.Q8_0)))


def test_a_twinflow_model(family, whole, tmp_path):
    made, _ = trainee(family, False, source=str(whole.folder))
    for p in made.tensors.values():
        p.data += 0.01
    tensors = {name: t.bfloat16() for name, t in made.file({name: p.detach() for name, p in made.tensors.items()}).items()}
    save(tensors, tmp_path / "full.safetensors", made.provenance(7).to_metadata())
    check(family, source=str(whole.folder), init=str(tmp_path / "full.safetensors"))


@pytest.mark.parametrize("second", [True, False])
def test_an_adapter(family, whole, tmp_path, second):
    backbone, g = family.backbone, torch.Generator().manual_seed(0)
    flat = dict(mode="lora", model=backbone.name, rank=2, targets="all", time="two" if second else "fold")
    made = Trainee(backbone, backbone.load(str(whole.folder)), from_flat(flat))
    values = {name: torch.randn(p.shape, generator=g) * 0.1 for name, p in made.tensors.items()}
    save(made.file(values), tmp_path / "a.safetensors", made.provenance(7).to_metadata())
    check(family, source=str(whole.folder), init=str(tmp_path / "a.safetensors"))


def test_damage_is_said_when_it_is_read(family, whole, tmp_path):
    tensors = {name: t.clone() for name, t in whole.pipeline.transformer.state_dict().items()}
    name = next(name for name, t in tensors.items() if t.ndim == 2)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text((whole.folder / "transformer" / "config.json").read_text())
    with pytest.raises(TrainerError, match="holds values that are not numbers"):
        trainee(family, True, source=str(tmp_path / "x.safetensors"))
