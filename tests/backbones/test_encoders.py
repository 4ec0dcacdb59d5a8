"""Text encoders and autoencoders against the diffusers pipelines whose place they take."""

import gc
import weakref

import pytest
import torch

from trainer import TrainerError

from .conftest import families

PROMPTS = ["a cat", "a much longer prompt about a dog in the rain", ""]


@pytest.fixture(scope="module")
def encoded(family, whole):
    encoder = family.backbone.text_encoder(str(whole.folder), dtype=torch.float32)
    return encoder.encode_text(PROMPTS)


@families(lambda backbone: backbone.name != "openuni")  # diffusers has no such pipeline: see test_openuni
def test_prompts_are_those_of_the_pipeline(family, whole, encoded):
    """The pipeline encodes all prompts at once, padded; ours come one by one, without padding."""
    pipe, name = whole.pipeline, family.backbone.name
    with torch.no_grad():
        if name == "qwen-image-2.1":
            embeds, mask, _ = pipe.encode_prompt(PROMPTS)
        elif name.startswith("qwen-image"):
            embeds, mask = pipe.encode_prompt(PROMPTS)
        elif name == "z-image":
            rows, _ = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
            embeds, mask = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), None
            assert [len(p.embeds) for p in encoded] == [len(row) for row in rows]
        elif name == "flux2-klein":
            embeds, _ = pipe.encode_prompt(PROMPTS)
            assert embeds.shape[1] == 512
        elif name == "krea2":
            embeds, mask = pipe.encode_prompt(PROMPTS)
            embeds = embeds.flatten(2)
        elif name == "sd3.5":
            embeds, _, pooled, _ = pipe.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
            assert embeds.shape[1] == 77 + 256
        else:  # the unconditional prompt goes without the instruction
            default = type(pipe).__call__.__wrapped__.__defaults__
            instruction = next(d for d in default if isinstance(d, list) and len(d) > 5)
            embeds, mask, nothing, nothing_mask = pipe.encode_prompt(PROMPTS[:2], complex_human_instruction=instruction)
            embeds, mask = torch.cat([embeds, nothing[:1]]), torch.cat([mask, nothing_mask[:1]])
    for i, prompt in enumerate(encoded):
        row = embeds[i]
        if name in ("qwen-image", "qwen-image-edit", "qwen-image-2.1", "krea2", "sana") and mask is not None:
            row = row[mask[i].bool()]
        elif name == "z-image":
            row = rows[i]
        assert prompt.text == PROMPTS[i] and prompt.embeds.shape == row.shape
        torch.testing.assert_close(prompt.embeds, row, rtol=1e-4, atol=1e-5)
        if name == "sd3.5":
            torch.testing.assert_close(prompt.pooled, pooled[i], rtol=1e-4, atol=1e-5)
        else:
            assert prompt.pooled is None
    assert encoded[0].embeds.isfinite().all() and encoded[0].embeds.shape[-1] == family.text


def test_an_embedding_does_not_depend_on_its_neighbours(family, whole, encoded):
    encoder = family.backbone.text_encoder(str(whole.folder), dtype=torch.float32)
    for prompt in encoded[::-1]:
        (alone,) = encoder.encode_text([prompt.text])
        assert torch.equal(alone.embeds, prompt.embeds)


def test_captions_are_read_up_to_the_limit(family, whole):
    """At the limit the last letter matters; beyond it no letter does, to the same reader."""
    backbone = family.backbone
    encoder = backbone.text_encoder(str(whole.folder), dtype=torch.float32)
    count = backbone.token_counter(str(whole.folder))
    assert set(count("a" * 2000)) == set(backbone.limits) and not any(n > most for n, most in count("a cat").values())
    seen = {"CLIP": lambda p: p.pooled, "T5": lambda p: p.embeds[77:]}
    for reader, limit in backbone.limits.items():
        most = next(n for n in range(limit, 0, -1) if count("a" * n)[reader][0] <= limit)  # it counts all near the limit
        assert count("a" * most)[reader] == (limit, limit) and count("a" * (most + 7))[reader] == (limit + 7, limit)
        part = seen.get(reader, lambda p: p.embeds)
        texts = ["a" * (most - 1) + "b", "a" * most, "a" * limit + "bc", "a" * limit + "cd"]
        one, other, beyond, further = map(part, encoder.encode_text(texts))
        assert not torch.equal(one, other) and torch.equal(beyond, further)
    if not backbone.limits and not backbone.edits:
        assert len({tuple(encoder.encode_text(["a" * 1100 + c])[0].embeds.flatten().tolist()) for c in "bc"}) == 2


