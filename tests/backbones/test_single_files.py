"""ComfyUI's single files against the diffusers folder with the same weights; known by their keys; never passed over."""

import re
import shutil

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from trainer import TrainerError
from trainer.backbones import encoder_sources
from trainer.cli import main

from .conftest import KREA_TAPS, families
from .forms import written

PROMPTS = ["a cat", "a much longer prompt about a dog in the rain", ""]


def qwen25_vl():
    text = dict(
        hidden_size=256, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=300, rope_theta=1e6, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24], "rope_type": "default"},
        max_position_embeddings=128000, rms_norm_eps=1e-6,
    )  # fmt: skip
    vision = dict(depth=2, hidden_size=160, intermediate_size=32, num_heads=2, out_hidden_size=256, tokens_per_second=2)
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, vision_start_token_id=259, vision_end_token_id=260, image_token_id=261,
        video_token_id=262, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3(cls=transformers.Qwen3Model, layers=3, width=64):
    small = dict(intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, head_dim=128)
    return cls(transformers.Qwen3Config(hidden_size=width, vocab_size=300, rope_theta=1e6, **small))


def qwen3_vl(width, cls=transformers.Qwen3VLModel, layers=36):
    text = dict(
        hidden_size=width, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        head_dim=128, vocab_size=300, rope_theta=5e6, max_position_embeddings=262_144,
        rope_scaling={"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    )  # fmt: skip
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=width)
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision | dict(deepstack_visual_indexes=[0]))
    return cls(config)


def clip(layers, activation, pooled):
    config = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=1, vocab_size=514,
        projection_dim=pooled, hidden_act=activation, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return transformers.CLIPTextModelWithProjection(config)


def t5():
    config = transformers.T5Config(
        d_model=64, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=40, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config)


def encoders_of(family):
    """The networks by part, with names and tensors as ComfyUI's files have them."""
    name = family.backbone.name
    if name == "qwen-image-2.1":
        model = qwen3_vl(family.text, transformers.Qwen3VLForConditionalGeneration, 3)
        return {"text_encoder": (model, dict(model.state_dict()))}
    if name.startswith("qwen-image"):
        model = qwen25_vl()
        bare = lambda key: key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        return {"text_encoder": (model, {bare(key): t for key, t in model.state_dict().items()})}
    if name == "z-image":
        model = qwen3()
        return {"text_encoder": (model, {f"model.{key}": t for key, t in model.state_dict().items()})}
    if name == "flux2-klein":
        model = qwen3(transformers.Qwen3ForCausalLM, layers=28, width=family.text // 3)
        return {"text_encoder": (model, dict(model.state_dict()))}
    if name == "krea2":
        model = qwen3_vl(family.text // KREA_TAPS)
        shown = {f"model.visual.{key}": t for key, t in model.visual.state_dict().items()}
        model.visual = None
        return {"text_encoder": (model, {f"model.{key}": t for key, t in model.state_dict().items()} | shown)}
    small, large, long = clip(2, "quick_gelu", 64), clip(31, "gelu", 48), t5()
    small.text_projection.weight.data = torch.eye(64)  # which its file leaves out
    files = [dict(model.state_dict()) for model in (small, large, long)]
    del files[0]["text_projection.weight"]
    files[1]["logit_scale"] = torch.tensor(4.6)
    del files[2]["encoder.embed_tokens.weight"]
    return dict(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), zip((small, large, long), files)))


