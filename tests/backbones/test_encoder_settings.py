"""Where encoders compute and in which number format: what changes nothing, what changes little, what is refused."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import TrainerError
from trainer.cli import main
from trainer.config.resolving import resolve
from trainer.runs import encoders
from trainer.weights import placement

PROMPTS = ["a cat", "a much longer prompt about a dog in the rain", ""]
CPU = torch.device("cpu")


def settings_of(family, whole, **changes):
    values = dict(model=family.backbone.name, source=str(whole.folder), dtype="fp32") | changes
    return resolve("lora", values, notify=lambda line: None)


def encoded(family, whole, **changes):
    return encoders.text_encoder(family.backbone, settings_of(family, whole, **changes), CPU)(PROMPTS)


def same(ours, wanted):
    for one, other in zip(ours, wanted, strict=True):
        assert one.text == other.text and torch.equal(one.embeds, other.embeds)
        assert (one.pooled is None) == (other.pooled is None) and (one.pooled is None or torch.equal(one.pooled, other.pooled))


def test_streamed_is_as_whole(family, whole):
    plain = family.backbone.text_encoder(str(whole.folder), dtype=torch.float32)
    same(encoded(family, whole), plain.encode_text(PROMPTS))
    same(encoded(family, whole, encoders_device="stream"), plain.encode_text(PROMPTS))
    same(encoded(family, whole, encoders_device="cpu"), plain.encode_text(PROMPTS))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_as_much_stays_as_has_room(family, whole, share, monkeypatch):
    """And a streamed encoder that nobody holds is gone, too."""
    plain, placed = (family.backbone.text_encoder(str(whole.folder), dtype=torch.float32) for _ in range(2))
    for module in placed.modules:
        total = placement.size_of(module)
        away = placement.place(module, CPU, share * total)
        here = sum(p.nbytes for p in module.parameters() if not p.is_meta)
        assert here <= share * total and (away == 0) == (share == 1.0)
        assert away == total or here + away >= total - sum(b.nbytes for b in module.buffers())
    same(placed.encode_text(PROMPTS), plain.encode_text(PROMPTS))
    gone = weakref.ref(placed.modules[0])
    del placed, module
    gc.collect()
    assert gone() is None


def test_what_does_not_fit_the_card_is_streamed_and_said(family, whole, monkeypatch, capsys):
    monkeypatch.setattr(placement, "free_bytes", lambda device: 1000.0)
    ours = encoded(family, whole)
    assert "has no room on cpu" in (said := capsys.readouterr().out) and said.count("\n") == 1
    monkeypatch.undo()
    same(ours, encoded(family, whole))
    assert capsys.readouterr().out == ""


def test_int8_is_close(family, whole):
    ours, wanted = encoded(family, whole, encoders_dtype="int8"), encoded(family, whole)
    for one, other in zip(ours, wanted, strict=True):
        assert not torch.equal(one.embeds, other.embeds)
        assert (one.embeds - other.embeds).norm() < 0.05 * other.embeds.norm()


def test_the_cache_tells_what_changes_numbers(family, whole):
    names = lambda **changes: encoders.identities(family.backbone, settings_of(family, whole, **changes))
    text, image = names()
    known, folder = family.backbone, str(whole.folder)
    assert text == f"{known.core.name} {encoders.identity(known.text_files(folder))}"  # as in caches that are there
    assert image == f"{known.core.name} {encoders.identity(known.image_files(folder))}"
    for same_numbers in (dict(encoders_device="stream"), dict(encoders_dtype="fp32"), dict(encode_batch=7)):
        assert names(**same_numbers) == (text, image)
    assert names(dtype="bf16", encoders_dtype="fp32")[0] != names(dtype="bf16")[0] == text
    texts = {names(encoders_dtype=kind)[0] for kind in ("auto", "bf16", "int8", "nf4")}
    images = {names(vae_dtype=kind, vae_tiling=tiled)[1] for kind in ("fp32", "bf16") for tiled in (False, True)}
    assert len(texts) == len(images) == 4 and text in texts and image in images


def test_latents_in_bf16_and_in_tiles(family, whole):
    """A square of less than a tile is as without; a larger one has its own latents, of the same shape and nearly equal."""
    g = torch.Generator().manual_seed(0)
    small, large = (torch.rand(1, 3, side, side, generator=g) * 2 - 1 for side in (64, 576))

    def latents(x, **changes):
        return encoders.image_codec(family.backbone, settings_of(family, whole, **changes), CPU)(x)

    assert torch.equal(latents(small, vae_tiling=True), latents(small))
    plain = latents(large)
    for changes in (dict(vae_tiling=True), dict(vae_dtype="bf16")):
        other = latents(large, **changes)
        assert other.shape == plain.shape and other.dtype == torch.float32 and not torch.equal(other, plain)
        assert (other - plain).norm() < 0.1 * plain.norm()


def test_out_of_memory_is_one_line(family, whole, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(type(family.backbone), "encode_prompt", full)
    with pytest.raises(TrainerError, match="captions.*--encoders-device stream") as error:
        encoded(family, whole)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(encoders_device="gpu"), "--encoders-device is 'gpu'; expected auto, stream, cpu"),
        (dict(encoders_device="cuda:x"), "--encoders-device is 'cuda:x'"),
        (dict(encoders_device="stream", encoders_dtype="int8"), "--encoders-device stream cannot move int8 weights"),
        (dict(encoders_device="cpu", encoders_dtype="nf4"), "--encoders-dtype nf4 needs an NVIDIA GPU"),
        (dict(encoders_dtype="int4"), "encoders_dtype is 'int4'"),
    ],
)
def test_what_cannot_be(changes, said):
    with pytest.raises(TrainerError, match=said):
        resolve("lora", dict(model="qwen-image") | changes, notify=lambda line: None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("changes", [dict(encoders_device="cuda:1"), dict(encoders_device="xpu"), dict(encoders_dtype="nf4")])
def test_what_this_machine_has_not(changes):
    with pytest.raises(TrainerError, match="expected (auto, stream or cpu|bf16, fp32 or int8 here)"):
        encoders.check(resolve("lora", dict(model="qwen-image") | changes, notify=lambda line: None), CPU)


def test_encoders_are_never_in_memory_together(family, whole, tmp_path, monkeypatch, capsys):
    """In a whole run, with every setting at work: each is gone before the other is opened."""
    for i in range(2):
        Image.fromarray(np.full((64, 64, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    rows = [dict(source=f"{1 - i}.png", target=f"{i}.png", instruction=f"turn it {i}") for i in range(2)]
    if not family.backbone.edits:
        rows = [dict(image=f"{i}.png", text=f"a cat {i}") for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    opened = []

    def watch(name, modules):
        real = getattr(type(family.backbone), name)

        def watched(self, *arguments, **options):
            assert not any(reference() is not None for _, reference in opened), "both in memory"
            made = real(self, *arguments, **options)
            opened.append((name, weakref.ref(modules(made))))
            return made

        monkeypatch.setattr(type(family.backbone), name, watched)

    watch("text_encoder", lambda encoder: encoder.modules[0])
    watch("image_codec", lambda codec: codec.vae)
    asked = ["--model", family.backbone.name, "--source", str(whole.folder), "--data", str(tmp_path / "rows.jsonl"),
             "--out", str(tmp_path / "runs"), "--resolution", "64", "--steps", "1", "--sample-every", "0", "--threads", "1",
             "--warmup", "0", "--guidance", "1", "--tracker", "none", "--rank", "2", "--vae-dtype", "bf16",
             "--vae-tiling", "--encoders-device", "stream", "--encoders-dtype", "fp32"]  # fmt: skip
    assert main("lora", asked) == 0, capsys.readouterr().err
    assert [name for name, _ in opened] == ["image_codec", "text_encoder"]
