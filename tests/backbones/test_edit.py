"""Qwen-Image-Edit: reference pictures as patches and in the text encoder, modulated as at time 0 in 2511."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainer import TrainerError
from trainer.backbones import flux2_klein
from trainer.cli import main
from trainer.config.flat import from_flat
from trainer.weights.inference import generate, load_trained
from trainer.weights.trainee import Trainee, VelocityModel
from twinflow import objective
from twinflow.presets import OBJECTIVES, SAMPLING
from twinflow.roles import share_out
from twinflow.weights import load, read_header, save

from .conftest import GOLDENS, made, published


def pictures(rows=2, seed=5):
    """Latents of two references of other shapes than x."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 16, 4, 6, generator=g), torch.randn(rows, 16, 8, 4, generator=g)


def test_velocity_is_that_of_the_pipeline(edit, edit_whole):
    """The transformer called as QwenImageEditPlusPipeline calls it."""
    pipe, (x, (embeds, mask), _), t = edit_whole.pipeline, edit.batch(2), torch.tensor([0.8, 0.3])
    packed = [pipe._pack_latents(z.contiguous(), 2, 16, *z.shape[2:]) for z in (x, *pictures())]
    shapes = [(1, z.shape[2] // 2, z.shape[3] // 2) for z in (x, *pictures())]
    with torch.no_grad():
        out = pipe.transformer(
            hidden_states=torch.cat(packed, 1), timestep=t, encoder_hidden_states=embeds, encoder_hidden_states_mask=mask,
            img_shapes=[shapes] * 2, return_dict=False,
        )[0][:, : packed[0].shape[1]]  # fmt: skip
        wanted = pipe._unpack_latents(out, 64, 64, 8)[:, :, 0]
        ours = edit.backbone.velocity(pipe.transformer, x, t, (embeds, mask, *pictures()))
        blind = edit.backbone.velocity(pipe.transformer, x, t, (embeds, mask))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    assert (ours - blind).abs().max() > 1e-3, "the references are seen"


def test_at_equal_times_the_second_embedder_changes_nothing(edit):
    (x, cond, _), t, model = edit.batch(2), torch.tensor([0.8, 0.3]), edit.plain()
    with torch.no_grad():
        before = edit.backbone.velocity(model, x, t, (*cond, *pictures()))
        edit.backbone.core.time.install(model)
        after = VelocityModel(edit.backbone, model, "two")(x, t, t, (*cond, *pictures()))
        far = VelocityModel(edit.backbone, model, "two")(x, t, t * 0, (*cond, *pictures()))
    assert torch.equal(before, after) and not torch.equal(before, far)


@pytest.mark.parametrize("options", [dict(mode="lora", rank=2), dict(mode="lora", time="fold", rank=2), dict(mode="full")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_step(edit, options, checkpointing):
    trainee = Trainee(edit.backbone, edit.plain(), from_flat({**options, "dtype": "fp32"}))
    for name, p in trainee.tensors.items():
        if ".lora_B." in name:
            p.data += 0.01
    if checkpointing:
        trainee.network.model.enable_gradient_checkpointing()
    (x, cond, uncond), references, settings = edit.batch(4), pictures(4), OBJECTIVES["twinflow"]
    draws = objective.draw(x, settings, torch.Generator().manual_seed(2))
    roles = share_out(4, settings.roles)
    both = ((*cond, *references), (*uncond, *references))
    loss = objective.loss(objective.Networks(trainee.network), objective.Batch(x, *both), settings, roles, draws)
    loss.total.backward()
    assert loss.total.isfinite()
    for name, p in trainee.network.named_parameters():
        assert (p.grad is not None and p.grad.abs().sum() > 0) if name in trainee.tensors else p.grad is None, name


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_files(edit, mode, tmp_path):
    """With the mark by which ComfyUI tells 2511, in full weights."""
    source = tmp_path / "base.safetensors"
    marks = {"__index_timestep_zero__": torch.zeros(0)} if edit.config.get("zero_cond_t") else {}
    save_file(edit.plain().state_dict() | marks, source)
    base = edit.backbone.load(str(source))
    assert bool(getattr(base.config, "zero_cond_t", False)) == bool(marks)
    trainee = Trainee(edit.backbone, base, from_flat(dict(mode=mode, dtype="fp32")))
    for p in trainee.tensors.values():
        p.data += torch.randn_like(p) * 0.05
    path = tmp_path / "trained.safetensors"
    save(trainee.file({n: p.detach() for n, p in trainee.tensors.items()}), path, trainee.provenance(1).to_metadata())
    assert set(marks) <= set(load(path)) or mode == "lora"
    back = load_trained(edit.backbone, edit.backbone.load(str(source)), path)
    (x, cond, _), velocities = edit.batch(2), (trainee.network, back)
    made = [generate(v, x, (*cond, *pictures()), SAMPLING[4], seed=3) for v in velocities]
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)


def test_from_a_folder(edit, edit_whole):
    model = edit.backbone.load(str(edit_whole.folder))
    assert bool(getattr(model.config, "zero_cond_t", False)) == bool(edit.config.get("zero_cond_t"))
    assert ("__index_timestep_zero__" in model.state_dict()) == bool(edit.config.get("zero_cond_t"))


def test_a_diffusers_without_zero_cond_t_is_named(edit, edit_whole, tmp_path, monkeypatch):
    folder = edit_whole.folder / "transformer"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"of_tomorrow": True}))
    monkeypatch.setattr(type(edit.backbone), "flags", ("zero_cond_t", "of_tomorrow"))
    with pytest.raises(TrainerError, match="needs of_tomorrow, which diffusers .* does not know"):
        edit.backbone.load(str(tmp_path))


