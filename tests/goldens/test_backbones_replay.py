"""The released forwards and samples of four backbones, and two more's (see by_hand.py), from diffusers' own classes."""

import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.backbones.sources import in_dtype
from trainer.generate import parser
from trainer.tools.given import of_weights
from trainer.weights.trainee import VelocityModel
from twinflow import sampler

STYLES = {"few": "few", "any": "any", "mul": "multi"}
FLOAT32 = 3e-5
BFLOAT16 = 0.02  # of the rms: kernels differ; bfloat16 itself is 0.03 to 0.25 away from float32
FULL_PRECISION = {"z-image": ("t_embedder", "t_embedder_2")}  # kept so by diffusers when it loads a bfloat16 checkpoint

BACKBONES = {  # file of the goldens: class, our module, name of the second embedder's row
    "qwen": ("QwenImageTransformer2DModel", "qwen_image", "qwen-image"),
    "zimage": ("ZImageTransformer2DModel", "z_image", "z-image"),
    "sd3": ("SD3Transformer2DModel", "sd3", "sd3.5"),
    "sana": ("SanaTransformer2DModel", "sana", "sana"),
    "flux2": ("Flux2Transformer2DModel", "flux2_klein", "flux2-klein"),
    "krea2": ("Krea2Transformer2DModel", "krea2", "krea2"),
    "qwen21": ("QwenImage21Transformer2DModel", "qwen_image_21", "qwen-image-2.1"),
}


class Recording(SimpleNamespace):
    """One backbone's tensors, index and models."""

    def __init__(self, directory: Path, file: str):
        cls, module, self.name = BACKBONES[file]
        self.tensors = load_file(directory / f"{file}.safetensors")
        self.index = json.loads((directory / f"{file}.json").read_text())
        self.weights = {k: v.float() for k, v in load_file(directory / f"{file}_weights.safetensors").items()}
        self.new = lambda: getattr(diffusers, cls)(**self.index["config"]).eval()
        self.backbone = importlib.import_module(f"trainer.backbones.{module}").BACKBONES[self.name]
        self.second = self.backbone.core.time
        self.two, self.plain = self.with_both_times(), self.new()
        own = {k: v for k, v in self.weights.items() if not k.startswith(self.second.name + ".")}
        self.plain.load_state_dict(own)
        self.bf16 = in_dtype(self.with_both_times(), torch.bfloat16)
        for name in FULL_PRECISION.get(self.name, ()):
            getattr(self.bf16, name).float()
        self.heard = []
        for model in (self.two, self.plain, self.bf16):
            self.embedder(model).register_forward_hook(lambda m, args, out: self.heard.append(out))

    def embedder(self, model):
        return model.get_submodule(self.second.embedder)

    def with_both_times(self):
        model = self.new()
        self.second.install(model)
        model.load_state_dict(self.weights)
        if self.name == "z-image":
            self.embedder(model).signed = False  # the released code feeds |u|
        return model

    def cond(self, ragged=False, prefix=""):
        embeds, other = self.tensors[prefix + "c0"], self.tensors["c1_ragged" if ragged else prefix + "c1"]
        return embeds, other if self.name == "sd3.5" else other.bool()

    @torch.no_grad()
    def velocity(self, model, x, t, r, cond, time="two"):
        if self.name == "qwen-image" and model is self.bf16:  # only Qwen-Image rounds its times; the released code let it
            t, r = t.bfloat16(), r.bfloat16()
        self.heard.clear()
        return VelocityModel(self.backbone, model, time)(x, t, r, cond).float()

    def check(self, what, ours, bf16=False):
        want = self.tensors[what].float()
        assert ours.shape == want.shape, what
        error = (ours.float() - want).abs()
        if bf16:
            assert error.square().mean().sqrt() <= BFLOAT16 * want.square().mean().sqrt(), (what, error.max().item())
        else:
            assert error.max() <= FLOAT32, (what, error.max().item())

    def check_embedding(self, tag, bf16=False):
        out = self.heard[-1]
        if self.name == "qwen-image-2.1":  # which is asked row by row, each with the row of time 0 behind it
            out = torch.stack([row for row, _ in self.heard])
        if isinstance(out, tuple):
            self.check(f"{tag}/temb6", out[0], bf16)
            out = out[1]
        self.check(f"{tag}/temb", out, bf16)


def known_here(file: str) -> bool:
    """Whether this diffusers has the class, with the settings that were recorded: the oldest lacks the newest models."""
    config = json.loads((Path(__file__).parent / "data" / f"{file}.json").read_text())["config"]
    cls = getattr(diffusers, BACKBONES[file][0], None)
    return cls is not None and config.keys() <= inspect.signature(cls.__init__).parameters.keys()


@pytest.fixture(scope="module", params=filter(known_here, BACKBONES))
def recording(request, directory):
    return Recording(directory, request.param)


def test_every_forward(recording, replayed):
    for tag, case in recording.index["combos"].items():
        bf16 = tag.startswith("bf16")
        model = recording.plain if case["lora"] else recording.bf16 if bf16 else recording.two
        t, r = torch.tensor(case["t"]), torch.tensor(case["tt"])
        cond = recording.cond(ragged=tag.startswith("ragged"))
        out = recording.velocity(model, recording.tensors["x"], t, r, cond, "fold" if case["lora"] else "two")
        recording.check(f"{tag}/out", out, bf16)
        recording.check_embedding(tag, bf16)
    replayed(len(recording.index["combos"]) + single_target(recording) + guidance(recording))


