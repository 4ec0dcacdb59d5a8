"""TwinFlow files in pipelines of diffusers: what trainer.generate draws of the same noise; all else that pipelines can do."""

import inspect
import json
import re

import accelerate
import diffusers
import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as plus
import numpy as np
import pytest
import torch
from PIL import Image

import twinflow.diffusers
from trainer.config.flat import from_flat
from trainer.weights.inference import generate, load_trained
from trainer.weights.trainee import Trainee
from twinflow.presets import Sampling, near
from twinflow.weights import WeightsError, load, read_header, save

from .conftest import FAMILIES, GOLDENS, made, published

FORMS = {"two": dict(mode="lora", rank=2), "fold": dict(mode="lora", time="fold", rank=2), "full": dict(mode="full")}
NAMES = [name for name in FAMILIES if name != "openuni"]  # which is no pipeline of diffusers
PAGE = GOLDENS.parents[2] / "docs" / "diffusers.md"
PROMPT, SIDE = "a cat", 64
REFERENCE = Image.linear_gradient("L").convert("RGB").resize((SIDE, SIDE))


@pytest.fixture(scope="module", params=NAMES)
def own(request, tmp_path_factory):
    """backbone, folder; files by form; pipe(): a new tiny pipeline."""
    backbone, file = FAMILIES[request.param]
    return tiny(made(backbone, json.loads((GOLDENS / f"{file}.json").read_text())["config"]), tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    backbone, file = FAMILIES["qwen-image"]
    config = json.loads((GOLDENS / f"{file}.json").read_text())["config"]
    return tiny(made(backbone, config), tmp_path_factory.mktemp("qwen"))


def tiny(family, folder):
    family.whole, family.folder, family.files = published(family, folder), folder, {}
    for form, options in FORMS.items():
        trainee = Trainee(family.backbone, family.backbone.load(str(folder)), from_flat({**options, "dtype": "fp32"}))
        g = torch.Generator().manual_seed(3)
        for p in trainee.tensors.values():
            p.data += torch.randn(p.shape, generator=g) * 0.05
        family.files[form] = folder / f"{form}.safetensors"
        tensors = {name: p.detach() for name, p in trainee.tensors.items()}
        save(trainee.file(tensors), family.files[form], trainee.provenance(1).to_metadata())

    def pipe(file=None, cls=None, **options):
        pipeline = family.whole.pipeline
        parts = dict(pipeline.components) | dict(transformer=family.backbone.load(str(folder))) | options
        new = (cls or type(pipeline))(**parts)
        new.set_progress_bar_config(disable=True)
        return new if file is None else twinflow.diffusers.load(new, file)

    family.pipe = pipe
    return family


@pytest.fixture(autouse=True)
def small_references(monkeypatch):
    monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", SIDE**2)


def arguments(family, x, steps, **more):
    """Of a call that draws from the noise x (B, C, h, w)."""
    images = dict(image=[REFERENCE] * len(x)) if family.backbone.edits else {}
    more |= dict(use_resolution_binning=False) if family.backbone.name == "sana" else {}
    return dict(
        prompt=[PROMPT] * len(x), num_inference_steps=steps, latents=start(family, x), output_type="latent",
        height=SIDE, width=SIDE, **images, **more,
    )  # fmt: skip


def start(family, x):
    """Latents (B, C, h, w) as the pipeline takes them."""
    return x if family.backbone.name == "flux2-klein" else as_pipeline(family, x)


def end(family, x):
    """Latents (B, C, h, w) as the pipeline gives them."""
    if family.backbone.name != "flux2-klein":
        return as_pipeline(family, x)
    vae = family.whole.pipeline.vae
    mean, spread = (v.view(1, -1, 1, 1) for v in (vae.bn.running_mean, vae.bn.running_var + vae.config.batch_norm_eps))
    return family.whole.pipeline._unpatchify_latents(x * spread.sqrt() + mean)


def as_pipeline(family, x):
    """Latents (B, C, h, w) as the pipeline's scheduler has them."""
    if family.backbone.name == "flux2-klein":
        return family.whole.pipeline._pack_latents(x)
    if not family.backbone.name.startswith(("qwen", "krea2")):
        return x
    return family.whole.pipeline._pack_latents(x.contiguous(), len(x), *x.shape[1:])


def noise(family, rows=1):
    shape = family.backbone.shape(family.plain(), (SIDE, SIDE))
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(7))