def vae_of(family):
    """The autoencoder, with the names and tensors of ComfyUI's file."""
    if family.backbone.name == "qwen-image-2.1":
        vae = diffusers.AutoencoderKLQwenImage21(base_dim=8, decoder_base_dim=8)
        return vae, {wan22_name(key): with_time(key, t) for key, t in vae.state_dict().items()}
    if family.backbone.name.startswith("qwen-image") or family.backbone.name == "krea2":
        vae = diffusers.AutoencoderKLQwenImage(base_dim=8)
        return vae, {wan_name(key): t for key, t in vae.state_dict().items()}
    if family.backbone.name == "flux2-klein":
        kinds = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
        vae = diffusers.AutoencoderKLFlux2(block_out_channels=[32, 32, 64, 64], latent_channels=32, **kinds)
        vae.bn.running_mean.uniform_(-0.5, 0.5), vae.bn.running_var.uniform_(0.5, 2)
        moved = lambda key: replaced(key, (r"^quant_conv", "encoder.quant_conv"), (r"^post_quant", "decoder.post_quant"))
        return vae, {moved(ldm_name(key)): t for key, t in vae.state_dict().items()}
    scales = {"z-image": (0.3611, 0.1159), "sd3.5": (1.5305, 0.0609)}[family.backbone.name]  # as published
    kinds = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    vae = diffusers.AutoencoderKL(
        block_out_channels=[32, 32, 64, 64], layers_per_block=2, latent_channels=16, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=scales[0], shift_factor=scales[1], **kinds,
    )  # fmt: skip
    wide = lambda key, t: t[:, :, None, None] if re.search(r"attn_1\.\w+\.weight$", key) and t.ndim == 2 else t
    named = {ldm_name(key): t for key, t in vae.state_dict().items()}
    return vae, {key: wide(key, t) for key, t in named.items()}


def replaced(key, *rules):
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


