"""Files in other layouts and dtypes, there and back, of every family; nothing is lost without a word."""

import json

import pytest
import torch

from trainer.convert import main
from trainer.tools.stored import open_model
from trainer.weights.lora_file import read_adapter
from twinflow.backbones import Modules, of_modules
from twinflow.weights import load, read_header, save

from .conftest import bare_pipeline
from .test_files import trained
from .test_merge import named

try:
    import gguf
except ImportError:
    gguf = None


def converted(source, out, *more, family=None, code=0):
    assert main([str(source), "--output", str(out), *(named(family) if family else []), *map(str, more)]) == code
    return out


def in_folder(family, folder, second=False):
    """diffusers' folder in shards, maybe with a second time embedder."""
    model = family.plain()
    if second:
        family.backbone.core.time.install(model)
    model.save_pretrained(folder, max_shard_size="60kB")
    return model


@pytest.mark.parametrize("second", [False, True])
def test_a_folder_to_one_file_and_back(family, second, tmp_path):
    """Bit for bit; the folder is one that diffusers loads, whole."""
    model = in_folder(family, tmp_path / "folder", second)
    one = converted(tmp_path / "folder", tmp_path / "one.safetensors", family=family)
    wanted = family.backbone.to_file(dict(model.state_dict()))
    assert {n: t.tolist() for n, t in load(one).items()} == {n: t.tolist() for n, t in wanted.items()}
    model.save_config(tmp_path)  # no tensor tells a small SANA's heads
    back = converted(one, tmp_path / "back", "--to", "diffusers", family=family)
    found = load(back / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(found[name], t) for name, t in model.state_dict().items()) and len(found) == len(model.state_dict())
    if not second:
        theirs = family.cls.from_pretrained(back)
        assert all(torch.equal(theirs.state_dict()[name], t) for name, t in model.state_dict().items())


def test_edit_2511_keeps_its_mark(edit, tmp_path):
    edit.plain().save_pretrained(tmp_path / "folder")
    one = converted(tmp_path / "folder", tmp_path / "one.safetensors", "--model", "qwen-image-edit")
    newer = bool(edit.config.get("zero_cond_t"))
    assert ("__index_timestep_zero__" in read_header(one).tensors) == newer
    back = converted(one, tmp_path / "back", "--to", "diffusers", "--model", "qwen-image-edit")
    assert bool(json.loads((back / "config.json").read_text()).get("zero_cond_t")) == newer
    assert "__index_timestep_zero__" not in read_header(back / "diffusion_pytorch_model.safetensors").tensors


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8"])
def test_dtypes(family, dtype, tmp_path):
    model = in_folder(family, tmp_path / "folder", second=True)
    out = converted(tmp_path / "folder", tmp_path / "out.safetensors", "--dtype", dtype, family=family)
    state, found = dict(model.state_dict()), load(out)
    if dtype != "fp8":
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        assert all(torch.equal(found[n], t.to(kind)) for n, t in family.backbone.to_file(state).items())
        return
    small = [name for name, t in found.items() if t.dtype == torch.float8_e4m3fn]
    assert small and not [name for name in small if name in family.backbone.core.second]
    model.save_config(tmp_path)
    back = open_model(str(out), name=family.backbone.name, dtype=torch.float32)
    assert back.tensors.keys() == state.keys() and not back.unknown
    for name, t in back.tensors.items():
        assert (t.make().float() - state[name]).norm() <= 0.04 * state[name].norm(), name