def test_the_text_encoder_sees_the_pictures(edit, edit_whole):
    """As the pipeline encodes them, and with the two-dimensional positions that Qwen2.5-VL gives to pictures."""
    g = torch.Generator().manual_seed(0)
    seen = [torch.rand(3, 48, 64, generator=g) * 2 - 1, torch.rand(3, 64, 64, generator=g) * 2 - 1]
    encoder, pipe = edit.backbone.text_encoder(str(edit_whole.folder), dtype=torch.float32), edit_whole.pipeline
    prompts = encoder.encode_text(["make it red", "make it red", ""], [seen[:1], seen, seen])
    lengths = [len(p.embeds) for p in prompts]
    assert lengths[0] < lengths[1] and lengths[2] == lengths[1] - len("make it red")
    sizes = [(448, 320), (384, 384)]  # of 384 x 384 pixels, in multiples of 32
    images = [
        pipe.image_processor.resize(Image.fromarray(((s + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()), height, width)
        for s, (width, height) in zip(seen, sizes)
    ]
    asked = {}
    hook = lambda module, args, kwargs: asked.update(kwargs)
    handle = pipe.text_encoder.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        flat, _ = pipe.encode_prompt("make it red", image=images)
        handle.remove()
        assert flat[0].shape == prompts[1].embeds.shape
        ids = asked["input_ids"]
        tokens = (asked["image_grid_thw"].prod(1) // 4).sum()
        assert (ids == pipe.text_encoder.config.image_token_id).sum() == tokens
        types = (ids == pipe.text_encoder.config.image_token_id).int()
        positions, _ = pipe.text_encoder.model.get_rope_index(
            ids, image_grid_thw=asked["image_grid_thw"], attention_mask=asked["attention_mask"], mm_token_type_ids=types
        )
        assert not torch.equal(positions[0], positions[1]), "pictures have rows and columns"
        wanted = pipe.text_encoder(**asked, position_ids=positions).hidden_states[-1][0, 64:]
    torch.testing.assert_close(prompts[1].embeds, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def klein():
    return made(flux2_klein.BACKBONES["flux2-klein-edit"], json.loads((GOLDENS / "flux2.json").read_text())["config"])


@pytest.fixture(scope="module")
def klein_whole(klein, tmp_path_factory):
    return published(klein, tmp_path_factory.mktemp("klein"))


def test_flux2_sees_references_as_its_pipeline(klein, klein_whole):
    """The transformer called as Flux2KleinPipeline calls it, for one row: the pipeline has one set of references for all."""
    pipe, (x, (embeds, mask), _), t = klein_whole.pipeline, klein.batch(1), torch.tensor([0.8])
    g = torch.Generator().manual_seed(5)
    references = torch.randn(1, 128, 2, 3, generator=g), torch.randn(1, 128, 4, 2, generator=g)
    ids = torch.cat([pipe._prepare_latent_ids(x), pipe._prepare_image_ids(list(references))], 1)
    with torch.no_grad():
        out = pipe.transformer(
            hidden_states=torch.cat([pipe._pack_latents(z) for z in (x, *references)], 1), timestep=t,
            encoder_hidden_states=embeds, txt_ids=pipe._prepare_text_ids(embeds), img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        wanted = out[:, : x[0, 0].numel()].mT.reshape(x.shape)
        ours = klein.backbone.velocity(pipe.transformer, x, t, (embeds, mask, *references))
        blind = klein.backbone.velocity(pipe.transformer, x, t, (embeds, mask))
        far = VelocityModel(klein.backbone, second(klein), "two")(x, t, t * 0, (embeds, mask, *references))
        same = VelocityModel(klein.backbone, second(klein), "two")(x, t, t, (embeds, mask, *references))
    assert torch.equal(ours, wanted) and torch.equal(same, wanted) and not torch.equal(far, wanted)
    assert (ours - blind).abs().max() > 1e-3, "the references are seen"


def second(family):
    model = family.plain()
    family.backbone.core.time.install(model)
    return model


def test_flux2_is_trained_with_references(klein, klein_whole, tmp_path):
    g = np.random.default_rng(0)
    for part in ("source", "target"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for i in range(4):
            picture = Image.fromarray(g.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            picture.save(tmp_path / "data" / part / f"{i}.png")
    for i in range(4):
        (tmp_path / "data" / "target" / f"{i}.txt").write_text("a drawing")
    options = ["--model", "flux2-klein-edit", "--source", klein_whole.folder, "--data", tmp_path / "data", "--steps", "1"]
    options += [
        "--resolution",
        "64",
        "--rank",
        "2",
        "--threads",
        "1",
        "--dtype",
        "fp32",
        "--tracker",
        "none",
        "--out",
        tmp_path,
    ]
    assert main("lora", [*map(str, options), "--sample-every", "0", "--warmup", "0", "--cache", str(tmp_path / "cache")]) == 0
    found = read_header(next(tmp_path.rglob("flux2-klein-edit-lora.safetensors")))
    assert found.metadata["twinflow.base_model"] == "flux2-klein"