def condition(family):
    """What the trainer makes of the prompt."""
    known, source = family.backbone, str(family.folder)
    encoder = known.text_encoder(source, dtype=torch.float32)
    if not known.edits:
        return known.collate(encoder.encode_text([PROMPT]))
    pixels = torch.from_numpy(np.array(REFERENCE)).permute(2, 0, 1) / 127.5 - 1
    return *known.collate(encoder.encode_text([PROMPT], [[pixels]])), known.image_codec(source).encode_image(pixels[None])


@pytest.mark.parametrize("form", FORMS)
def test_equal_to_generate(own, form):
    """In 1, 2 and 4 steps and in many, from the same noise, first and fresh."""
    network = load_trained(own.backbone, own.backbone.load(str(own.folder)), own.files[form])
    pipe, x, cond = own.pipe(own.files[form]), noise(own), condition(own)
    for steps in (1, 2, 4, 30) if form == "two" else (2, 8):
        fresh = torch.Generator().manual_seed(5)
        pipe.scheduler.noise_like = lambda _, fresh=fresh: as_pipeline(own, torch.randn(x.shape, generator=fresh))
        found = pipe(**arguments(own, x, steps)).images
        wanted = end(own, generate(network, x, cond, near(steps, own.backbone.sampling), seed=5))
        assert (found - wanted).abs().max() <= 1e-5, steps


def test_three_lines(own):
    """The file's first setting and no guidance, which is trained in; rows of a batch do not know of each other."""
    pipe, asked = own.pipe(own.files["two"]), []
    pipe.transformer.register_forward_pre_hook(lambda *_: asked.append(1))
    x = noise(own, rows=1 if own.backbone.edits else 3)
    usual = arguments(own, x, 2)
    made = pipe(**usual).images
    assert len(asked) == 2 and made.isfinite().all()
    alone = pipe(**arguments(own, x[-1:], 2)).images
    torch.testing.assert_close(made[-1:], alone, rtol=0, atol=1e-5)
    asked.clear()
    del usual["num_inference_steps"]
    pipe(**usual)
    assert len(asked) == own.backbone.sampling[0].steps


def test_saved_and_loaded_again(own, tmp_path):
    pipe, x = own.pipe(own.files["two"]), noise(own)
    made = pipe(**arguments(own, x, 2)).images
    pipe.save_pretrained(tmp_path)
    seen = getattr(own.whole.pipeline, "processor", None)
    parts = {} if seen is None else dict(processor=seen)
    again = type(own.whole.pipeline).from_pretrained(tmp_path, **parts)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, twinflow.diffusers.TwinFlowScheduler)
    assert again.scheduler.sampling == pipe.scheduler.sampling == own.backbone.sampling
    with pytest.raises(ValueError, match="the transformer was not told t and r"):
        again(**arguments(own, x, 2))
    twinflow.diffusers.load(again, tmp_path / "transformer")
    torch.testing.assert_close(again(**arguments(own, x, 2)).images, made, rtol=0, atol=1e-5)


def test_sigmas_of_the_pipeline_itself_give_way(own):
    """As Qwen-Image-2.1-Turbo's has: the steps are the file's."""
    pipe, x = own.pipe(), noise(own)
    if "sample_sigmas" not in pipe.config:
        pytest.skip("this pipeline has none")
    pipe.register_to_config(sample_sigmas=[1.0, 0.9, 0.5])
    twinflow.diffusers.load(pipe, own.files["two"])(**arguments(own, x, 2))
    assert len(pipe.scheduler.timesteps) == 2


# what is the same for all families, with one


def test_callbacks(qwen):
    pipe, x, seen = qwen.pipe(qwen.files["two"]), noise(qwen), []

    def callback(pipe, i, t, values):
        seen.append((i, round(float(t)), values["latents"].clone()))
        return dict(latents=values["latents"] * 0) if i == 1 else values

    plain = pipe(**arguments(qwen, x, 4)).images
    changed = pipe(**arguments(qwen, x, 4, callback_on_step_end=callback)).images
    assert [(i, t) for i, t, _ in seen] == [(0, 999), (1, 833), (2, 666), (3, 500)]
    assert torch.equal(changed, seen[-1][2]) and (changed - plain).abs().max() > 0.01