def wan_name(key):
    """Of one of AutoencoderKLQwenImage's tensors, in the file that ComfyUI reads."""
    up = lambda m: f"decoder.upsamples.{4 * int(m[1]) + (3 if m[2] == 'upsamplers' else int(m[3]))}."
    return replaced(
        key,
        (r"^quant_conv\.", "conv1."), (r"^post_quant_conv\.", "conv2."),
        (r"coder\.conv_in\.", "coder.conv1."), (r"\.norm_out\.", ".head.0."), (r"\.conv_out\.", ".head.2."),
        (r"mid_block\.attentions\.0\.", "middle.1."), (r"mid_block\.resnets\.0\.", "middle.0."),
        (r"mid_block\.resnets\.1\.", "middle.2."), (r"encoder\.down_blocks\.", "encoder.downsamples."),
        (r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.", up),
        (r"\.norm1\.", ".residual.0."), (r"(\d)\.conv1\.", r"\1.residual.2."), (r"\.norm2\.", ".residual.3."),
        (r"(\d)\.conv2\.", r"\1.residual.6."), (r"\.conv_shortcut\.", ".shortcut."),
    )  # fmt: skip


def wan22_name(key):
    """Of one of AutoencoderKLQwenImage21's tensors, in the file that ComfyUI reads: the names of Wan 2.2's."""
    last = {"down": 2, "up": 3}  # a level's resnets
    inner = lambda m: f"{m[1]}samples.{m[2]}.{m[1]}samples.{last[m[1]] if m[3] == f'{m[1]}sampler.' else m[4]}."
    return replaced(
        wan_name(re.sub(r"(up|down)_blocks", r"\1_levels", key)),
        (r"(down|up)_levels\.(\d)\.(downsampler\.|upsampler\.|resnets\.(\d)\.)", inner),
    )


def with_time(key, t):
    """A kernel as Wan 2.2's are, of one frame; those that change the size are of pictures in both."""
    return t.unsqueeze(2) if t.ndim == 4 and key.endswith("weight") and not re.search("resample|attentions", key) else t


def ldm_name(key):
    """Of one of AutoencoderKL's tensors, in the file that ComfyUI reads."""
    return replaced(
        key,
        (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."), (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
        (r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block."),
        (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{3 - int(m[1])}.upsample."),
        (r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_", "mid.attn_1."), (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
    )  # fmt: skip


in_comfyui = families(lambda backbone: backbone.single)


@pytest.fixture(scope="module")
def comfy(family, whole, tmp_path_factory):
    """folder: as diffusers saves a model.  files: the same encoders as ComfyUI has them, under names that say nothing."""
    root = tmp_path_factory.mktemp("comfy")
    shutil.copytree(whole.folder, root / "diffusers", ignore=shutil.ignore_patterns("transformer"))
    files = {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        parts = {**encoders_of(family), "vae": vae_of(family)}
    for number, (part, (model, tensors)) in enumerate(parts.items()):
        shutil.rmtree(root / "diffusers" / part)
        model.save_pretrained(root / "diffusers" / part)
        files[part] = root / f"file{number}.safetensors"
        save_file({key: t.clone().contiguous() for key, t in tensors.items()}, files[part])
    return root / "diffusers", files


def listed(*places):
    return ",".join(map(str, places))


def encoded(family, source):
    prompts, seen = PROMPTS, []
    if family.backbone.edits:
        g = torch.Generator().manual_seed(0)
        prompts, seen = PROMPTS[:2], [[[torch.rand(3, 64, 96, generator=g) * 2 - 1]] * 2]
    return family.backbone.text_encoder(str(source), dtype=torch.float32).encode_text(prompts, *seen)


def same(ours, wanted):
    for one, other in zip(ours, wanted, strict=True):
        assert one.embeds.isfinite().all()
        # not equal: some processors add in another order where a weight lies elsewhere
        torch.testing.assert_close((one.embeds, one.pooled), (other.embeds, other.pooled))


@in_comfyui
def test_text_encoders_are_those_of_the_folder(family, comfy):
    """All, or one of them, the others from the folder; and a folder of files."""
    folder, files = comfy
    wanted = encoded(family, folder)
    texts = [file for part, file in files.items() if part != "vae"]
    same(encoded(family, listed(*texts, folder)), wanted)
    same(encoded(family, listed(texts[-1], folder)), wanted)
    same(encoded(family, listed(texts[0].parent, folder)), wanted)


@in_comfyui
def test_the_autoencoder_is_that_of_the_folder(family, comfy):
    folder, files = comfy
    ours, theirs = (family.backbone.image_codec(str(source)) for source in (files["vae"], folder))
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(ours.encode_image(x), theirs.encode_image(x))
    assert torch.equal(ours.decode(theirs.encode_image(x)), theirs.decode(theirs.encode_image(x)))


@in_comfyui
@pytest.mark.parametrize("form", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_within_its_error(family, comfy, form, tmp_path):
    """Quantised where ComfyUI's own files are: in the layers."""
    folder, files = comfy
    packed = []
    for part, file in files.items():
        if part == "vae":
            continue
        tensors = load_file(file)
        inner = {key for key in tensors if re.search(r"(layers|block|blocks)\.\d+\..*weight$", key) and "bias" not in key}
        plain = {key: t for key, t in tensors.items() if key not in inner}
        written({key: tensors[key] for key in inner}, form, tmp_path / "inner.safetensors")
        save_file(plain | load_file(tmp_path / "inner.safetensors"), path := tmp_path / file.name)
        packed.append(path)
    for one, other in zip(encoded(family, listed(*packed, folder)), encoded(family, folder), strict=True):
        assert 0 < (one.embeds - other.embeds).norm() < 0.1 * other.embeds.norm()


@in_comfyui
def test_a_run_from_single_files(family, comfy, whole, tmp_path, capsys):
    """What is left to --source comes from there; another file has encodings of its own."""
    folder, files = comfy
    known = family.backbone
    source = listed(*files.values()) + "\n" + str(folder)
    paths = {path.name for path in known.text_files(source)}
    assert {file.name for part, file in files.items() if part != "vae"} <= paths and "tokenizer_config.json" in paths
    assert known.image_files(source) == [files["vae"]]
    if known.edits:
        return
    (tmp_path / "prompts.txt").write_text("a cat\n")
    asked = [
        "--model",
        known.name,
        "--source",
        str(whole.folder),
        "--encoders",
        str(files["vae"]),
        "--data",
        str(tmp_path / "prompts.txt"),
        "--image-free",
        "--out",
        str(tmp_path / "runs"),
        "--resolution",
        "64",
        "--steps",
        "1",
        "--sample-every",
        "0",
        "--threads",
        "1",
        "--warmup",
        "0",
        "--guidance",
        "1",
        "--tracker",
        "none",
        "--rank",
        "2",
    ]
    assert main("lora", asked) == 0, capsys.readouterr().err


def refused(family, asked):
    with pytest.raises((TrainerError, ValueError)) as error:
        family.backbone.check_encoders(str(asked))
    assert "\n" not in str(error.value)
    return str(error.value)


@in_comfyui
def test_what_gives_nothing_is_refused(family, comfy, whole, tmp_path):
    folder, files = comfy
    check = family.backbone.check_encoders
    check(listed(*files.values()))
    check(listed(files["vae"].parent, folder))
    check("")
    check("owner/name")
    shutil.copy(whole.folder / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "vae.safetensors")
    assert "holds the transformer of " in refused(family, tmp_path / "vae.safetensors")
    assert "is a folder with the transformer" in refused(family, tmp_path)
    save_file({"transformer.a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "te.safetensors")
    assert "holds a LoRA; expected" in refused(family, listed(files["vae"], tmp_path / "te.safetensors"))
    save_file({"layer.weight": torch.ones(2, 2)}, tmp_path / "te.safetensors")
    assert "nothing that is known here (layer.weight" in refused(family, tmp_path / "te.safetensors")
    narrow = {"decoder.mid.block_1.conv1.weight": torch.ones(1), "decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}
    save_file(narrow, tmp_path / "te.safetensors")
    assert "an AutoencoderKL of 4 channels; expected" in refused(family, tmp_path / "te.safetensors")
    assert "there is no such file" in refused(family, "models/qwen.safetensors")
    (tmp_path / "te.safetensors").write_bytes(b"x")
    assert "te.safetensors" in refused(family, tmp_path / "te.safetensors")


@in_comfyui
def test_without_a_tokenizer_anywhere(family, comfy, monkeypatch, tmp_path):
    """Offline, and with no folder beside the files."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    _, files = comfy
    texts = listed(*(file for part, file in files.items() if part != "vae"))
    with pytest.raises(TrainerError, match="file0.safetensors.* hold no (tokenizer|processor).*could not be fetched") as error:
        family.backbone.text_encoder(texts)
    assert "\n" not in str(error.value)


@in_comfyui
def test_two_files_of_a_kind_in_a_folder(family, comfy, tmp_path):
    folder, files = comfy
    for name in ("one", "two"):
        shutil.copy(files["vae"], tmp_path / f"{name}.safetensors")
    with pytest.raises(TrainerError, match=r"has 2 files of .*\(one.safetensors, two.safetensors\); expected one by name"):
        family.backbone.check_encoders(str(tmp_path))


@in_comfyui
def test_what_is_not_whole(family, comfy, tmp_path):
    folder, files = comfy
    for part, file in files.items():
        tensors = load_file(file)
        name = next(key for key in sorted(tensors) if re.search(r"(o_proj|out_proj|wo|conv_out|head\.2)\.weight$", key))
        save_file({key: t for key, t in tensors.items() if key != name}, tmp_path / "cut.safetensors")
        if part == "vae":
            load = lambda: family.backbone.image_codec(str(tmp_path / "cut.safetensors"))
        else:
            load = lambda: family.backbone.text_encoder(listed(tmp_path / "cut.safetensors", folder))
        with pytest.raises(TrainerError, match="cut.safetensors.*(has no|fetch it again)") as error:
            load()
        assert "\n" not in str(error.value)


@families(lambda backbone: not backbone.single)
def test_without_files_of_its_own_a_model_says_so(family, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    assert "takes a diffusers folder or a hub id alone" in refused(family, tmp_path / "x.safetensors")


def test_a_list_of_places(tmp_path):
    (tmp_path / "a, b").mkdir()
    assert encoder_sources.places(f"{tmp_path / 'a, b'}\nx, y/z") == [str(tmp_path / "a, b"), "x", "y/z"]
    assert encoder_sources.places("") == []
