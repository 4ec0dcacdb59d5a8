"""trainer.generate without a run: files as they are published, our adapters, plain models; equal to a run's own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import evaluate
from trainer.config.flat import from_flat
from trainer.generate import main
from trainer.runs import pictures
from trainer.weights import inference
from trainer.weights.trainee import Trainee
from twinflow.weights import load, read_header, save

from .conftest import FAMILIES, GOLDENS, families, made, published
from .forms import written

SIZE = "64x64"
MODES = {"two": dict(mode="lora", rank=2), "fold": dict(mode="lora", time="fold", rank=2), "full": dict(mode="full")}


def trained(family, folder):
    """The files of tiny runs, by kind, and the base in the same folder."""
    files = {}
    for kind, options in MODES.items():
        trainee = Trainee(family.backbone, family.backbone.load(str(folder)), from_flat({**options, "dtype": "fp32"}))
        g = torch.Generator().manual_seed(3)
        for p in trainee.tensors.values():
            p.data += torch.randn(p.shape, generator=g) * 0.05
        files[kind] = folder / f"{kind}.safetensors"
        tensors = {name: p.detach() for name, p in trainee.tensors.items()}
        save(trainee.file(tensors), files[kind], trainee.provenance(1).to_metadata())
    return files


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """folder: of a tiny Qwen-Image; files: by kind."""
    backbone, file = FAMILIES["qwen-image"]
    family = made(backbone, json.loads((GOLDENS / f"{file}.json").read_text())["config"])
    family.folder = published(family, tmp_path_factory.mktemp("qwen")).folder
    family.files = trained(family, family.folder)
    return family


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(family or its name, option, ...): the latents that were drawn, the picture, and what its file says."""
    latents = []

    def kept(*arguments, **options):
        latents.append(plain(*arguments, **options))
        return latents[-1]

    plain = inference.generate
    monkeypatch.setattr("trainer.runs.generation.generate", kept)

    def drawn(family, *options, prompt="a cat"):
        path = tmp_path / "x.png"
        path.unlink(missing_ok=True)
        base = ["--source", family.folder, "--encoders", family.folder]
        asked = [
            "--model",
            family.backbone.name,
            *base,
            "--dtype",
            "fp32",
            "--size",
            SIZE,
            "--prompts",
            prompt,
            "--output",
            path,
        ]
        assert main([str(word) for word in (*asked, "--prompts", prompt, *options)]) == 0
        return latents[-1], *pictures.read(path)

    return drawn


@pytest.mark.parametrize("kind", ["two", "full"])  # fold is test_a_lora_of_others
def test_every_family(family, whole, draw, tmp_path, kind):
    """What load_trained, the road of a run's own files, gives for the same seed, to the last bit."""
    known, family.folder, edit = family.backbone, whole.folder, family.backbone.edits
    path, picture = trained(family, whole.folder)[kind], tmp_path / "r.png"
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(picture)
    latents, _, facts = draw(family, "--weights", path, "--steps", 2, "--seed", 42, *(["--reference", picture] if edit else []))
    assert (facts["steps"], facts["seed"], facts["weights"]) == (2, 42, path.name) and len(facts["hash"]) == 64
    encoder = known.text_encoder(str(whole.folder), dtype=torch.float32)
    pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1) / 127.5 - 1
    (prompt,) = encoder.encode_text(["a cat"], [[pixels]]) if edit else encoder.encode_text(["a cat"])
    seen = [known.image_codec(str(whole.folder)).encode_image(pixels[None])] if edit else []
    network = inference.load_trained(known, known.load(str(whole.folder)), path)
    start = inference.noise(1, latents.shape[1:], 42)
    wanted = inference.generate(network, start, (*known.collate([prompt]), *seen), known.sampling[1], seed=42)
    torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-6)


# what is the same for all families, with one


def published_shards(qwen, folder):
    """As the published checkpoint is: shards under diffusers' names without metadata, and a config.json."""
    tensors, place = load(qwen.files["full"]), folder / "TwinFlow" / "transformer"
    place.mkdir(parents=True)
    names, files = sorted(tensors), [f"diffusion_pytorch_model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    for n, file in enumerate(files):
        save({name: tensors[name] for name in names[n::3]}, place / file)
    index = {name: files[i % 3] for i, name in enumerate(names)}
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(dict(weight_map=index)))
    return place


def test_published_forms(qwen, draw, tmp_path):
    """A folder of shards with or without its config.json, one of the shards, a prefixed single file: all say the same."""
    wanted, _, _ = draw(qwen, "--weights", qwen.files["full"], "--steps", 2)
    place = published_shards(qwen, tmp_path)
    single = tmp_path / "prefixed.safetensors"
    save({f"model.diffusion_model.{name}": t for name, t in load(qwen.files["full"]).items()}, single)
    for given in (place.parent, place, min(place.glob("*.safetensors")), single):
        latents, _, facts = draw(qwen, "--weights", given, "--steps", 2)
        torch.testing.assert_close(latents, wanted)  # some processors add in another order where a weight lies elsewhere
        assert facts["sampler"]["stochasticity"] == 1.0, given


