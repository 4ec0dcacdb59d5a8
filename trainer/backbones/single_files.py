"""Text encoders and autoencoders from single files as ComfyUI has them: known by their keys, whatever the file is called.

Sizes are read off the tensors; what no tensor tells (heads' widths, activations) is the same in all published sizes, and stands
here.  A file has no tokenizer: that comes from a folder, or as published.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_wan_vae_to_diffusers
from torch import Tensor, nn

from twinflow.backbones import all_backbones
from twinflow.layouts import bare, blocks
from twinflow.lora_names import is_part

from .. import TrainerError
from .packed import WeightsFile, open_weights
from .sources import class_of

Shapes = Mapping[str, tuple[int, ...]]
HEAD = 128  # width of a head of Qwen2.5-VL
EYE_HEAD = 80  # and of its part for images
CLIP_HEAD = 64
WAN22 = (  # of Wan 2.2's autoencoder, to diffusers' names
    (r"^conv1\.", "quant_conv."), (r"^conv2\.", "post_quant_conv."), (r"coder\.conv1\.", "coder.conv_in."),
    (r"\.head\.0\.", ".norm_out."), (r"\.head\.2\.", ".conv_out."), (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."), (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)\.", r".\1_blocks.\2.\1sampler.\3."),
    (r"\.(down|up)samples\.(\d+)\.\1samples\.", r".\1_blocks.\2.resnets."), (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.residual\.0\.", ".norm1."), (r"\.residual\.2\.", ".conv1."), (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
)  # fmt: skip
UNUSED = ("lm_head.", "logit_scale", "text_model.embeddings.position_ids", "spiece_model", "visual.", "model.visual.")


class Kind(NamedTuple):
    """what: it is, in words.  mark: a key that such files alone have; but: one that another kind has beside it."""

    what: str
    mark: tuple[str, ...]
    but: str = "\0"


KINDS = {  # the first that fits
    "clip-g": Kind("the text encoder CLIP-G", ("text_model.encoder.layers.30.mlp.fc1.weight",)),
    "clip-l": Kind("the text encoder CLIP-L", ("text_model.encoder.layers.0.mlp.fc1.weight",)),
    "t5": Kind("the text encoder T5", ("encoder.block.0.layer.0.SelfAttention.k.weight",)),
    "qwen2.5-vl": Kind(
        "the text encoder Qwen2.5-VL",
        ("model.layers.0.self_attn.k_proj.bias", "model.language_model.layers.0.self_attn.k_proj.bias"),
    ),
    "qwen3-vl": Kind(
        "the text encoder Qwen3-VL",
        ("model.language_model.layers.0.self_attn.q_norm.weight", "language_model.layers.0.self_attn.q_norm.weight"),
    ),
    "qwen3": Kind(
        "the text encoder Qwen3",
        ("model.layers.0.self_attn.q_norm.weight", "layers.0.self_attn.q_norm.weight"),
        but="model.layers.0.post_feedforward_layernorm.weight",
    ),
    "rgba-vae": Kind(
        "the autoencoder of Qwen-Image-2.1",
        ("decoder.upsamples.0.upsamples.0.residual.0.gamma", "decoder.up_blocks.0.upsampler.resample.1.weight"),
    ),
    "qwen-vae": Kind(
        "the autoencoder of Qwen-Image", ("decoder.middle.0.residual.0.gamma", "decoder.mid_block.resnets.0.norm1.gamma")
    ),
    "kl-squares": Kind("the autoencoder of FLUX.2", ("bn.running_mean",)),
    "kl": Kind("an AutoencoderKL", ("decoder.mid.block_1.conv1.weight", "decoder.mid_block.resnets.0.conv1.weight")),
}


def kind_of(file: WeightsFile) -> str:
    """A name of KINDS; "" for all else."""
    keys = file.entries
    return next((n for n, k in KINDS.items() if any(m in keys for m in k.mark) and k.but not in keys), "")


def channels(file: WeightsFile) -> int:
    """Of the latents of an autoencoder; 0 of all else."""
    kernel = next((n for n in ("decoder.conv_in.weight", "decoder.conv1.weight") if n in file.entries), None)
    many = {"kl": 1, "qwen-vae": 1, "rgba-vae": 1, "kl-squares": 4}.get(kind_of(file), 0)
    return many * file.shapes[kernel][1] if kernel else 0


def what_is(file: WeightsFile) -> str:
    """What a file holds, in words."""
    if kind := kind_of(file):
        return KINDS[kind].what + (f" of {channels(file)} channels" if channels(file) else "")
    return other(file.entries)


def other(names: Iterable[str]) -> str:
    """What tensors of these names are, where they are no encoder, in words."""
    keys = [bare(key) for key in names]
    for known in all_backbones().values():
        if any(known.models.values()) and (known.layout.native in keys or known.layout.diffusers in keys):
            return f"the transformer of {known.title}"
    if any(map(is_part, keys)):
        return "a LoRA"
    return f"nothing that is known here ({', '.join(keys[:4])}, ...)"


def filled(model: Any, file: WeightsFile, named: Callable[[str], list[str]], dtype: torch.dtype) -> Any:
    """The model with the tensors of a file.  named: the names that one of its own may have there.

    Raises TrainerError for tensors that are missing, of another shape, or too many.
    """
    keys, tensors = {}, {}
    for name, wanted in model.state_dict().items():
        key = next((key for key in named(name) if key in file.entries), None)
        if key is None:
            raise TrainerError(f"{file.path}: has no {named(name)[0]!r}; expected {type(model).__name__} whole: fetch it again")
        if file.shapes[key] != tuple(wanted.shape):
            found = f"{key!r} is {file.shapes[key]}; expected {tuple(wanted.shape)}"
            raise TrainerError(f"{file.path}: {found}, as in {type(model).__name__}: it is of another size")
        keys[name] = key
    if unknown := sorted(key for key in file.entries.keys() - {*keys.values()} if not key.startswith(UNUSED)):
        raise TrainerError(f"{file.path}: holds {unknown[0]!r} ({len(unknown)} such), which {type(model).__name__} has not")
    read: dict[str, Tensor] = {}
    for name, key in keys.items():
        read[key] = read[key] if key in read else file.read(key, dtype).to(dtype)
        tensors[name] = read[key]
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def qwen25_vl(file: WeightsFile, dtype: torch.dtype, sees: bool) -> nn.Module:
    """sees: with its part for images.  Its head is never there: nothing here writes words."""
    shapes = file.shapes
    text = "model." if "model.embed_tokens.weight" in shapes else "model.language_model."
    eye = "visual." if any(key.startswith("visual.") for key in shapes) else "model.visual."
    first = f"{text}layers.0."
    language: dict[str, Any] = dict(
        vocab_size=shapes[f"{text}embed_tokens.weight"][0],
        hidden_size=shapes[f"{text}embed_tokens.weight"][1],
        intermediate_size=shapes[f"{first}mlp.gate_proj.weight"][0],
        num_hidden_layers=blocks(shapes, text + "layers.{}.mlp.gate_proj.weight"),
        num_attention_heads=shapes[f"{first}self_attn.q_proj.weight"][0] // HEAD,
        num_key_value_heads=shapes[f"{first}self_attn.k_proj.weight"][0] // HEAD,
        max_position_embeddings=128_000,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling={"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
    )
    vision: dict[str, Any] = dict(depth=1, hidden_size=EYE_HEAD, intermediate_size=1, num_heads=1)
    if sees and f"{eye}patch_embed.proj.weight" in shapes:
        width = shapes[f"{eye}patch_embed.proj.weight"][0]
        vision = dict(
            depth=blocks(shapes, eye + "blocks.{}.mlp.gate_proj.weight"),
            hidden_size=width,
            intermediate_size=shapes[f"{eye}blocks.0.mlp.gate_proj.weight"][0],
            num_heads=width // EYE_HEAD,
            tokens_per_second=2,
        )
    vision["out_hidden_size"] = language["hidden_size"]
    config = transformers.Qwen2_5_VLConfig(text_config=language, vision_config=vision, tie_word_embeddings=False)
    with init_empty_weights():
        model: Any = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.lm_head = nn.Identity()
    if not sees:
        holder = model.model if hasattr(model.model, "visual") else model
        holder.visual = None
    named = lambda name: [
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
        name.replace("model.layers.", "model.language_model.layers."),
        name,
    ]
    return filled(model, file, named, dtype)


def qwen3(file: WeightsFile, dtype: torch.dtype) -> nn.Module:
    under = "model." if "model.embed_tokens.weight" in file.shapes else ""
    sizes: dict[str, Any] = qwen3_sizes(file.shapes, under) | dict(max_position_embeddings=40_960, rope_theta=1e6)
    config = transformers.Qwen3Config(**sizes)
    with init_empty_weights():
        model = transformers.Qwen3Model(config)
    return filled(model, file, lambda name: [under + name], dtype)


def qwen3_vl(file: WeightsFile, dtype: torch.dtype) -> nn.Module:
    """Without its part for images: nothing here shows it one."""
    under = "model." if "model.language_model.embed_tokens.weight" in file.shapes else ""
    text = qwen3_sizes(file.shapes, f"{under}language_model.") | dict(
        max_position_embeddings=262_144,
        rope_theta=5e6,
        rope_scaling={"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    )
    vision = dict(depth=1, hidden_size=16, intermediate_size=1, num_heads=1, deepstack_visual_indexes=[0])
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
    with init_empty_weights():
        model: Any = transformers.Qwen3VLModel(config)
    model.visual = None
    return filled(model, file, lambda name: [under + name], dtype)


def qwen3_sizes(shapes: Shapes, under: str) -> dict[str, Any]:
    first = f"{under}layers.0."
    head = shapes[f"{first}self_attn.q_norm.weight"][0]
    return dict(
        vocab_size=shapes[f"{under}embed_tokens.weight"][0],
        hidden_size=shapes[f"{under}embed_tokens.weight"][1],
        intermediate_size=shapes[f"{first}mlp.gate_proj.weight"][0],
        num_hidden_layers=blocks(shapes, under + "layers.{}.mlp.gate_proj.weight"),
        num_attention_heads=shapes[f"{first}self_attn.q_proj.weight"][0] // head,
        num_key_value_heads=shapes[f"{first}self_attn.k_proj.weight"][0] // head,
        head_dim=head,
        rms_norm_eps=1e-6,
    )


def clip(file: WeightsFile, dtype: torch.dtype, activation: str) -> nn.Module:
    """Without a projection in the file, it is the identity."""
    shapes = file.shapes
    words, first = shapes["text_model.embeddings.token_embedding.weight"], "text_model.encoder.layers.0.mlp.fc1.weight"
    projection = "text_projection.weight"
    config = transformers.CLIPTextConfig(
        vocab_size=words[0],
        hidden_size=words[1],
        intermediate_size=shapes[first][0],
        num_hidden_layers=blocks(shapes, "text_model.encoder.layers.{}.mlp.fc1.weight"),
        num_attention_heads=max(1, words[1] // CLIP_HEAD),
        max_position_embeddings=shapes["text_model.embeddings.position_embedding.weight"][0],
        hidden_act=activation,
        projection_dim=shapes.get(projection, words)[0 if projection in shapes else 1],
        bos_token_id=words[0] - 2,
        eos_token_id=words[0] - 1,
        pad_token_id=words[0] - 1,
    )
    with init_empty_weights():
        model = transformers.CLIPTextModelWithProjection(config)
    if projection not in shapes:
        entries = {**file.entries, projection: ("F32", (words[1], words[1]))}
        own = file.read
        read = lambda name, dtype: torch.eye(words[1], dtype=dtype) if name == projection else own(name, dtype)
        file = WeightsFile(file.path, entries, file.packed, read)
    return filled(model, file, lambda name: [name], dtype)


def t5(file: WeightsFile, dtype: torch.dtype) -> nn.Module:
    shapes, first = file.shapes, "encoder.block.0.layer."
    buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
    gated = f"{first}1.DenseReluDense.wi_0.weight" in shapes
    config = transformers.T5Config(
        vocab_size=shapes["shared.weight"][0],
        d_model=shapes["shared.weight"][1],
        d_kv=shapes[f"{first}0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes[f"{first}1.DenseReluDense.wo.weight"][1],
        num_layers=blocks(shapes, "encoder.block.{}.layer.1.DenseReluDense.wo.weight"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )
    with init_empty_weights():
        model = transformers.T5EncoderModel(config)
    words = ("shared.weight", "encoder.embed_tokens.weight")
    model = filled(model, file, lambda name: list(words) if name in words else [name], dtype)
    model.tie_weights()
    return model


def qwen_vae(file: WeightsFile, dtype: torch.dtype, config: Mapping[str, Any]) -> nn.Module:
    tensors = file.tensors(dtype=dtype)
    if "decoder.middle.0.residual.0.gamma" in tensors:
        tensors = convert_wan_vae_to_diffusers(tensors)
    sizes = dict(base_dim=tensors["encoder.conv_in.weight"].shape[0], z_dim=tensors["decoder.conv_in.weight"].shape[1])
    return of_tensors(diffusers.AutoencoderKLQwenImage, {**sizes, **config}, tensors, file, dtype)


def rgba_vae(file: WeightsFile, dtype: torch.dtype, config: Mapping[str, Any]) -> nn.Module:
    """ComfyUI's file has the names of Wan 2.2's, and kernels with a time axis of one frame."""
    flat = lambda t: t.squeeze(2) if t.ndim == 5 and t.shape[2] == 1 else t
    tensors = {wan22(name): flat(t) for name, t in file.tensors(dtype=dtype).items()}
    sizes = dict(
        base_dim=tensors["encoder.conv_in.weight"].shape[0],
        decoder_base_dim=tensors["decoder.norm_out.gamma"].shape[0],
        z_dim=tensors["decoder.conv_in.weight"].shape[1],
    )
    return of_tensors(class_of("AutoencoderKLQwenImage21"), {**sizes, **config}, tensors, file, dtype)


def wan22(name: str) -> str:
    """diffusers' name of a tensor of Wan 2.2's autoencoder."""
    for pattern, new in WAN22:
        name = re.sub(pattern, new, name)
    return name


def kl(file: WeightsFile, dtype: torch.dtype, config: Mapping[str, Any]) -> nn.Module:
    """Also that of FLUX.2, which keeps the mean and spread of squares of its latents."""
    tensors = file.tensors(dtype=dtype)
    squares = {name: t for name, t in tensors.items() if name.startswith("bn.")}
    tensors = {re.sub(r"^(en|de)coder\.((post_)?quant_conv\.)", r"\2", n): t for n, t in tensors.items() if n not in squares}
    many = blocks(tensors, "encoder.down.{}.block.0.conv1.weight")
    if many:
        kinds = dict(down_block_types=["DownEncoderBlock2D"] * many, up_block_types=["UpDecoderBlock2D"] * many)
        tensors = convert_ldm_vae_checkpoint(tensors, kinds)
    many = many or blocks(tensors, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    sizes: dict[str, Any] = dict(
        down_block_types=["DownEncoderBlock2D"] * many,
        up_block_types=["UpDecoderBlock2D"] * many,
        block_out_channels=[tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(many)],
        layers_per_block=blocks(tensors, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        latent_channels=tensors["decoder.conv_in.weight"].shape[1],
        use_quant_conv="quant_conv.weight" in tensors,
        use_post_quant_conv="post_quant_conv.weight" in tensors,
        sample_size=1024,
    )
    if squares:
        back = [tensors[f"decoder.up_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in reversed(range(many))]
        sizes |= dict(decoder_block_out_channels=back) if back != sizes["block_out_channels"] else {}
        squares.setdefault("bn.num_batches_tracked", torch.tensor(0))
        return of_tensors(diffusers.AutoencoderKLFlux2, {**sizes, **config}, tensors | squares, file, dtype)
    return of_tensors(diffusers.AutoencoderKL, {**sizes, **config}, tensors, file, dtype)


def of_tensors(
    cls: Any, config: dict[str, Any], tensors: dict[str, Tensor], file: WeightsFile, dtype: torch.dtype
) -> nn.Module:
    with init_empty_weights():
        model = cls(**config)
    entries = {name: ("", tuple(t.shape)) for name, t in tensors.items()}
    read = WeightsFile(file.path, entries, frozenset(), lambda name, _: tensors[name])
    return filled(model, read, lambda name: [name], dtype)


def build(kind: str, path: Path, dtype: torch.dtype, *, sees: bool = False, vae: Mapping[str, Any] | None = None) -> nn.Module:
    """The network of a file of this kind.  Raises TrainerError for one that is not whole.

    sees: whether a text encoder is shown images.  vae: settings of an autoencoder that its tensors do not tell.
    """
    file, vae = open_weights(path), vae or {}
    makers: dict[str, Callable[[], nn.Module]] = {
        "clip-g": lambda: clip(file, dtype, "gelu"),
        "clip-l": lambda: clip(file, dtype, "quick_gelu"),
        "t5": lambda: t5(file, dtype),
        "qwen2.5-vl": lambda: qwen25_vl(file, dtype, sees),
        "qwen3-vl": lambda: qwen3_vl(file, dtype),
        "qwen3": lambda: qwen3(file, dtype),
        "qwen-vae": lambda: qwen_vae(file, dtype, vae),
        "rgba-vae": lambda: rgba_vae(file, dtype, vae),
        "kl-squares": lambda: kl(file, dtype, vae),
        "kl": lambda: kl(file, dtype, vae),
    }
    try:
        return makers[kind]()
    except (KeyError, IndexError) as error:
        raise TrainerError(f"{path}: is {KINDS[kind].what}, but has no {error}: it is not whole, fetch it again") from None
