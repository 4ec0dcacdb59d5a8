"""What each mode writes, read back by us and, where it is a classic LoRA, by diffusers: the same samples."""

import pytest
import torch

from trainer.config.flat import from_flat
from trainer.weights.inference import generate, load_trained
from trainer.weights.trainee import Plain, Trainee, VelocityModel
from twinflow.presets import SAMPLING
from twinflow.weights import WeightsError, load, read_header, save

from .conftest import bare_pipeline

MODES = {
    "lora-two": dict(mode="lora", time="two", rank=2, alpha=3.0, targets="attention"),
    "lora-fold": dict(mode="lora", time="fold", rank=2, alpha=3.0, targets="all"),
    "full": dict(mode="full"),
}


def trained(family, mode, folder):
    """A trainee whose every trained tensor has moved, and its file."""
    made = Trainee(family.backbone, family.plain(), from_flat({**MODES[mode], "dtype": "fp32"}))
    g = torch.Generator().manual_seed(1)
    for p in made.tensors.values():
        p.data += torch.randn(p.shape, generator=g) * 0.05
    path = folder / f"{mode}.safetensors"
    save(made.file({name: p.detach() for name, p in made.tensors.items()}), path, made.provenance(7).to_metadata())
    return made, path


def samples(family, velocity, nfe=2):
    x, cond, _ = family.batch(2)
    return generate(velocity, x, cond, SAMPLING[nfe])


@pytest.mark.parametrize("mode", MODES)
def test_a_file_read_back_gives_the_same_samples(family, mode, tmp_path):
    made, path = trained(family, mode, tmp_path)
    back = load_trained(family.backbone, family.plain(), path)
    assert back.time == made.time
    for nfe in (1, 4, 8):
        ours, wanted = samples(family, back, nfe), samples(family, made.network, nfe)
        assert (
            ours.isfinite().all() and (wanted - samples(family, Plain(family.backbone, family.plain()), nfe)).abs().max() > 1e-2
        )
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_a_classic_lora_in_diffusers(family, tmp_path):
    """Every module is applied, and the pipeline's transformer then samples as ours does."""
    made, path = trained(family, "lora-fold", tmp_path)
    pipeline = bare_pipeline(family, family.plain())
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    modules = {name for name, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
    assert modules == set(family.backbone.lora_targets(family.plain(), "all"))
    theirs = lambda x, t, r, cond: VelocityModel(family.backbone, pipeline.transformer, "fold")(x, t, r, cond)
    for nfe in (1, 4):
        torch.testing.assert_close(samples(family, theirs, nfe), samples(family, made.network, nfe), rtol=1e-4, atol=1e-4)


def test_names(family, tmp_path):
    """formats.md: the prefix by family, alpha baked in, the second embedder under ComfyUI's names."""
    backbone = family.backbone
    made, path = trained(family, "lora-two", tmp_path)
    names = read_header(path).tensors
    assert read_header(path).metadata["twinflow.time"] == "two" and not [name for name in names if "alpha" in name]
    lora = {name for name in names if ".lora_" in name}
    prefix = "diffusion_model." if backbone.name in ("qwen-image", "qwen-image-edit", "z-image") else "transformer."
    assert lora == {f"{prefix}{m}.lora_{h}.weight" for m in backbone.lora_targets(family.plain(), "attention") for h in "AB"}
    second = {name.removeprefix("diffusion_model.") for name in names.keys() - lora}
    if backbone.core.layout.rules or backbone.core.name.startswith("qwen"):
        assert second == set(backbone.core.second)
    tensors, (name, b) = load(path), next(item for item in made.tensors.items() if ".lora_B." in item[0])
    module = name.removeprefix("model.").removesuffix(".lora_B.default.weight")
    torch.testing.assert_close(tensors[f"{prefix}{module}.lora_B.weight"], b * 1.5)  # alpha / rank
    _, path = trained(family, "full", tmp_path)
    names = read_header(path).tensors
    if backbone.core.layout.rules or backbone.core.name.startswith("qwen"):
        assert backbone.core.layout.native in names and set(backbone.core.second) <= set(names)


def test_another_family_s_file_is_refused(family, tmp_path):
    made, path = trained(family, "lora-fold", tmp_path)
    metadata = read_header(path).metadata
    save(load(path), path, metadata | {"twinflow.base_model": "another"})
    with pytest.raises(WeightsError, match="its base model is 'another'"):
        load_trained(family.backbone, family.plain(), path)
    tensors = {name.replace(".0.", ".77."): t for name, t in load(path).items()}
    save(tensors, path, metadata)
    with pytest.raises(WeightsError, match="does not fit"):
        load_trained(family.backbone, family.plain(), path)