@pytest.mark.parametrize("form", ["two", "fold"])
def test_image_to_image(qwen, form):
    """Begins at the step that the strength says, from the picture and noise of that time; the pipelines share their parts."""
    pipe = diffusers.AutoPipelineForImage2Image.from_pipe(qwen.pipe(qwen.files[form]))
    twinflow.diffusers.load(pipe, qwen.files[form])
    pipe.set_progress_bar_config(disable=True)
    g = lambda: torch.Generator().manual_seed(1)
    times, make = [], dict(prompt=PROMPT, image=REFERENCE, num_inference_steps=4, height=SIDE, width=SIDE, output_type="latent")
    follow = lambda _, i, t, values: times.append(float(t)) or values
    made = pipe(**make, strength=0.5, generator=g(), callback_on_step_end=follow).images
    assert [round(t) for t in times] == [666, 500]
    again = pipe(**make, strength=0.5, generator=g()).images
    whole = pipe(**make, strength=1.0, generator=g()).images
    assert torch.equal(made, again) and (made - whole).abs().max() > 0.01 and whole.isfinite().all()


def test_fresh_noise_follows_the_noise_that_a_picture_was_mixed_with():
    """Not the mixture, which the autoencoder rounds otherwise for a row alone and in a batch."""
    g, made = torch.Generator().manual_seed(1), []
    picture, noise = torch.randn(2, 3, 8, 8, generator=g), torch.randn(2, 3, 8, 8, generator=g)
    for rows, rounding in (([0, 1], 0.0), ([1], 1e-6)):
        scheduler = twinflow.diffusers.TwinFlowScheduler(time="fold")
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(2)
        x = scheduler.scale_noise(picture[rows] + rounding, scheduler.timesteps[2:3], noise[rows])
        made.append(scheduler.step(torch.zeros_like(x), scheduler.timesteps[2], x).prev_sample)
    torch.testing.assert_close(made[1], made[0][1:], rtol=0, atol=1e-5)


def test_the_generator_decides_it_all(qwen):
    pipe = qwen.pipe(qwen.files["two"])
    make = dict(prompt=PROMPT, num_inference_steps=4, height=SIDE, width=SIDE, output_type="latent", num_images_per_prompt=2)
    first, again, other = (pipe(**make, generator=torch.Generator().manual_seed(seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])
    three = pipe(**make | dict(num_images_per_prompt=3), generator=[torch.Generator().manual_seed(s) for s in (1, 2, 1)]).images
    torch.testing.assert_close(three[[0, 2]], three[[2, 0]], rtol=0, atol=1e-5)  # a seed is a picture
    torch.testing.assert_close(three[:1], first[:1], rtol=0, atol=1e-5)


def test_bfloat16_is_near(qwen):
    x = noise(qwen)
    wanted = qwen.pipe(qwen.files["two"])(**arguments(qwen, x, 8)).images
    pipe = qwen.pipe().to(torch.bfloat16)
    made = twinflow.diffusers.load(pipe, qwen.files["two"])(**arguments(qwen, x.bfloat16(), 8)).images
    qwen.whole.pipeline.to(torch.float32)  # whose other parts it shares
    assert made.dtype == torch.bfloat16 and (made - wanted).square().mean() < 0.01 * wanted.square().mean()


def test_other_steps(qwen):
    """Named as they are refused; with settings or times of the user's own they are not."""
    pipe, x = qwen.pipe(qwen.files["two"]), noise(qwen)
    with pytest.raises(ValueError, match="num_inference_steps is 3; expected one of 1, 2, 4, 8, 30"):
        pipe(**arguments(qwen, x, 3))
    own = pipe(**arguments(qwen, x, None, sigmas=[0.9, 0.5, 0.2])).images
    assert pipe.scheduler.times.tolist() == [0.9, 0.5, 0.2, 0] and pipe.scheduler.used.style == "few"
    with pytest.raises(ValueError, match="sigmas are"):
        pipe(**arguments(qwen, x, None, sigmas=[0.5, 0.9]))
    twinflow.diffusers.load(pipe, qwen.files["full"], sampling=[Sampling(3, "any", end_gap=0.4)])
    made = pipe(**arguments(qwen, x, 3)).images
    assert made.isfinite().all() and not torch.equal(made, own)
    with pytest.raises(ValueError, match="order 2"):
        twinflow.diffusers.load(qwen.pipe(), qwen.files["two"], sampling=[Sampling(4, order=2)])


def test_guidance_is_warned_of(qwen, caplog):
    pipe, x = qwen.pipe(qwen.files["two"]), noise(qwen)
    pipe(**arguments(qwen, x, 2))
    assert "guidance is trained" not in caplog.text
    pipe(**arguments(qwen, x, 2, true_cfg_scale=4.0, negative_prompt=["bad"]))
    assert "guidance is trained" in caplog.text


def test_another_scheduler_is_refused(qwen):
    pipe = qwen.pipe(qwen.files["two"])
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="another scheduler was put into the pipeline"):
        pipe(**arguments(qwen, noise(qwen), 2))


