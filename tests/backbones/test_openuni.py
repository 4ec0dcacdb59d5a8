"""OpenUni: its checkpoint, the prompts against InternVL as transformers has it, and where each part is taken from."""

import json
import os
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from trainer import TrainerError
from trainer.backbones import openuni, sources
from twinflow.backbones import sana as known

from . import conftest

BACKBONE = openuni.BACKBONES["openuni"]
PROMPTS = ["a cat", " a much longer prompt about a dog\n", ""]


@pytest.fixture(scope="module")
def tiny():
    config = json.loads((conftest.GOLDENS / "sana.json").read_text())["config"]
    return conftest.made(BACKBONE, config)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    made = conftest.published_openuni(tiny, tmp_path_factory.mktemp("openuni"))
    made.tensors = torch.load(made.folder / "openuni.pth", weights_only=True)
    return made


def connected(tensors, x):
    """The connector and the projection from their formulas, (B, L, 128) to (B, L, D)."""
    linear = lambda name, x: F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
    norm = lambda name, x: F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)
    for layer in ("connector.layers.0", "connector.layers.1"):
        h = norm(f"{layer}.layer_norm1", x)
        q, k, v = (linear(f"{layer}.self_attn.{c}_proj", h).unflatten(-1, (2, 64)).transpose(1, 2) for c in "qkv")
        h = ((q @ k.mT / 8).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(f"{layer}.self_attn.out_proj", h)
        h = F.gelu(linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x)), approximate="tanh")
        x = x + linear(f"{layer}.mlp.fc2", h)
    return linear("projector", x)