def test_an_edit_reads_any_caption(edit, edit_whole):
    encoder = edit.backbone.text_encoder(str(edit_whole.folder), dtype=torch.float32)
    images = [[torch.zeros(3, 32, 32)]] * 2
    one, two = encoder.encode_text(["a" * 1100 + c for c in "bc"], images)
    assert len(one.embeds) > 1100 and not torch.equal(one.embeds, two.embeds) and not edit.backbone.limits


def test_a_batch_of_prompts_goes_through_the_transformer(family, whole, encoded):
    """Padding changes nothing: each row alone gives what it gives in the batch."""
    backbone, model = family.backbone, whole.pipeline.transformer
    x, t = torch.randn(3, family.channels, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.5, 0.1])
    with torch.no_grad():
        together = backbone.velocity(model, x, t, backbone.collate(encoded))
        for i in range(3):
            alone = backbone.velocity(model, x[i : i + 1], t[i : i + 1], backbone.collate(encoded[i : i + 1]))
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=2e-5)


def reference_latents(pipe, name, x):
    vae = pipe.vae
    with torch.no_grad():
        if name.startswith("qwen-image") or name == "krea2":
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1), value=1.0) if name == "qwen-image-2.1" else x  # opaque
            z = vae.encode(x.unsqueeze(2)).latent_dist.mode()
            mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
            return ((z - mean) / std)[:, :, 0]
        if name == "flux2-klein":
            return whole_latents(pipe, vae.encode(x).latent_dist.mode())
        if name in ("sana", "openuni"):
            return vae.encode(x).latent * vae.config.scaling_factor
        return (vae.encode(x).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def whole_latents(pipe, z):
    """FLUX.2's, of its autoencoder's."""
    mean, spread = (v.view(1, -1, 1, 1) for v in (pipe.vae.bn.running_mean, pipe.vae.bn.running_var + 1e-4))
    return (pipe._patchify_latents(z) - mean) / spread.sqrt()


def test_latents_are_those_of_the_pipeline(family, whole):
    codec = family.backbone.image_codec(str(whole.folder))
    x = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode_image(x)
    assert latents.dtype == torch.float32 and latents.shape[:2] == (2, family.channels)
    torch.testing.assert_close(latents, reference_latents(whole.pipeline, family.backbone.name, x), rtol=1e-4, atol=1e-5)


# diffusers has no pipeline of the first; that of the second always starts from a picture of a megapixel
@families(lambda backbone: backbone.name not in ("openuni", "qwen-image-edit"))
def test_decoding_is_the_pipeline_s(family, whole):
    """The pipeline asked for its latents, then for its picture."""
    pipe, name = whole.pipeline, family.backbone.name
    side = 64
    pipe.set_progress_bar_config(disable=True)
    options = dict(prompt="a cat", height=side, width=side, num_inference_steps=1)
    options |= dict(guidance_scale=1.0) if name in ("sd3.5", "sana", "flux2-klein") else {}
    options |= dict(use_resolution_binning=False) if name == "sana" else {}
    options |= dict(guidance_scale=0.0) if name in ("z-image", "krea2") else {}

    def run(output):
        return pipe(**options, generator=torch.Generator().manual_seed(0), output_type=output).images

    latents, wanted = run("latent"), run("pt")
    if name.startswith("qwen-image"):
        latents = pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor)[:, :, 0]
    if name == "qwen-image-2.1":
        wanted = wanted[:, :3] * wanted[:, 3:] + 1 - wanted[:, 3:]  # on white
    if name == "krea2":
        latents = pipe._unpack_latents(latents, side, side)[:, :, 0]
    if name == "flux2-klein":
        latents = whole_latents(pipe, latents)
    picture = family.backbone.image_codec(str(whole.folder)).decode(latents)
    assert picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0
    torch.testing.assert_close(picture, wanted, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_nobody_holds_is_gone(family, whole):
    encoder, codec = family.backbone.text_encoder(str(whole.folder)), family.backbone.image_codec(str(whole.folder))
    weights = [weakref.ref(next(encoder.pipeline.text_encoder.parameters())), weakref.ref(next(codec.vae.parameters()))]
    assert all(w() is not None for w in weights)
    encode = encoder.encode_text
    del encoder, codec, encode
    gc.collect()
    assert all(w() is None for w in weights)


def test_a_missing_part_is_one_line(family, whole, tmp_path):
    (tmp_path / "vae").mkdir()
    with pytest.raises(TrainerError, match="vae cannot be loaded") as error:
        family.backbone.image_codec(str(tmp_path))
    assert "\n" not in str(error.value)
    for name in ("text_encoder", "internvl"):
        (tmp_path / name).mkdir()
    with pytest.raises(TrainerError, match="has no .*/ folder|cannot be loaded"):
        family.backbone.text_encoder(str(tmp_path))