def test_shards(qwen, tmp_path):
    """A published checkpoint: the folder of its shards, or the one above, without a word of metadata."""
    tensors, count = load(qwen.files["full"]), 3
    names = sorted(tensors)
    (tmp_path / "transformer").mkdir()
    for n in range(count):
        file = f"diffusion_pytorch_model-{n + 1:05d}-of-{count:05d}.safetensors"
        save({name: tensors[name] for name in names[n::count]}, tmp_path / "transformer" / file)
    x = noise(qwen)
    wanted = qwen.pipe(qwen.files["full"])(**arguments(qwen, x, 2)).images
    for place in (tmp_path, tmp_path / "transformer"):
        assert torch.equal(qwen.pipe(str(place))(**arguments(qwen, x, 2)).images, wanted)
    (tmp_path / "transformer" / file).unlink()
    with pytest.raises(WeightsError, match="holds 2 .safetensors files; expected one, or all shards"):
        qwen.pipe(tmp_path)


def test_a_published_lora_is_folded(qwen, tmp_path):
    """Without metadata, as the released code's are: the model is asked at t - r / 2."""
    save(load(qwen.files["fold"]), tmp_path / "x.safetensors")
    pipe = qwen.pipe(tmp_path / "x.safetensors")
    assert pipe.scheduler.time == "fold" and pipe.scheduler.sampling[1].steps == 2


def cut(tensors, metadata, path):
    save(tensors, path, metadata)
    path.write_bytes(path.read_bytes()[:-5])


FAULTS = {
    "of another family": ("two", lambda t, m, p: save(t, p, m | {"twinflow.base_model": "z-image"}), "is of z-image; expected"),
    "cut off": ("two", cut, "the file is cut off"),
    "cut off, whole": ("full", cut, "the file is cut off"),
    "plain": (
        "full", lambda t, m, p: save({n: v for n, v in t.items() if "embed_2" not in n}, p), "neither a second time embedder"
    ),
    "weights missing": (
        "full", lambda t, m, p: save({n: v for n, v in t.items() if "proj_out" not in n}, p), "has no 'proj_out"
    ),
    "of another size": ("full", lambda t, m, p: save(t | {"proj_out.bias": torch.zeros(3)}, p), "it is of another size"),
    "too much": ("full", lambda t, m, p: save(t | {"x.scale_weight": torch.zeros(3)}, p), "unknown to QwenImage"),
    "lora of another": (
        "two", lambda t, m, p: save({n.replace("blocks.0", "blocks.7"): v for n, v in t.items()}, p, m), "unknown to qwen-image"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_used_leaves_the_pipeline_as_it_was(qwen, tmp_path, fault):
    form, write, words = FAULTS[fault]
    file = tmp_path / "x.safetensors"
    write(load(qwen.files[form]), read_header(qwen.files[form]).metadata, file)
    pipe = qwen.pipe()
    before = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    with pytest.raises(WeightsError, match=words) as error:
        twinflow.diffusers.load(pipe, file)
    assert "\n" not in str(error.value)
    after = pipe.transformer.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(t, before[name]) for name, t in after.items())
    assert isinstance(pipe.scheduler, diffusers.FlowMatchEulerDiscreteScheduler)


@pytest.mark.parametrize("file", ["x.gguf", "nowhere.safetensors", "empty"])
def test_no_such_file(qwen, tmp_path, file):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=file.replace(".", "[.]")):
        qwen.pipe(tmp_path / file)