@torch.no_grad()
def reference(whole):
    """All prompts at once, as the released code has them: padded on the right, the queries last, positions without gaps."""
    turns = ["Generate an image: a cat", "Generate an image: a much longer prompt about a dog", "Generate an image."]
    turns = [f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n<img>" for turn in turns]
    rows = whole.pipeline.tokenizer(turns, return_tensors="pt", padding=True, padding_side="right")
    model, queries = whole.pipeline.text_encoder.model.language_model, whole.tensors["meta_queries"]
    mask = torch.cat([rows.attention_mask, torch.ones(3, len(queries), dtype=torch.long)], 1)
    embeds = torch.cat([model.get_input_embeddings()(rows.input_ids), queries.expand(3, -1, -1)], 1)
    out = model(inputs_embeds=embeds, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    return connected(whole.tensors, out.last_hidden_state[:, -len(queries) :])


def test_prompts_are_those_of_the_released_arrangement(tiny, whole):
    encoded = BACKBONE.text_encoder(str(whole.folder), dtype=torch.float32).encode_text(PROMPTS)
    assert [p.text for p in encoded] == PROMPTS and all(p.pooled is None for p in encoded)
    embeds, mask = BACKBONE.collate(encoded)
    assert embeds.shape == (3, 8, tiny.text) and mask.all() and not (embeds[0] - embeds[1]).abs().max() < 1e-2
    torch.testing.assert_close(embeds, reference(whole), rtol=1e-4, atol=1e-5)


def test_an_internvl_as_transformers_saves_it(whole, tmp_path):
    """And so as the hub's converted copies are."""
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    whole.pipeline.text_encoder.save_pretrained(tmp_path / "internvl")
    ours, theirs = (BACKBONE.text_encoder(str(f), dtype=torch.float32).encode_text(PROMPTS) for f in (whole.folder, tmp_path))
    assert all(torch.equal(a.embeds, b.embeds) for a, b in zip(ours, theirs))


def test_dtypes_of_the_encoder(whole):
    """The connector stays in float32, as it was released."""
    reader = BACKBONE.text_encoder(str(whole.folder)).pipeline
    assert {p.dtype for p in reader.text_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in (reader.meta_queries, *reader.connector.parameters())} == {torch.float32}
    assert not any(p.requires_grad or p.is_meta for p in reader.parameters())
    assert not any(b.is_meta for b in reader.buffers())


def test_the_second_embedder_has_the_released_names_and_start(tiny):
    assert BACKBONE.core.time is known.TIME
    model = tiny.plain()
    second = dict(BACKBONE.core.time.install(model).named_parameters(prefix="time_embed_2"))
    layers = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
    assert second.keys() == {f"time_embed_2.{layer}.{end}" for layer in layers for end in ("weight", "bias")}
    assert second.keys() <= model.state_dict().keys()
    for name, p in second.items():
        assert not p.any() if name.endswith("bias") else abs(p.std() / 0.02 - 1) < 0.1


def test_the_checkpoint_alone_or_in_its_folder(whole):
    folder, file = (BACKBONE.load(str(source)) for source in (whole.folder, whole.folder / "openuni.pth"))
    for name, tensor in whole.pipeline.transformer.state_dict().items():
        assert torch.equal(folder.state_dict()[name], tensor) and torch.equal(file.state_dict()[name], tensor)
    assert type(file) is diffusers.SanaTransformer2DModel


def test_settings_are_read_off_a_checkpoint_that_stands_alone(tiny, whole, tmp_path):
    """Also one that wraps its tensors, and holds parts that are not SANA's."""
    wide = dict(num_attention_heads=36, attention_head_dim=32, num_cross_attention_heads=16, cross_attention_head_dim=72)
    config = tiny.config | wide | dict(cross_attention_dim=1152, num_layers=1)
    model = diffusers.SanaTransformer2DModel(**config)
    state = {f"transformer.{name}": t for name, t in model.state_dict().items()}
    state |= {"meta_queries": torch.zeros(2, 128), "projector.bias": torch.zeros(4), "vae.decoder.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    loaded = BACKBONE.load(str(tmp_path / "x.pth"), dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.config.num_cross_attention_heads == 16
    assert all(torch.equal(t, model.state_dict()[name].bfloat16()) for name, t in loaded.state_dict().items())
    assert BACKBONE.from_file(state).keys() == model.state_dict().keys()


def test_a_pretrained_checkpoint_holds_no_sana(whole, tmp_path):
    """SANA is then as it was published, or as it lies beside the checkpoint."""
    shutil.copytree(whole.folder / "transformer", tmp_path / "transformer")
    torch.save({k: t for k, t in whole.tensors.items() if not k.startswith("transformer.")}, tmp_path / "x.pth")
    loaded = BACKBONE.load(str(tmp_path))
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in whole.pipeline.transformer.state_dict().items())


def test_several_checkpoints_are_ambiguous(whole, tmp_path):
    for name in "ab":
        torch.save(whole.tensors, tmp_path / f"{name}.pth")
    with pytest.raises(TrainerError, match="holds 2 .pth files; expected one"):
        BACKBONE.load(str(tmp_path))


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_runs_code_is_refused(whole, tmp_path, zipped):
    done, file = tmp_path / "done", tmp_path / "openuni.pth"
    torch.save(whole.tensors | {"extra": Harmful(done)}, file, _use_new_zipfile_serialization=zipped)
    shutil.copytree(whole.folder / "internvl", tmp_path / "internvl")
    for use in (BACKBONE.load, BACKBONE.text_encoder):
        with pytest.raises(TrainerError, match="anybody's code" if zipped else "cannot be read as a .pth") as error:
            use(str(file))
        assert "\n" not in str(error.value) and str(file) in str(error.value)
    assert not done.exists()


def test_checkpoints_that_are_none(whole, tmp_path):
    file = tmp_path / "x.pth"
    torch.save({k: t for k, t in whole.tensors.items() if k != "meta_queries"}, file)
    with pytest.raises(TrainerError, match="has no 'meta_queries'; expected an OpenUni checkpoint"):
        BACKBONE.load(str(file))
    file.write_bytes((whole.folder / "openuni.pth").read_bytes()[:5000])
    with pytest.raises(TrainerError, match="cannot be read as a .pth") as error:
        BACKBONE.load(str(file))
    assert "\n" not in str(error.value)
    with pytest.raises(TrainerError, match="there is no such file"):
        BACKBONE.load("./nothing.pth")


def test_parts_that_do_not_fit_are_one_line(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    torch.save({k: t for k, t in whole.tensors.items() if "layers.1.self_attn.q_proj" not in k}, tmp_path / "openuni.pth")
    with pytest.raises(TrainerError, match="has no 'connector.layers.1.self_attn.q_proj.weight'"):
        BACKBONE.text_encoder(str(tmp_path))
    shutil.copy(whole.folder / "openuni.pth", tmp_path)
    weights = tmp_path / "internvl" / "model.safetensors"
    save_file({k: t for k, t in load_file(weights).items() if not k.endswith("model.norm.weight")}, weights)
    with pytest.raises(TrainerError, match="has no 'text_encoder.norm.weight'"):
        BACKBONE.text_encoder(str(tmp_path))


@pytest.fixture
def hub(whole, monkeypatch, tmp_path):
    """asked: what is fetched, (repository, patterns or file).  Every repository holds what the real one does."""
    asked, roots = [], {"wusize/openuni": whole.folder / "openuni.pth"}
    roots["OpenGVLab/InternVL3-2B"] = whole.folder / "internvl"
    roots["mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"] = whole.folder / "vae"
    alone = shutil.copy(whole.folder / "openuni.pth", tmp_path)
    shutil.copy(whole.folder / "transformer" / "config.json", tmp_path / "config.json")

    def snapshot_download(repository, allow_patterns, ignore_patterns):
        asked.append((repository, allow_patterns))
        return str(roots.get(repository, whole.folder))

    def hf_hub_download(repository, file):
        asked.append((repository, file))
        return str(alone)

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    monkeypatch.setattr(sources, "hf_hub_download", hf_hub_download)
    return SimpleNamespace(asked=asked)


def test_the_published_model_comes_from_three_repositories(whole, hub):
    ours = BACKBONE.text_encoder(dtype=torch.float32).encode_text(["a cat"])
    wanted = BACKBONE.text_encoder(str(whole.folder), dtype=torch.float32).encode_text(["a cat"])
    assert torch.equal(ours[0].embeds, wanted[0].embeds)
    BACKBONE.image_codec()
    assert hub.asked == [
        ("OpenGVLab/InternVL3-2B", ["*.json", "*.txt", "*.safetensors", "model_index.json"]),
        ("wusize/openuni", "openuni_l_internvl3_2b_sana_1_6b_512_hf_blip3o60k.pth"),
        ("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", ["*.json", "*.safetensors", "model_index.json"]),
    ]


def test_what_a_source_lacks_is_fetched(whole, hub, tmp_path):
    (tmp_path / "pre").mkdir()
    torch.save({k: t for k, t in whole.tensors.items() if not k.startswith("transformer.")}, tmp_path / "pre" / "x.pth")
    BACKBONE.load(str(tmp_path / "pre"))
    assert hub.asked == [("Efficient-Large-Model/Sana_1600M_512px_diffusers", ["transformer/*", "model_index.json"])]
    hub.asked.clear()
    BACKBONE.text_encoder(str(whole.folder / "transformer"))  # a SANA alone: the connector is the published one
    assert [repository for repository, _ in hub.asked] == ["OpenGVLab/InternVL3-2B", "wusize/openuni"]
    hub.asked.clear()
    BACKBONE.load("owner/model")
    assert hub.asked == [("owner/model", ["transformer/*", "model_index.json"])]