@pytest.mark.parametrize("to", ["kohya", "diffusers", "comfyui"])
@pytest.mark.parametrize("mode", ["lora-fold"])
def test_a_lora_there_and_back(family, mode, to, tmp_path):
    """Every layer's change stays what it was."""
    family.plain().save_pretrained(tmp_path / "base")
    _, path = trained(family, mode, tmp_path)
    out = converted(path, tmp_path / "out.safetensors", "--to", to, "--base", tmp_path / "base")
    back = converted(out, tmp_path / "back.safetensors", "--base", tmp_path / "base")
    assert read_header(back).metadata == read_header(path).metadata
    one, two = (read_adapter(file, family.backbone, family.plain()).modules for file in (path, back))
    assert one.keys() == two.keys()
    for name, pair in one.items():
        torch.testing.assert_close(two[name].up @ two[name].down, pair.up @ pair.down, rtol=1e-5, atol=1e-6)
    start = {"kohya": "lora_unet_", "diffusers": "transformer.", "comfyui": family.backbone.prefix}[to]
    assert all(name.startswith(start) for name in read_header(out).tensors)


def test_a_fused_lora_goes_to_its_parts_and_is_fused_again(family):
    """Those that share their A, as files with ComfyUI's names have them."""
    from trainer.tools.loras import to_native
    from trainer.weights.lora_file import Pair

    layout, last = family.backbone.core.layout, family.plain()
    places = {n: layout.place(n, 99) for n, m in last.named_modules() if isinstance(m, torch.nn.Linear)}
    parts = {n: place for n, place in places.items() if place and place.part}
    if not parts:
        assert family.backbone.core.name in ("qwen-image", "qwen-image-edit", "krea2", "sana", "openuni")  # that fuse nothing
        return
    first = next(iter(parts.values()))
    names = [n for n, place in parts.items() if place.module == first.module]
    width = last.get_submodule(names[0]).weight.shape
    down = torch.randn(2, width[1])
    (pair,) = to_native(layout, {n: Pair(down, torch.randn(width[0], 2)) for n in names}).values()
    assert pair.down.shape == down.shape and pair.up.shape == (first.part.of * width[0], 2) and len(names) == first.part.of


def test_an_adapter_keeps_its_embedder(family, tmp_path, capsys):
    family.plain().save_pretrained(tmp_path / "base")
    _, path = trained(family, "lora-two", tmp_path)
    out = converted(path, tmp_path / "out.safetensors", "--base", tmp_path / "base")
    assert {n: t.tolist() for n, t in load(out).items()} == {n: t.tolist() for n, t in load(path).items()}
    converted(path, tmp_path / "x.safetensors", "--to", "diffusers", "--base", tmp_path / "base", code=2)
    assert "has a second time embedder" in capsys.readouterr().err


def test_nothing_is_lost_without_a_word(family, tmp_path, capsys):
    model = in_folder(family, tmp_path)
    tensors = family.backbone.to_file(dict(model.state_dict())) | {"stranger.weight": torch.ones(2)}
    for name in tmp_path.glob("*.safetensors*"):
        name.unlink()
    save(tensors, tmp_path / "m.safetensors")
    converted(tmp_path / "m.safetensors", tmp_path / "o.safetensors", family=family, code=2)
    assert "holds 'stranger.weight' (1 such)" in capsys.readouterr().err
    out = converted(tmp_path / "m.safetensors", tmp_path / "o.safetensors", "--keep-unknown", family=family)
    assert load(out).keys() == tensors.keys()
    _, path = trained(family, "lora-fold", tmp_path)
    odd = {"diffusion_model.nowhere.lora_A.weight": torch.ones(2, 2), "diffusion_model.nowhere.lora_B.weight": torch.ones(2, 2)}
    save(load(path) | odd, path, read_header(path).metadata)
    family.plain().save_pretrained(tmp_path / "base")
    args = ("--base", tmp_path / "base")
    converted(path, tmp_path / "l.safetensors", *args, code=2)
    assert "nowhere" in capsys.readouterr().err
    assert odd.keys() < load(converted(path, tmp_path / "l.safetensors", "--keep-unknown", *args)).keys()


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer.", "diffusion_model."])
def test_prefixes_and_a_whole_checkpoint(family, prefix, tmp_path, capsys):
    model = in_folder(family, tmp_path / "x")
    model.save_config(tmp_path)
    wanted = family.backbone.to_file(dict(model.state_dict()))
    save({prefix + name: t for name, t in wanted.items()}, tmp_path / "m.safetensors")
    out = converted(tmp_path / "m.safetensors", tmp_path / "o.safetensors", family=family)
    assert load(out).keys() == wanted.keys()


