"""LoRAs and adapters merged into a base, of every family, from every form of it."""

import pytest
import torch

from trainer.merge import main
from trainer.weights.inference import load_trained
from twinflow.weights import Provenance, load, read_header, save

from .test_files import samples, trained


@pytest.fixture(params=["file", "folder"])
def base(family, request, tmp_path):
    """A plain model: one file under ComfyUI's names, or diffusers' folder in shards."""
    model = family.plain()
    if request.param == "folder":
        model.save_pretrained(tmp_path / "base", max_shard_size="60kB")
        assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
        return tmp_path / "base"
    tensors = family.backbone.to_file(dict(model.state_dict()))
    save(tensors, tmp_path / "base.safetensors")
    if family.backbone.core.name in ("sana", "openuni"):  # no tensor tells a small SANA's heads
        model.save_config(tmp_path)
    return tmp_path / "base.safetensors"


def merged(base, *loras, out="out.safetensors", more=()):
    path = base.parent / out
    code = main([str(base), "--lora", *map(str, loras), "--output", str(path), *more])
    assert code == 0
    return path


def named(family):
    return ["--model", family.backbone.name] if family.backbone.core.variant else []


@pytest.mark.parametrize("mode", ["lora-two", "lora-fold"])
def test_a_merged_adapter_is_one_twinflow_file(family, base, mode, tmp_path):
    made, adapter = trained(family, mode, tmp_path)
    path = merged(base, adapter, more=named(family))
    provenance = Provenance.from_metadata(read_header(path).metadata)
    assert (provenance.time, provenance.base_model, provenance.rank) == (made.time, family.backbone.core.name, None)
    assert provenance.step == 7 and provenance.sampler == made.provenance(7).sampler
    if mode == "lora-two":
        back = load_trained(family.backbone, family.plain(seed=5), path)
        for nfe in (1, 4):
            torch.testing.assert_close(samples(family, back, nfe), samples(family, made.network, nfe), rtol=1e-4, atol=1e-4)
    else:
        assert load(path).keys() == family.backbone.to_file(dict(family.plain().state_dict())).keys()


def test_weights_are_summed_in_float32(family, base, tmp_path):
    """Bit for bit, and whatever nothing is added to stays as it is."""
    made, path = trained(family, "lora-fold", tmp_path)
    save(load(path), tmp_path / "b.safetensors")
    out = load(merged(base, f"{path}=0.5", f"{tmp_path}/b.safetensors=-0.25", more=named(family)))
    model, pairs = family.plain(), {}
    for name, p in made.tensors.items():
        module, _, half = name.removeprefix("model.").partition(".lora_")
        pairs.setdefault(module, {})[half[0]] = p.detach()
    wanted = dict(model.state_dict())
    for module, pair in pairs.items():
        up = pair["B"] * 1.5
        for weight in (0.5, -0.25):
            wanted[f"{module}.weight"] = torch.addmm(wanted[f"{module}.weight"], up * weight, pair["A"])
    for name, tensor in family.backbone.to_file(wanted).items():
        assert torch.equal(out[name], tensor), name
    assert out.keys() == family.backbone.to_file(wanted).keys()


def test_dtypes(family, base, tmp_path):
    _, adapter = trained(family, "lora-two", tmp_path)
    whole = load(merged(base, adapter, more=named(family)))
    half = load(merged(base, adapter, out="half.safetensors", more=["--dtype", "bf16", *named(family)]))
    assert all(torch.equal(half[name], t.bfloat16()) for name, t in whole.items())


def test_bad_input_is_one_line(family, tmp_path, capsys):
    _, adapter = trained(family, "lora-two", tmp_path)
    model = family.plain()
    model.save_pretrained(tmp_path / "base")
    base, out = tmp_path / "base", tmp_path / "out.safetensors"
    tensors, metadata = load(adapter), read_header(adapter).metadata
    second = [name for name in tensors if "lora" not in name]

    def fails(words, lora=adapter, source=base, output=out, more=()):
        code = main([str(source), "--lora", str(lora), "--output", str(output), *named(family), *more])
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1, error
        assert all(word in error for word in words), error
        assert not out.exists()

    def spoilt(change):
        own = {name: t.clone() for name, t in tensors.items()}
        change(own)
        save(own, tmp_path / "bad.safetensors", metadata)
        return tmp_path / "bad.safetensors"

    fails(
        ["which neither it nor the base has"],
        spoilt(lambda t: [t.pop(n) for n in second]),
    )
    fails(["does not fit", "cut"], spoilt(lambda t: t.pop(second[0])))
    fails(["not finite"], spoilt(lambda t: next(iter(t.values())).fill_(float("nan"))))
    save(tensors, tmp_path / "other.safetensors", metadata | {"twinflow.base_model": "another"})
    fails(["is of another", family.backbone.core.name], tmp_path / "other.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(adapter.read_bytes()[:-8])
    fails(["cut off"], cut)
    fails(["is no number", "0.8"], f"{adapter}=much")
    fails(["is there already", "--overwrite"], output=adapter, lora=cut)
    file = base / "diffusion_pytorch_model.safetensors"
    fails(["is an input"], output=file, more=["--overwrite"])
    weights = load(file)
    weights[next(iter(weights))].view(-1)[0] = float("inf")
    save(weights, file)
    fails(["not numbers"])
    assert not list(tmp_path.glob(".*.tmp"))
    weights.pop(sorted(weights)[0])
    save(weights, file)
    fails(["has no", "is of another model"])


def test_another_family_is_refused(family, tmp_path, capsys):
    _, adapter = trained(family, "lora-fold", tmp_path)
    model = family.plain()
    name = "sana" if family.backbone.core.name == "z-image" else "z-image"
    model.save_pretrained(tmp_path / "base")
    assert (
        main([str(tmp_path / "base"), "--lora", str(adapter), "--model", name, "--output", str(tmp_path / "x.safetensors")])
        == 2
    )
    assert "expected a" in capsys.readouterr().err