def single_target(recording):
    """`tt_shape1`: one r for the whole batch."""
    x = recording.tensors["x"]
    if "tt_shape1/out" in recording.tensors:
        t, r = torch.full((len(x),), 0.6), torch.zeros(1).expand(len(x))
        recording.check("tt_shape1/out", recording.velocity(recording.two, x, t, r, recording.cond()))
    return "tt_shape1/out" in recording.tensors


def guidance(recording):
    """`cfg`: scale 4 over a batch of conditional, then unconditional rows."""
    if "cfg/out" in recording.tensors:
        x = torch.cat([recording.tensors["x"]] * 2)
        t, r = torch.full((len(x),), 0.6), torch.zeros(len(x))
        given, free = recording.velocity(recording.two, x, t, r, recording.cond(prefix="cfg/")).chunk(2)
        recording.check("cfg/out", (free + 4 * (given - free)).repeat(2, 1, 1, 1))
    return "cfg/out" in recording.tensors


def test_every_sample(recording, replayed, tools):
    for id, case in recording.index["samples"].items():
        dtype = torch.bfloat16 if id.endswith("bfloat16") else torch.float32
        lora = case["api"] == "lora"
        model = recording.plain if lora else recording.bf16 if dtype == torch.bfloat16 else recording.two

        def velocity(x, t, r, model=model, time="fold" if lora else "two"):
            return recording.velocity(model, x, t.float(), r.float(), recording.cond(), time).to(x.dtype)

        z, draws = recording.tensors["x"].to(dtype), iter(recording.tensors["noise_bank"])
        estimates, states = [z], []
        out = sampler.sample(
            velocity,
            z,
            tools.times(case["sampling_steps"], case["rfba_gap_steps"], case["time_dist_ctrl"], dtype),
            style=STYLES[case["style"]],
            stochasticity=case["stochast_ratio"],
            extrapolation=case["extrapol_ratio"],
            noise_like=lambda x, draws=draws: next(draws),
            callback=lambda i, t, x, data, s=states, e=estimates: (s.append(x), e.append(data)),
        )
        recording.check(f"{id}/samples", torch.stack([e.float() for e in [*estimates[:-1], out]]), dtype == torch.bfloat16)
        if f"{id}/x" in recording.tensors:
            recording.check(f"{id}/x", torch.stack([*states, out]))
    replayed(len(recording.index["samples"]))


def test_the_network_that_trainer_generate_loads(recording, replayed, tools, tmp_path):
    """The recorded weights as a published checkpoint: a folder with config.json, and no word of metadata."""
    config = recording.index["config"] | dict(_class_name=recording.backbone.transformer_class)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(recording.weights, tmp_path / "diffusion_pytorch_model.safetensors")
    asked = ["--model", recording.name, "--weights", str(tmp_path), "--prompts", "x"]
    subject, cases = of_weights(parser().parse_args(asked)), 0
    network = subject.network()
    assert not subject.plain and network.time == "two"
    for tag, case in recording.index["combos"].items():
        t, r = torch.tensor(case["t"]), torch.tensor(case["tt"])
        if case["lora"] or tag.startswith("bf16") or min(t) < 0:
            continue
        with torch.no_grad():
            recording.check(
                f"{tag}/out", network(recording.tensors["x"], t, r, recording.cond(ragged=tag.startswith("ragged")))
            )
        cases += 1
    for id, case in recording.index["samples"].items():
        if case["api"] == "lora" or id.endswith("bfloat16"):
            continue
        draws, cond = iter(recording.tensors["noise_bank"]), recording.cond()
        out = sampler.sample(
            lambda x, t, r, cond=cond: network(x, t, r, cond),
            recording.tensors["x"],
            tools.times(case["sampling_steps"], case["rfba_gap_steps"], case["time_dist_ctrl"], torch.float32),
            style=STYLES[case["style"]],
            stochasticity=case["stochast_ratio"],
            extrapolation=case["extrapol_ratio"],
            noise_like=lambda x, draws=draws: next(draws),
        )
        wanted = recording.tensors[f"{id}/samples"][-1].float()
        assert (out - wanted).abs().max() <= FLOAT32, (id, (out - wanted).abs().max().item())
        cases += 1
    replayed(cases)


def test_what_crashed_in_the_released_code_works(recording, replayed):
    """Plain SANA and folded times; float32 times in a bfloat16 model; a second embedder under guidance (above)."""
    x = recording.tensors["x"]
    heard_once = [tag for tag, case in recording.index["combos"].items() if case["t"] == case["tt"] and min(case["t"]) >= 0]
    cases = 0
    for tag in heard_once:
        if tag.startswith("pair"):  # at r = t the two embedders are the plain model, which hears t - 0 / 2
            t = torch.tensor(recording.index["combos"][tag]["t"])
            recording.check(f"{tag}/out", recording.velocity(recording.plain, x, t, 0 * t, recording.cond(), "fold"))
            cases += 1
    for tag, case in recording.index["combos"].items():
        if tag.startswith("pair"):  # near the float32 recording: bfloat16 is 0.4 % a step, times that it rounds far more
            t, r = torch.tensor(case["t"]), torch.tensor(case["tt"])
            ours = VelocityModel(recording.backbone, recording.bf16, "two")(x, t, r, recording.cond())
            assert ours.dtype == torch.bfloat16
            error, want = ours.float() - recording.tensors[f"{tag}/out"], recording.tensors[f"{tag}/out"]
            assert error.square().mean().sqrt() <= 0.05 * want.square().mean().sqrt(), (tag, error.abs().max().item())
            cases += 1
    replayed(cases)