def test_names_of_modules_are_told_without_a_model(family):
    """The records' patterns against the networks: of every module, in every naming."""
    core = family.backbone.core
    known, model = Modules(core), family.plain()
    core.time.install(model)
    second = core.time.name + "."
    names = [
        n for n, m in model.named_modules() if isinstance(getattr(m, "weight", None), torch.Tensor) and second not in f"{n}."
    ]
    if core.name == "krea2":  # whose norms are no modules with a weight in ComfyUI, so no LoRA has them
        names = [n for n in names if "norm" not in n]
    native = {key.rpartition(".")[0] for key in family.backbone.to_file({f"{n}.weight": torch.zeros(6, 6) for n in names})}
    for name in [*names, *native]:
        assert name in known and name.replace(".", "_") in known, name
    assert not [n for n in ("nowhere", "transformer_blocks", "lora_unet_x", "") if n in known]
    keys = [f"lora_unet_{n.replace('.', '_')}.lora_down.weight" for n in names]
    variants = {"qwen-image-edit": "qwen-image", "openuni": "sana"}
    assert [record.name for record in of_modules(keys)] == [variants.get(core.name, core.name)]


@pytest.mark.skipif(gguf is None, reason="the gguf package is not installed")
def test_a_gguf_s_architecture(family, tmp_path, capsys):
    from .test_packed import write_gguf

    path = write_gguf(
        tmp_path / "x.gguf", family.backbone.to_file(dict(family.plain().state_dict())), gguf.GGMLQuantizationType.Q8_0
    )
    right = family.backbone.core.gguf
    if right == "qwen_image" or not right:  # what the writer says
        converted(path, tmp_path / "y.gguf", "--to", "gguf", code=2)
        assert ("already" if right else "no model that ComfyUI-GGUF knows") in capsys.readouterr().err
        return
    out = converted(path, tmp_path / "y.gguf", "--to", "gguf")
    one, two = gguf.GGUFReader(path), gguf.GGUFReader(out)
    assert [(t.name, t.data.tobytes(), t.tensor_type) for t in one.tensors] == [
        (t.name, t.data.tobytes(), t.tensor_type) for t in two.tensors
    ]
    assert str(bytes(two.fields["general.architecture"].parts[-1]), "utf-8") == right
    converted(out, tmp_path / "z.safetensors", family=family)  # and to safetensors, unpacked
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-100])
    converted(tmp_path / "cut.gguf", tmp_path / "w.gguf", "--to", "gguf", code=2)
    assert "cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--to", "kohya"], ["--to kohya", "not for a model"]),
        (["--to", "diffusers", "--dtype", "fp8"], ["--dtype fp8"]),
        (["--model", "nothing"], ["--model", "see --help"]),
    ],
)
def test_options_that_mean_nothing(family, tmp_path, capsys, options, words):
    in_folder(family, tmp_path / "folder")
    converted(tmp_path / "folder", tmp_path / "out", *options, code=2)
    error = capsys.readouterr().err
    assert all(word in error for word in words) and error.count("\n") == 1, error


def test_diffusers_loads_a_converted_lora(family, tmp_path):
    family.plain().save_pretrained(tmp_path / "base")
    _, path = trained(family, "lora-fold", tmp_path)
    out = converted(path, tmp_path / "o.safetensors", "--to", "diffusers", "--base", tmp_path / "base")
    pipeline = bare_pipeline(family, family.plain())
    pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
    modules = {name for name, m in pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
    assert modules == set(family.backbone.lora_targets(family.plain(), "all"))