def test_quantised_forms(qwen, draw, tmp_path):
    """Files that are quantised come near, and so does a model that is quantised when it is drawn with; block swap is equal."""
    wanted, _, _ = draw(qwen, "--weights", qwen.files["full"], "--steps", 8)
    near = lambda latents: 0 < (latents - wanted).norm() <= 0.2 * wanted.norm()
    assert near(draw(qwen, "--weights", written(load(qwen.files["full"]), "int8", tmp_path / "i.safetensors"), "--steps", 8)[0])
    assert near(draw(qwen, "--weights", qwen.files["full"], "--steps", 8, "--quantize", "fp8-cast")[0])
    assert torch.equal(draw(qwen, "--weights", qwen.files["full"], "--steps", 8, "--block-swap", 1)[0], wanted)
    stream = ("--encoders-device", "stream")
    assert torch.equal(draw(qwen, "--weights", qwen.files["full"], "--steps", 8, *stream)[0], wanted)


def test_gguf(qwen, draw, tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen_image")
    for name, t in load(qwen.files["full"]).items():
        writer.add_tensor(name, t.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted, _, _ = draw(qwen, "--weights", qwen.files["full"], "--steps", 1)
    assert torch.equal(draw(qwen, "--weights", tmp_path / "x.gguf", "--steps", 1)[0], wanted)


def test_a_lora_of_others(qwen, draw, tmp_path):
    """Under other names and without metadata: folded, with the published settings."""
    wanted, _, _ = draw(qwen, "--weights", qwen.files["fold"], "--steps", 8)
    tensors = {name.replace("diffusion_model.", "transformer."): t for name, t in load(qwen.files["fold"]).items()}
    save(tensors, tmp_path / "x.safetensors")
    assert torch.equal(draw(qwen, "--weights", tmp_path / "x.safetensors", "--steps", 8)[0], wanted)


def test_a_plain_model(qwen, draw, capsys):
    """To compare with, in many steps, with guidance: named as the source, or as the weights."""
    latents, _, facts = draw(qwen, "--steps", 5, "--style", "multi")
    assert facts["sampler"]["style"] == "multi" and facts["steps"] == 5 and "guidance" not in facts
    assert "GiB of host memory" in capsys.readouterr().out
    assert torch.equal(draw(qwen, "--steps", 5)[0], latents)
    assert torch.equal(draw(qwen, "--weights", qwen.folder, "--steps", 5)[0], latents)
    guided, _, facts = draw(qwen, "--steps", 5, "--guidance", 4)
    assert facts["guidance"] == 4 and not torch.equal(guided, latents)
    assert torch.equal(draw(qwen, "--steps", 5, prompt="a cat --l 4")[0], guided)


def test_settings_in_place_of_the_file_s(qwen, draw):
    own = ["--weights", qwen.files["two"]]
    kept = draw(qwen, *own, "--steps", 4)[2]["sampler"]
    assert kept["style"] == "few" and kept["stochasticity"] == 1.0
    changed = ["--style", "any", "--stochasticity", "0.5", "--gaps", "0.01,0.4", "--warp", "1.1,1,1", "--extrapolation", "0.1"]
    found = draw(qwen, *own, "--steps", 3, *changed)[2]["sampler"]
    assert found == dict(
        steps=3, style="any", stochasticity=0.5, gaps=[0.01, 0.4], warp=[1.1, 1, 1], order=1, extrapolation=0.1
    )  # fmt: skip
    assert draw(qwen, *own, "--steps", 5, "--style", "multi")[2]["sampler"]["gaps"][1] == 0
    assert draw(qwen, *own, "--steps", 4, "--order", 2)[2]["sampler"]["order"] == 2


def cut(tensors, metadata, path):
    save(tensors, path, metadata)
    path.write_bytes(path.read_bytes()[:-5])


FAULTS = {
    "family, said": ("two", lambda t, m, p: save(t, p, m | {"twinflow.base_model": "sana"}), [], ["is of sana; expected"]),
    "family, seen": ("full", lambda t, m, p: save(t, p), ["--model", "z-image"], ["is a Qwen", "expected a ZImage"]),
    "cut off": ("full", cut, [], ["the file is cut off"]),
    "half": (
        "full", lambda t, m, p: save({n: v for n, v in t.items() if "proj_out" not in n}, p), [], ["has no 'proj_out"]
    ),
    "lora of another": (
        "two", lambda t, m, p: save({n.replace("blocks.0", "blocks.7"): v for n, v in t.items()}, p, m), [],
        ["--weights", "unknown to qwen-image"],
    ),
    "steps": ("two", lambda t, m, p: save(t, p, m), ["--steps", "3"], ["--steps 3", "1, 2, 4, 8, 30", "--style"]),
    "style": ("two", lambda t, m, p: save(t, p, m), ["--style", "euler"], ["--style", "few"]),
    "gaps": ("two", lambda t, m, p: save(t, p, m), ["--gaps", "0.5"], ["--gaps is '0.5'", "2 numbers"]),
    "gaps that cross": ("two", lambda t, m, p: save(t, p, m), ["--gaps", "0.6,0.9", "--steps", "2"], ["gaps are start 0.6"]),
    "noise": ("two", lambda t, m, p: save(t, p, m), ["--stochasticity", "much"], ["stochasticity is 'much'"]),
    "guidance": ("two", lambda t, m, p: save(t, p, m), ["--guidance", "4"], ["--guidance 4", "trained into"]),
    "swap": ("two", lambda t, m, p: save(t, p, m), ["--block-swap", "99"], ["--block-swap is 99", "at most"]),
    "quantise": ("two", lambda t, m, p: save(t, p, m), ["--quantize", "int3"], ["quantize is 'int3'"]),
    "checkpoint": ("two", lambda t, m, p: save(t, p, m), ["--checkpoint", "3"], ["--checkpoint is for a run"]),
    "a run, too": ("two", lambda t, m, p: save(t, p, m), ["runs/x"], ["a run (runs/x) and --model"]),
    "model": ("two", lambda t, m, p: save(t, p, m), ["--model", "flux"], ["flux"]),
    "size": ("two", lambda t, m, p: save(t, p, m), ["--size", "100x100"], ["--size is '100x100'", "multiples of 16"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_before_an_encoder_is_loaded(qwen, tmp_path, capsys, monkeypatch, fault):
    kind, write, options, words = FAULTS[fault]
    if fault != "swap":  # which is known when the model is there
        monkeypatch.setattr("trainer.runs.encoders.text_encoder", None)
    file = tmp_path / "x.safetensors"
    write(load(qwen.files[kind]), read_header(qwen.files[kind]).metadata, file)
    base = ["--model", "qwen-image", "--source", str(qwen.folder), "--dtype", "fp32", "--size", SIZE, "--prompts", "a cat"]
    assert main([*base, "--weights", str(file), "--output", str(tmp_path / "x.png"), *options]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert all(word in error for word in words), error
    assert not (tmp_path / "x.png").exists()


def test_neither_a_run_nor_a_model(capsys):
    assert main(["--prompts", "a cat"]) == 2 and "expected a run's folder, or --model" in capsys.readouterr().err


def test_evaluate(qwen, tmp_path):
    """Two files that say what they are, side by side, with an encoder, an autoencoder and a guided base, drawn once."""
    files = [str(qwen.files[kind]) for kind in ("two", "full")]
    base = ["--source", str(qwen.folder), "--encoders", str(qwen.folder), "--dtype", "fp32", "--size", SIZE]
    asked = ["--prompts", "a cat", "--nfe", "1", "--many", "2", "--each", "2", "--output", str(tmp_path / "x")]
    assert evaluate.main([*files, *base, *asked]) == 0
    saved = json.loads((tmp_path / "x" / "measures.json").read_text())
    assert [row["name"] for row in saved["networks"]] == ["two.safetensors", "full.safetensors"]
    assert saved["settings"]["networks"][0]["beside"]["guidance"] == [2.0] and saved["settings"]["size"] == [64, 64]
    drawn = sorted(p.parent.name for p in (tmp_path / "x" / "images").rglob("*.png"))
    assert drawn == ["1-nfe"] * 4 + ["2-nfe"] * 6
    one = ["--model", "qwen-image", "--weights", files[1], *base, "--prompts", "a cat", "--steps", "1"]
    assert main([*one, "--output", str(tmp_path / "one.png")]) == 0
    (own,) = (tmp_path / "x" / "images").glob("02-*/1-nfe/*01.png")
    assert torch.equal(pictures.read(own)[0], pictures.read(tmp_path / "one.png")[0])


@families(lambda backbone: backbone.edits)
def test_evaluate_a_model_that_edits(family, whole, tmp_path):
    path, picture = trained(family, whole.folder)["two"], tmp_path / "r.png"
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(picture)
    base = ["--source", str(whole.folder), "--encoders", str(whole.folder), "--dtype", "fp32", "--size", SIZE]
    asked = ["--model", family.backbone.name, str(path), "--prompts", "a cat", "a dog", "--nfe", "1", "--many", "2"]
    assert evaluate.main([*asked, *base, "--reference", str(picture), "--output", str(tmp_path / "x")]) == 0
    (network,) = json.loads((tmp_path / "x" / "measures.json").read_text())["networks"]
    assert network["base"]["steps"] == 2 and all(row["base_pixel"] > 0 for row in network["rows"])
