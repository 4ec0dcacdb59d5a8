"""Attention by diffusers' dispatcher, and compiled blocks: losses and gradients as without; what cannot be is one line."""

import functools
import shutil

import pytest
import torch
from diffusers.models import attention_dispatch

from trainer import TrainerError
from trainer.backbones import attention
from trainer.cli import main
from trainer.weights import compiling
from trainer.weights import trainee as trainees
from trainer.weights.block_swap import blocks_of
from trainer.weights.teachers import WithWeights

from .test_memory import gradients, trainee
from .tiny import plain

CPU = torch.device("cpu")


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a[0], b[0], rtol=tolerance, atol=tolerance)
    assert a[1].keys() == b[1].keys()
    largest = max(g.abs().max() for g in b[1].values())
    for name, gradient in b[1].items():
        assert (a[1][name] - gradient).abs().max() < tolerance * largest, name


@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_attention_goes_through_the_dispatcher(name, monkeypatch):
    wanted, asked = gradients(trainee()), []
    real = attention_dispatch._AttentionBackendRegistry._backends
    watched = {own: (lambda *a, _f=f, _n=own, **k: asked.append(_n) or _f(*a, **k)) for own, f in real.items()}
    monkeypatch.setattr(attention_dispatch._AttentionBackendRegistry, "_backends", watched)
    before = attention_dispatch._AttentionBackendRegistry._active_backend
    same(gradients(trainee(attention=name)), wanted)
    assert set(asked) == {attention_dispatch.AttentionBackendName(name)}
    assert attention_dispatch._AttentionBackendRegistry._active_backend == before, "encoders keep theirs"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nonsense", "--attention is 'nonsense'; expected one of sdpa, flash"), ("sage", "install `sageattention"),
     ("xformers", "install `xformers"), ("flash", "install `flash-attn")],
)  # fmt: skip
def test_what_is_not_there_is_said_before_work(name, expected, tmp_path, capsys):
    assert main("lora", ["--model", "digits", "--out", str(tmp_path), "--attention", name, "--tracker", "none"]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_model_that_never_asks_is_refused():
    with pytest.raises(TrainerError, match="SD3Transformer2DModel calls PyTorch's attention itself; expected --attention sdpa"):
        attention.check("native", plain("sd3.5")[1], False, CPU)


def test_a_library_without_a_backward_pass_is_refused(monkeypatch):
    """As SageAttention: its result is right, and nothing can be learnt through it."""
    plain_function = attention_dispatch.dispatch_attention_fn
    once = iter([True])
    forgetful = lambda *a, **k: plain_function(*a, **k).detach() if next(once, False) else plain_function(*a, **k)
    monkeypatch.setattr(attention.attention_dispatch, "dispatch_attention_fn", forgetful)
    with pytest.raises(TrainerError, match="native: has no backward pass; expected --attention sdpa"):
        attention.check("native", plain("qwen-image")[1], True, CPU)


def test_a_library_without_masks_is_refused_where_text_is_padded():
    model = plain("qwen-image")[1]
    attention.check("_native_flash", model, False, CPU)
    with pytest.raises(TrainerError, match="`attn_mask` is not supported"):
        attention.check("_native_flash", model, True, CPU)


def counting(graphs):
    def backend(module, inputs):
        graphs.append(len(list(module.graph.nodes)))
        return module.forward

    return backend


@pytest.mark.parametrize(("name", "checkpointing"), [("qwen-image", True), ("sd3.5", False)])
def test_compiled_blocks_learn_alike(name, checkpointing, monkeypatch):
    """A LoRA, a second time embedder, the teacher's weights lent, checkpointing; names stay."""

    def made(**settings):
        found = trainee(name, checkpointing=checkpointing, **settings)
        values = {key: p.detach() * 0.9 for key, p in found.tensors.items()}
        return found, WithWeights(found.network, values)

    wanted, graphs = made(), []
    monkeypatch.setattr(trainees, "compile_blocks", functools.partial(compiling.compile_blocks, backend=counting(graphs)))
    compiled = made(compile=True)
    assert compiled[0].tensors.keys() == wanted[0].tensors.keys()
    same(gradients(compiled[0], name, compiled[1]), gradients(wanted[0], name, wanted[1]))
    assert max(graphs) > 50, "whole blocks"
    assert all(block._compiled_call_impl is not None for block in blocks_of(compiled[0].network.model).values())


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_inductor_learns_alike():
    compiling.check_compiler(CPU)
    same(gradients(trainee(compile=True, checkpointing=True)), gradients(trainee(checkpointing=True)), 1e-4)


def test_no_compiler_is_one_line(monkeypatch):
    def broken(module, inputs):
        raise RuntimeError("\n  No working C++ compiler found\nand more")

    with pytest.raises(TrainerError, match=r"--compile: PyTorch cannot compile here \(.*\); expected a C\+\+ compiler"):
        compiling.check_compiler(CPU, backend=broken)


def test_compiled_blocks_do_not_travel(capsys):
    assert main("lora", ["--model", "qwen-image", "--compile", "--block-swap", "2", "--dry-run"]) == 2
    assert "expected one of them" in capsys.readouterr().err
