"""A LoRA from a model minus its base, of every family."""

import re

import pytest
import torch

from trainer.extract import main
from trainer.merge import main as merge
from trainer.weights.inference import load_trained
from trainer.weights.lora_file import read_adapter
from twinflow.backbones import is_second_embedder
from twinflow.weights import Provenance, load, read_header, save

from .test_files import samples, trained
from .test_merge import named


@pytest.fixture
def pair(family, tmp_path):
    """base: a folder.  full(mode): the file of a model that an adapter was merged into, and the adapter's maker."""
    family.plain().save_pretrained(tmp_path / "base")
    family.plain().save_config(tmp_path)

    def full(mode):
        made, adapter = trained(family, mode, tmp_path)
        path = tmp_path / "full.safetensors"
        args = [str(tmp_path / "base"), "--lora", str(adapter), "--output", str(path), "--overwrite", *named(family)]
        assert merge(args) == 0
        return made, path

    return tmp_path / "base", full


def extracted(full, base, family, *more, code=0):
    out = full.parent / "out.safetensors"
    assert main([str(full), "--base", str(base), "--output", str(out), "--overwrite", *named(family), *more]) == code
    return out


@pytest.mark.parametrize("size", [["--rank", "4"], ["--energy", ".99999"]])
@pytest.mark.parametrize("mode", ["lora-two", "lora-fold"])
def test_what_was_merged_comes_out_again(family, pair, mode, size, capsys):
    """The adapter's own rank is found; base and adapter sample as the model; nothing is kept at a rank that is too high."""
    base, full = pair
    made, path = full(mode)
    out = extracted(path, base, family, *size, "--dtype", "fp32")
    assert "energy of the change is kept" in capsys.readouterr().out
    provenance = Provenance.from_metadata(read_header(out).metadata)
    assert (provenance.time, provenance.rank, provenance.step) == (made.time, 2, 7)
    back = load_trained(family.backbone, family.plain(), out)
    for nfe in (1, 4):
        torch.testing.assert_close(samples(family, back, nfe), samples(family, made.network, nfe), rtol=1e-3, atol=1e-3)


def test_a_released_model_says_nothing_of_itself(family, pair):
    base, full = pair
    _, path = full("lora-two")
    save(load(path), path)
    provenance = Provenance.from_metadata(read_header(extracted(path, base, family, "--rank", "2")).metadata)
    assert provenance.time == "two" and provenance.signed_time == family.backbone.core.signed_time
    assert provenance.sampler == family.backbone.sampling


def test_a_plain_model_gives_a_plain_lora(family, pair):
    """A turbo minus its base: what --init and any loader take."""
    base, full = pair
    _, path = full("lora-fold")
    save(load(path), path)
    out = extracted(path, base, family, "--rank", "2", "--dtype", "fp32")
    assert not [name for name in read_header(out).metadata if name.startswith("twinflow")]
    adapter = read_adapter(out, family.backbone, family.plain())
    assert not adapter.second and set(adapter.modules) == set(family.backbone.lora_targets(family.plain(), "all"))
    ups, state = adapter.modules, dict(family.plain().state_dict())
    whole = family.backbone.from_file(load(path))
    for module, own in ups.items():
        torch.testing.assert_close(state[f"{module}.weight"] + own.up @ own.down, whole[f"{module}.weight"], atol=1e-4, rtol=0)


def test_the_table_is_true_and_has_the_worst_first(family, pair, capsys):
    """And what is no linear layer counts in the whole."""
    base, full = pair
    _, path = full("lora-fold")
    tensors = load(path)
    vector = next(name for name, t in tensors.items() if t.ndim == 1)
    tensors[vector] = tensors[vector] + 0.1
    save(tensors, path, read_header(path).metadata)
    capsys.readouterr()
    extracted(path, base, family, "--rank", "1", "--table", "0")
    text = capsys.readouterr().out
    shares = [float(line.split()[0]) for line in text.splitlines() if re.match(r" +[01]\.\d{4} ", line)]
    assert shares == sorted(shares) and 0.3 < shares[0] < shares[-1] <= 1
    assert len(shares) == len(family.backbone.lora_targets(family.plain(), "all"))
    state, whole = dict(family.plain().state_dict()), family.backbone.from_file(load(path))
    worst = re.search(r" (\S+)\n", text.split("layer\n")[1])[1]
    s = torch.linalg.svdvals((whole[f"{worst}.weight"] - state[f"{worst}.weight"]).double()).square()
    assert shares[0] == pytest.approx(float(s[0] / s.sum()), abs=2e-4)
    assert "1 tensors that no LoRA is of changed" in text


def test_bad_input_is_one_line(family, pair, tmp_path, capsys):
    base, full = pair
    _, path = full("lora-two")
    metadata = read_header(path).metadata
    capsys.readouterr()

    def fails(words, *more, source=path, against=base):
        size = [] if "--rank" in more or "--energy" in more else ["--rank", "2"]
        out = extracted(source, against, family, *size, *more, code=2)
        error = capsys.readouterr().err
        assert error.count("error:") == 1 and all(word in error for word in words), error
        assert not out.exists() and not list(tmp_path.glob(".out*"))

    def spoilt(change):
        tensors = load(path)
        change(tensors)
        save(tensors, tmp_path / "bad.safetensors", metadata)
        return tmp_path / "bad.safetensors"

    second = [name for name in load(path) if is_second_embedder(name)]
    fails(["--rank is 0"], "--rank", "0")
    fails(["--energy is 2"], "--energy", "2")
    fails(["second time embedder is missing"], source=spoilt(lambda t: [t.pop(name) for name in second]))
    fails(["has no"], source=spoilt(lambda t: t.pop(second[0])))
    fails(["not numbers"], source=spoilt(lambda t: [v.fill_(float("nan")) for v in list(t.values())[-1:]]))
    fails(["holds 'extra'"], source=spoilt(lambda t: t.update(extra=torch.zeros(2))))
    fails(["TwinFlow model; expected the plain one"], against=path)
    fails(["no layer differs"], source=base)
    family.plain(seed=1).save_pretrained(tmp_path / "other")
    fails(["nothing in common"], against=tmp_path / "other")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-4])
    fails(["cut off"], source=tmp_path / "cut.safetensors")
