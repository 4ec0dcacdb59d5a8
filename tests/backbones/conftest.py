"""The real diffusers models of every family, as small as they come, saved in the layout in which they are published."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from trainer.backbones import flux2_klein, krea2, openuni, qwen_image, qwen_image_21, qwen_image_edit, sana, sd3, z_image

GOLDENS = Path(__file__).parents[1] / "goldens" / "data"
FAMILIES = {  # our backbone and the file of the goldens with its transformer's settings
    "qwen-image": (qwen_image.BACKBONES["qwen-image"], "qwen"),
    "qwen-image-edit": (qwen_image_edit.BACKBONES["qwen-image-edit"], "qwen"),
    "z-image": (z_image.BACKBONES["z-image"], "zimage"),
    "sd3.5": (sd3.BACKBONES["sd3.5"], "sd3"),
    "flux2-klein": (flux2_klein.BACKBONES["flux2-klein"], "flux2"),
    "krea2": (krea2.BACKBONES["krea2"], "krea2"),
    "qwen-image-2.1": (qwen_image_21.BACKBONES["qwen-image-2.1"], "qwen21"),
    "sana": (sana.BACKBONES["sana"], "sana"),
    "openuni": (openuni.BACKBONES["openuni"], "sana"),
}
families = pytest.mark.families  # (which): a test for those of whose backbone this holds, where it takes a family
KREA_TAPS = 12  # layers of Qwen3-VL, one behind the other
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if all(own.args[0](backbone_of(item)) for own in item.iter_markers("families"))]


def backbone_of(item):
    return FAMILIES[item.callspec.params["family"]][0]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    """backbone; config and plain(seed) of its tiny transformer; batch(rows): x and conds for it; text: embedding width."""
    backbone, file = FAMILIES[request.param]
    if not hasattr(diffusers, backbone.transformer_class):
        pytest.skip(f"diffusers {diffusers.__version__} has no {backbone.transformer_class}")
    config = json.loads((GOLDENS / f"{file}.json").read_text())["config"]
    return made(backbone, config)


def made(backbone, config):
    cls = getattr(diffusers, backbone.transformer_class)
    widths = ("joint_attention_dim", "cap_feat_dim", "caption_channels", "text_hidden_dim", "context_in_dim")
    text = next(config[k] for k in widths if k in config) * (KREA_TAPS if backbone.name == "krea2" else 1)
    packed = cls.__name__ in ("QwenImageTransformer2DModel", "Krea2Transformer2DModel")
    channels = 16 if packed else config["in_channels"]

    def plain(seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = cls(**config)
            for name, p in model.named_parameters():  # so that nothing is zero or one, as it is at the start of training
                start = 0 if name.endswith("_pad_token") else p.data  # diffusers 0.38 leaves these as memory was
                p.data = start + torch.randn_like(p) * 0.02
        return model.eval()

    def batch(rows, seed=0, tokens=5):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, channels, 8, 8, generator=g)

        def cond():
            embeds = torch.randn(rows, tokens, text, generator=g)
            if backbone.name == "sd3.5":
                return embeds, torch.randn(rows, config["pooled_projection_dim"], generator=g)
            return embeds, torch.ones(rows, tokens, dtype=torch.bool)

        return x, cond(), cond()

    return SimpleNamespace(backbone=backbone, cls=cls, config=config, plain=plain, batch=batch, text=text, channels=channels)


def bytes_vocabulary(end=""):
    return {c + end: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}


def qwen_tokenizer():
    tokenizer = transformers.Qwen2Tokenizer(vocab=bytes_vocabulary(), merges=[])
    names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer.add_special_tokens(
        {"pad_token": "<|endoftext|>", "additional_special_tokens": [f"<|{name}|>" for name in names]},
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
        "{% if not enable_thinking %}<think>{% endif %}"
    )
    return tokenizer


def clip_tokenizer():
    letters = list(bytes_vocabulary()) + list(bytes_vocabulary("</w>")) + ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[], model_max_length=77)


def t5_tokenizer():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -1.0), *((c, -2.0) for c in LETTERS)]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)


def gemma_tokenizer():
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", *"▁\n:.,-'\"", *LETTERS, *LETTERS.upper()]
    tokenizer = transformers.GemmaTokenizerFast(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return tokenizer


def qwen_vl(width):
    text = dict(
        hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=300, rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"},
        max_position_embeddings=2048, eos_token_id=256, bos_token_id=256,
    )  # fmt: skip
    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=width, fullatt_block_indexes=[0])
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, vision_start_token_id=259, vision_end_token_id=260, image_token_id=261,
        video_token_id=262,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def clip_text(width, pooled):
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            vocab_size=514,
            projection_dim=pooled,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )  # fmt: skip
    )


def text_parts(family):
    """The pipeline's text components."""
    name, width = family.backbone.name, family.text
    small = dict(intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    if name in ("qwen-image", "qwen-image-edit"):
        return dict(text_encoder=qwen_vl(width), tokenizer=qwen_tokenizer())
    if name.startswith("flux2"):  # which reads the 9th, 18th and 27th layer
        small |= dict(num_hidden_layers=28, hidden_size=width // 3, vocab_size=300)
        return dict(text_encoder=transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**small)), tokenizer=qwen_tokenizer())
    if name in ("krea2", "qwen-image-2.1"):
        whole, layers, width = (False, 36, width // KREA_TAPS) if name == "krea2" else (True, 3, width)
        small |= dict(num_hidden_layers=layers, hidden_size=width, vocab_size=300, head_dim=128)
        vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, deepstack_visual_indexes=[0])
        config = transformers.Qwen3VLConfig(text_config=small, vision_config=vision | dict(out_hidden_size=width))
        if whole:
            encoder, processor = transformers.Qwen3VLForConditionalGeneration(config), qwen_image_21.Processor(qwen_tokenizer())
            return dict(text_encoder=encoder, processor=processor)
        return dict(text_encoder=transformers.Qwen3VLModel(config), tokenizer=qwen_tokenizer())
    if name == "z-image":
        encoder = transformers.Qwen3Model(transformers.Qwen3Config(hidden_size=width, vocab_size=300, **small))
        return dict(text_encoder=encoder, tokenizer=qwen_tokenizer())
    if name == "sana":
        encoder = transformers.Gemma2Model(transformers.Gemma2Config(hidden_size=width, vocab_size=80, **small))
        return dict(text_encoder=encoder, tokenizer=gemma_tokenizer())
    pooled = family.config["pooled_projection_dim"]
    t5 = transformers.T5Config(d_model=width, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=40)
    return dict(
        text_encoder=clip_text(8, pooled // 3), tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(16, pooled - pooled // 3), tokenizer_2=clip_tokenizer(),
        text_encoder_3=transformers.T5EncoderModel(t5), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def autoencoder(family):
    name = family.backbone.name
    if name == "qwen-image-2.1":
        means, deviations = torch.linspace(-0.5, 0.5, 64).tolist(), torch.linspace(0.5, 2, 64).tolist()
        return diffusers.AutoencoderKLQwenImage21(
            base_dim=4, decoder_base_dim=4, num_res_blocks=1, dim_mult=[1, 1, 2, 2, 2], latents_mean=means,
            latents_std=deviations,
        )  # fmt: skip
    if name.startswith("qwen-image") or name == "krea2":
        means, deviations = torch.linspace(-0.5, 0.5, 16).tolist(), torch.linspace(0.5, 2, 16).tolist()
        return diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1, latents_mean=means, latents_std=deviations
        )
    if family.cls is diffusers.SanaTransformer2DModel:
        return diffusers.AutoencoderDC(
            latent_channels=family.channels, attention_head_dim=2, scaling_factor=0.41407,
            encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        )  # fmt: skip
    blocks = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    if name.startswith("flux2"):
        vae = diffusers.AutoencoderKLFlux2(block_out_channels=[8] * 4, norm_num_groups=4, **blocks)
        vae.bn.running_mean.uniform_(-0.5, 0.5), vae.bn.running_var.uniform_(0.5, 2)
        return vae
    return diffusers.AutoencoderKL(
        block_out_channels=[8] * 4, norm_num_groups=4, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=1.5305, shift_factor=0.0609, sample_size=32, **blocks,
    )  # fmt: skip


def bare_pipeline(family, transformer):
    """diffusers' own with this transformer, without encoders."""
    cls = getattr(diffusers, family.backbone.pipeline_class)
    others = dict.fromkeys(name for name in cls._get_signature_keys(cls)[0] if name != "transformer")
    if family.backbone.name == "qwen-image-2.1":  # which asks its processor as it is made
        others["processor"] = qwen_image_21.Processor(qwen_tokenizer())
    return cls(**others, transformer=transformer)


def published(family, folder):
    """A whole tiny model as diffusers saves it, and its pipeline."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = text_parts(family) | dict(vae=autoencoder(family), transformer=family.plain())
    if family.backbone.name == "qwen-image-edit":  # a processor for pictures alone: see qwen_image_edit.Processor
        pictures = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 84)
        pictures.save_pretrained(folder / "processor")
        parts["processor"] = None
    for name, part in parts.items():
        if isinstance(part, qwen_image_21.Processor):  # transformers' own wants torchvision
            part.tokenizer.save_pretrained(folder / name)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    if family.backbone.name == "sana":
        scheduler = diffusers.DPMSolverMultistepScheduler()
    pipeline = getattr(diffusers, family.backbone.pipeline_class)(scheduler=scheduler, **parts)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder)
    if family.backbone.name == "qwen-image-edit":
        pipeline.processor = qwen_image_edit.Processor(pictures, pipeline.tokenizer)
    return SimpleNamespace(folder=folder, pipeline=pipeline)


def internvl():
    """InternVL as transformers has it, its language model as wide as the connector wants it, and that one's settings."""
    language = dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=128, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, vocab_size=300, tie_word_embeddings=True, max_position_embeddings=2048,
        rope_theta=1e6, rope_scaling={"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
    )  # fmt: skip
    vision = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=28)
    config = transformers.InternVLConfig(text_config=deepcopy(language), vision_config=vision, image_token_id=298)
    return transformers.InternVLForConditionalGeneration(config).eval(), language