def test_pipelines_that_cannot_take_it(qwen):
    with pytest.raises(ValueError, match="pipe is a DDPMPipeline; expected diffusers' pipeline of .*Qwen-Image"):
        twinflow.diffusers.load(diffusers.DDPMPipeline(None, diffusers.DDPMScheduler()), qwen.files["two"])
    with pytest.raises(ValueError, match="has no transformer"):
        twinflow.diffusers.load(qwen.pipe(transformer=None), qwen.files["two"])
    pipe = qwen.pipe(qwen.files["two"])
    with pytest.raises(ValueError, match="has two.safetensors already"):
        twinflow.diffusers.load(pipe, qwen.files["fold"])
    x = noise(qwen)
    pipe = twinflow.diffusers.load(pipe, qwen.files["full"])  # all weights take the place of whatever was there
    assert torch.equal(pipe(**arguments(qwen, x, 2)).images, qwen.pipe(qwen.files["full"])(**arguments(qwen, x, 2)).images)


def quantised(pipe):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(pipe.transformer, torchao.Int8WeightOnlyConfig())


def cast(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def offloaded(pipe):
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))


@pytest.mark.parametrize(("change", "words"), [(quantised, "is quantised"), (cast, "is quantised"), (offloaded, "offloaded")])
def test_quantised_or_offloaded(qwen, change, words):
    """Not before, but behind it."""
    pipe, x = qwen.pipe(), noise(qwen)
    change(pipe)
    with pytest.raises(ValueError, match=words):
        twinflow.diffusers.load(pipe, qwen.files["two"])
    pipe = qwen.pipe(qwen.files["two"])
    wanted = pipe(**arguments(qwen, x, 4)).images
    change(pipe)
    made = pipe(**arguments(qwen, x, 4)).images
    assert (made - wanted).norm() <= (0 if change is offloaded else 0.2) * wanted.norm()


@pytest.mark.parametrize("early", [True, False])
def test_offloaded_whole(qwen, early):
    """What enable_model_cpu_offload does, which wants a card: accelerate moves the transformer for each forward."""
    x, pipe = noise(qwen), qwen.pipe()
    hook = lambda: accelerate.cpu_offload_with_hook(pipe.transformer, torch.device("cpu"))
    for act in (hook, lambda: twinflow.diffusers.load(pipe, qwen.files["two"]))[:: 1 if early else -1]:
        act()
    assert torch.equal(pipe(**arguments(qwen, x, 2)).images, qwen.pipe(qwen.files["two"])(**arguments(qwen, x, 2)).images)


def test_a_lora_of_diffusers_on_top(qwen, tmp_path):
    """Loaded behind it as always; before it, refused."""
    save(load(qwen.files["fold"]), tmp_path / "x.safetensors")
    x, pipe = noise(qwen), qwen.pipe(qwen.files["two"])
    before = pipe(**arguments(qwen, x, 2)).images
    pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    assert (pipe(**arguments(qwen, x, 2)).images - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="has LoRAs already"):
        twinflow.diffusers.load(pipe, qwen.files["full"])
    pipe.unload_lora_weights()
    torch.testing.assert_close(pipe(**arguments(qwen, x, 2)).images, before, rtol=0, atol=1e-6)


def test_the_page(qwen, tmp_path, monkeypatch):
    """The code of docs/diffusers.md as it stands, one block after the other; small pictures, as the tiny model has them."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 5
    for cls in (diffusers.QwenImagePipeline, diffusers.QwenImageImg2ImgPipeline):
        size = lambda self, init=cls.__init__, **parts: (init(self, **parts), setattr(self, "default_sample_size", 8))[0]
        size.__signature__ = inspect.signature(cls.__init__)
        monkeypatch.setattr(cls, "__init__", size)
    given = dict(MODEL=str(qwen.folder), FILE=str(qwen.files["two"]), FOLDER=str(tmp_path))
    for block in blocks:
        exec(block, given)
    assert given["image"].size == given["edited"].size == (64, 64)
