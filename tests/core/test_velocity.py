"""The four backbones' velocity on diffusers' own classes: what does not depend on padding, wrappers or checkpointing."""

import importlib

import diffusers
import pytest
import torch
from peft import LoraConfig, get_peft_model

CLASSES = {
    "qwen_image": (
        "QwenImageTransformer2DModel",
        dict(in_channels=12, out_channels=3, num_layers=2, num_attention_heads=2, attention_head_dim=16),
        dict(joint_attention_dim=8, axes_dims_rope=(4, 6, 6)),
    ),
    "z_image": (
        "ZImageTransformer2DModel",
        dict(in_channels=3, dim=32, n_layers=1, n_refiner_layers=1, n_heads=1, n_kv_heads=1),
        dict(cap_feat_dim=8, axes_dims=[8, 12, 12], axes_lens=[128, 64, 64]),
    ),
    "sana": (
        "SanaTransformer2DModel",
        dict(in_channels=3, out_channels=3, num_attention_heads=2, attention_head_dim=16, num_layers=1),
        dict(num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=8),
    ),
}
T = torch.tensor([0.75, 0.2])


@pytest.fixture(params=list(CLASSES))
def backbone(request):
    torch.manual_seed(0)
    cls, *config = CLASSES[request.param]
    model = getattr(diffusers, cls)(**{k: v for part in config for k, v in part.items()}).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model, next(iter(importlib.import_module(f"trainer.backbones.{request.param}").BACKBONES.values())).velocity


def inputs(height=8, width=8, padding=0):
    g = torch.Generator().manual_seed(0)
    x, embeds = torch.randn(2, 3, height, width, generator=g), torch.randn(2, 5, 8, generator=g)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    embeds = torch.cat([embeds, 9 + torch.randn(2, padding, 8, generator=g)], 1)
    return x, (embeds, torch.cat([mask, mask.new_zeros(2, padding)], 1))


@torch.no_grad()
def ask(backbone, x, cond, rows=slice(None)):
    model, velocity = backbone
    return velocity(model, x[rows], T[rows], tuple(c[rows] for c in cond))


def test_padding_and_the_rest_of_the_batch_do_not_matter(backbone):
    x, cond = inputs()
    together = ask(backbone, x, cond)
    alone = torch.cat([ask(backbone, x, cond, slice(i, i + 1)) for i in (0, 1)])
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-5)
    torch.testing.assert_close(ask(backbone, *inputs(padding=40)), together, rtol=0, atol=2e-5)
    other = cond[0].clone()
    other[0, 4] += 1  # a token that is no padding
    assert not torch.allclose(ask(backbone, x, (other, cond[1]))[0], together[0], atol=1e-4)


def test_latents_need_not_be_square(backbone):
    x, cond = inputs(8, 12)
    out = ask(backbone, x, cond)
    assert out.shape == x.shape
    turned = ask(backbone, x.transpose(2, 3).contiguous(), cond)
    assert turned.shape == (2, 3, 12, 8) and not torch.allclose(turned.transpose(2, 3), out)


def test_a_peft_model_is_a_backbone_too(backbone):
    model, velocity = backbone
    x, cond = inputs()
    before = ask(backbone, x, cond)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r".*\.(to_q|to_k)"))
    torch.testing.assert_close(ask((wrapped, velocity), x, cond), before, rtol=0, atol=1e-6)


def test_padding_is_masked_under_gradient_checkpointing(backbone):
    model, velocity = backbone
    x, cond = inputs()
    before = ask(backbone, x, cond)
    model.enable_gradient_checkpointing()
    model.train()
    out = velocity(model, x, T, cond)
    out.square().mean().backward()
    torch.testing.assert_close(out.detach(), before, rtol=0, atol=2e-5)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
