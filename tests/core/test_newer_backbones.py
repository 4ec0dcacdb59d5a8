"""Time conditioning in five more of diffusers' classes, tiny and random: no stacking of times reaches their embedders."""

import types

import diffusers
import pytest
import torch
from torch import nn

from twinflow.time_embedding import SecondEmbedder, sinusoid

T, R = torch.tensor([0.999, 0.7]), torch.tensor([0.3, 0.1])
SMALL = dict(in_channels=8, attention_head_dim=16, num_attention_heads=2)
FLUX = dict(**SMALL, num_layers=1, num_single_layers=1, joint_attention_dim=12)
KREA = dict(num_layers=1, num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=32, text_hidden_dim=16)
KREA |= dict(num_text_layers=3, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=32)
KREA |= dict(num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6))
QWEN = dict(out_channels=8, num_layers=2, context_in_dim=12, axes_dims_rope=(4, 6, 6))
COSMOS = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2.0)
COSMOS |= dict(text_embed_dim=12, adaln_lora_dim=4, max_size=(4, 32, 32), extra_pos_embed_type=None, concat_padding_mask=True)
# FLUX.2 casts its features to the dtype of the time: the layers behind them get the pair, with features of the exact times.
CLASSES = {  # class, configuration, record
    "QwenImage21Transformer2DModel": (SMALL | QWEN, SecondEmbedder("time_text_embed", "time_text_embed_2")),
    "Flux2Transformer2DModel": (
        FLUX | dict(axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False),
        SecondEmbedder("time_guidance_embed.timestep_embedder", "time_guidance_embed_2", scale=1000.0, sinusoid=sinusoid),
    ),
    "Krea2Transformer2DModel": (SMALL | KREA, SecondEmbedder("time_embed", "time_embed_2")),
    "LongCatImageTransformer2DModel": (
        FLUX | dict(pooled_projection_dim=12, axes_dims_rope=[4, 6, 6]),
        SecondEmbedder("time_embed", "time_embed_2", scale=1000.0),
    ),
    "CosmosTransformer3DModel": (COSMOS, SecondEmbedder("time_embed", "time_embed_2", argument=1)),
}


def forward(model, t, dtype):
    g, name = torch.Generator().manual_seed(1), type(model).__name__
    x, c = torch.randn(2, 16, 8, generator=g).to(dtype), torch.randn(2, 5, 12, generator=g).to(dtype)
    if name.startswith("Cosmos"):
        x = torch.randn(2, 4, 1, 8, 8, generator=g).to(dtype)
        return model(x, t, c, padding_mask=torch.zeros(1, 1, 8, 8, dtype=dtype), return_dict=False)[0]
    if name.startswith("Krea2"):
        c = torch.randn(2, 5, 3, 16, generator=g).to(dtype)
        return model(x, c, t, position_ids=torch.zeros(21, 3), return_dict=False)[0]
    if name.startswith("QwenImage21"):
        mask = torch.tensor([[False] * 5 + [True] * 4] * 2)
        return model(x, c, t, img_shapes=[[(1, 4, 4)]] * 2, img_mask=mask, return_dict=False)[0]
    axes = 4 if name.startswith("Flux2") else 3
    return model(x, c, t, img_ids=torch.zeros(16, axes), txt_ids=torch.zeros(5, axes), return_dict=False)[0]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_the_pair_reaches_the_embedder_exactly(name, dtype, monkeypatch):
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    if name.startswith("Cosmos"):  # its forward needs torchvision, for one resize
        from diffusers.models.transformers import transformer_cosmos as cosmos

        resize = lambda mask, size, interpolation: nn.functional.interpolate(mask, size)
        stub = types.SimpleNamespace(
            InterpolationMode=types.SimpleNamespace(NEAREST=0), functional=types.SimpleNamespace(resize=resize)
        )
        monkeypatch.setattr(cosmos, "transforms", stub, raising=False)
    config, time = CLASSES[name]
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config).eval().to(dtype)
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.1)
    plain, seen = forward(model, T, dtype), []
    base = model.get_submodule(time.embedder)
    outputs = lambda out: out if isinstance(out, tuple) else (out,)
    second = time.install(model)
    for p in second.parameters():
        nn.init.normal_(p, std=0.3)
    embedder = time.of(model)
    for module in (embedder, base, second):
        module.register_forward_hook(lambda m, args, out: seen.append(outputs(out)))
    same = embedder.at(T, T, forward, model, T, dtype)
    if dtype == torch.float32:
        assert torch.equal(same, plain)
    seen.clear()
    other = embedder.at(T, R, forward, model, T, dtype)
    assert not torch.equal(other, same)
    for there, here, total in zip(*seen, strict=True):  # the second's output, the first's, the sum
        gap = (T - R).to(dtype).view(2, *[1] * (here.ndim - 1))
        torch.testing.assert_close(total[:2], here[:2] + gap * there)
        assert torch.equal(total[2:], here[2:])
