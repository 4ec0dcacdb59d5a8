"""--init on the models of every family: LoRAs under ComfyUI's names, and stages of a growing size."""

import json

import pytest
import torch
from safetensors.torch import save_file

from trainer import TrainerError
from trainer.cli import main
from trainer.config.flat import from_flat
from trainer.weights import lora, origin
from trainer.weights.inference import load_trained
from trainer.weights.lora_file import read_adapter
from trainer.weights.trainee import Trainee
from twinflow.weights import WeightsError, load, read_header, save


@pytest.mark.parametrize("kohya", [False, True], ids=["dots", "underscores"])
def test_under_comfyui_s_names(family, kohya, tmp_path):
    """Fused q, k and v, halves the other way round: merged into the file's own layout, it is the same model."""
    backbone, model, g = family.backbone, family.plain(), torch.Generator().manual_seed(0)
    native = backbone.to_file({name: t.clone() for name, t in model.state_dict().items()})
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    modules = [name.removesuffix(".weight") for name, t in native.items() if name.endswith(".weight") and t.ndim == 2]
    tensors = {}
    behind = backbone.core.layout.names_behind(modules)
    unused = tuple(f"{name}." for name in backbone.idle(model)) or ("\0",)
    for name in modules:
        stands_for = [diffusers for diffusers, _ in behind.get(name, [(name, None)])]
        if not set(stands_for) <= linear or any(f"{n}.".startswith(unused) for n in stands_for):
            continue
        rows, columns = native[f"{name}.weight"].shape
        down, up = torch.randn(2, columns, generator=g) * 0.1, torch.randn(rows, 2, generator=g) * 0.1
        native[f"{name}.weight"] += 0.5 * up @ down
        own = "lora_unet_" + name.replace(".", "_") if kohya else f"diffusion_model.{name}"
        tensors |= {f"{own}.lora_down.weight": down, f"{own}.lora_up.weight": up, f"{own}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    with torch.device("meta"):
        outline = family.cls(**family.config)
    adapter = read_adapter(tmp_path / "x.safetensors", backbone, outline)
    assert adapter.modules.keys() <= linear and len(adapter.modules) >= len(tensors) // 3 > 5 and not adapter.notes
    lora.merge(backbone, model, adapter.tensors(), "x")
    wanted = backbone.from_file(native)
    for name, t in model.state_dict().items():
        torch.testing.assert_close(t, wanted[name], rtol=1e-5, atol=1e-6)


def test_layers_that_nothing_uses_are_left_out(family, tmp_path):
    """Others train them: they change nothing."""
    backbone, model = family.backbone, family.plain()
    idle = [f"{name}." for name in backbone.idle(model)]
    if not idle:
        return
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    tensors = {}
    for name, module in linear.items():
        tensors[f"transformer.{name}.lora_A.weight"] = torch.ones(1, module.in_features)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.ones(module.out_features, 1)
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors", backbone, model)
    left = {name for name in linear if f"{name}.".startswith(tuple(idle))}
    assert adapter.modules.keys() == linear.keys() - left and f"{len(left)} layers whose output" in adapter.notes[0]
    settings = from_flat(dict(mode="lora", model=backbone.name, rank=2, time="fold", targets="all", dtype="fp32"))
    assert set(backbone.lora_targets(model, "all")) >= adapter.modules.keys()
    made = Trainee(backbone, model, settings)
    assert origin.Origin(tmp_path / "x.safetensors", "adapter", {}, adapter).fill(made) == 0


def test_a_whole_model_loads_in_place_of_the_source(family, whole, tmp_path):
    backbone = family.backbone
    made = Trainee(backbone, family.plain(), from_flat(dict(mode="full", dtype="fp32")))
    for p in made.tensors.values():
        p.data += 0.01
    path = tmp_path / "full.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"mode": "full", "model": backbone.name}))  # a run's, which is no model's
    save(made.file({name: p.detach() for name, p in made.tensors.items()}), path, made.provenance(7).to_metadata())
    x, cond, _ = family.batch(2)
    t, r = torch.tensor([0.7, 0.3]), torch.tensor([0.1, 0.3])
    settings = from_flat(dict(mode="lora", model=backbone.name, dtype="fp32", rank=2, source=str(whole.folder), init=str(path)))
    start, _ = origin.opened(backbone, settings, begun=False)
    loaded = origin.model(backbone, settings, lambda: pytest.fail("the source's weights are not needed"))
    assert start.holds == "model" and not any(p.is_meta for p in loaded.parameters())
    again = Trainee(backbone, loaded, settings)
    torch.testing.assert_close(again.network(x, t, r, cond), made.network(x, t, r, cond), rtol=0, atol=1e-6)
    save(
        {name: v for name, v in load(path).items() if not name.endswith(("bias", "query_norm.weight", "norm_q.weight"))},
        path,
        read_header(path).metadata,
    )
    with pytest.raises((TrainerError, WeightsError), match="has no '.*(bias|norm_q.weight)'"):
        origin.opened(backbone, settings, begun=False)


RUN = ["--steps", "2", "--sample-every", "0", "--log-every", "1", "--threads", "1", "--dtype", "fp32", "--guidance", "2",
       "--warmup", "0", "--tracker", "none", "--rank", "2", "--lr", "1e-3"]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        Image.new("RGB", (128, 128), (40 * i, 20, 200)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a cat {i}", "utf-8")
    return folder


@pytest.mark.parametrize("edit", [False], ids=["2509"], indirect=True)
def test_stages(edit, edit_whole, pictures, tmp_path, capsys, monkeypatch):
    """512 px, then 1024 px from its file, here 64 and 128: the second begins where the first one ended."""
    rows = [dict(source=f"{i}.png", target=f"{i}.png", instruction=f"turn it {i}") for i in range(3)]
    (pictures / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    options = ["--model", "qwen-image-edit", "--source", str(edit_whole.folder), "--data", str(pictures / "pairs.jsonl"), *RUN]
    assert main("lora", [*options, "--resolution", "64", "--out", str(tmp_path), "--name", "stage1"]) == 0
    first, begun = tmp_path / "stage1" / "stage1.safetensors", []
    preview = origin.Origin.start

    def started(self, trainee):
        said = preview(self, trainee)
        begun.append({name: p.detach().clone() for name, p in trainee.tensors.items()})
        return said

    monkeypatch.setattr(origin.Origin, "start", started)
    second = ["--resolution", "128", "--out", str(tmp_path), "--name", "stage2", "--init", str(first)]
    assert main("lora", [*options, *second]) == 0
    assert "starting from stage1.safetensors" in capsys.readouterr().out
    x, cond, _ = edit.batch(2)
    t, r = torch.tensor([0.7, 0.3]), torch.tensor([0.1, 0.3])
    settings = from_flat(dict(mode="lora", model="qwen-image-edit", rank=2, dtype="fp32"))
    trainee = Trainee(edit.backbone, edit.backbone.load(str(edit_whole.folder)), settings)
    for name, p in trainee.tensors.items():
        p.data.copy_(begun[0][name])
    theirs = load_trained(edit.backbone, edit.backbone.load(str(edit_whole.folder)), first)
    torch.testing.assert_close(trainee.network(x, t, r, cond), theirs(x, t, r, cond), rtol=0, atol=1e-6)
    told = read_header(tmp_path / "stage2" / "stage2.safetensors").metadata["twinflow.init"]
    assert told.startswith("stage1.safetensors sha256:") and str(tmp_path) not in told


def test_a_lora_of_another_size_is_refused_before_anything_is_encoded(
    edit, edit_whole, pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("trainer.runs.images.ImageRun.cache", None)
    name = "diffusion_model.transformer_blocks.0.attn.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.zeros(2, 3072), f"{name}.lora_B.weight": torch.zeros(3072, 2)},
        tmp_path / "x.safetensors",
    )
    options = ["--model", "qwen-image-edit", "--source", str(edit_whole.folder), "--data", str(pictures), *RUN]
    assert main("lora", [*options, "--out", str(tmp_path / "runs"), "--init", str(tmp_path / "x.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "it is of another model" in error and "3072x3072" in error and "Traceback" not in error