def openuni_checkpoint(family, transformer):
    """The tensors of the .pth: 8 queries, a connector of two layers, and SANA."""
    layers = dict(layer_norm1=None, layer_norm2=None)
    layers |= {f"self_attn.{name}_proj": (128, 128) for name in "qkv"} | {"self_attn.out_proj": (128, 128)}
    layers |= {"mlp.fc1": (96, 128), "mlp.fc2": (128, 96)}
    tensors = {"meta_queries": torch.randn(8, 128) * 0.1}
    for name, shape in {f"connector.layers.{i}.{name}": shape for i in range(2) for name, shape in layers.items()}.items():
        tensors[f"{name}.weight"] = torch.randn(shape) * 0.1 if shape else 1 + torch.randn(128) * 0.1
        tensors[f"{name}.bias"] = torch.randn(shape[0] if shape else 128) * 0.1
    tensors |= {"projector.weight": torch.randn(family.text, 128) * 0.1, "projector.bias": torch.randn(family.text) * 0.1}
    return tensors | {f"transformer.{name}": t for name, t in transformer.state_dict().items()}


def published_openuni(family, folder):
    """The .pth, and beside it InternVL with its own names, DC-AE and SANA."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        (model, language), vae, transformer = internvl(), autoencoder(family).eval(), family.plain()
        torch.save(openuni_checkpoint(family, transformer), folder / "openuni.pth")
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<img>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder / "internvl")
    tensors = {f"language_model.model.{name}": t for name, t in model.model.language_model.state_dict().items()}
    tensors |= {"language_model.lm_head.weight": torch.zeros(300, 128), "mlp1.0.weight": torch.zeros(4)}
    save_file(tensors, folder / "internvl" / "model.safetensors")
    config = dict(model_type="internvl_chat", architectures=["InternVLChatModel"], llm_config=language)
    config["auto_map"] = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
    (folder / "internvl" / "config.json").write_text(json.dumps(config))
    pipeline = SimpleNamespace(transformer=transformer, vae=vae, text_encoder=model, tokenizer=tokenizer)
    return SimpleNamespace(folder=folder, pipeline=pipeline)


@pytest.fixture(scope="session")
def whole(family, tmp_path_factory):
    """folder: a whole tiny model as it is published.  pipeline: the same in memory."""
    save = published_openuni if family.backbone.name == "openuni" else published
    return save(family, tmp_path_factory.mktemp(family.backbone.name))


@pytest.fixture(scope="session", params=[False, True], ids=["2509", "2511"])
def edit(request):
    """Qwen-Image-Edit, with zero_cond_t for 2511."""
    config = json.loads((GOLDENS / "qwen.json").read_text())["config"]
    return made(qwen_image_edit.BACKBONES["qwen-image-edit"], config | ({"zero_cond_t": True} if request.param else {}))


@pytest.fixture(scope="session")
def edit_whole(edit, tmp_path_factory):
    return published(edit, tmp_path_factory.mktemp("edit"))
