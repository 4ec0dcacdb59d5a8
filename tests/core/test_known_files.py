"""Few-step LoRAs of others: which are known, by what, and what a damaged list of the user's own costs."""

import json
from pathlib import Path

import pytest
import torch

from trainer.inspect import main
from twinflow import known_files
from twinflow.known_files import recognise
from twinflow.presets import Sampling, near
from twinflow.sampler import check_sampling, sample
from twinflow.weights import save

QWEN = ["transformer_blocks.0.attn.to_q.lora_down.weight", "transformer_blocks.0.attn.to_q.lora_up.weight"]
ZIMAGE = ["diffusion_model.layers.0.attention.to_q.lora_A.weight", "diffusion_model.layers.0.attention.to_q.lora_B.weight"]
PLUS = [f"transformer.transformer_blocks.0.{name}.lora_A.weight" for name in ("attn.to_q", "img_mlp.proj")]
FLAT = ["lora_unet__layers_0_attention_to_q.lora_down.weight", "lora_unet__layers_0_attention_to_q.lora_up.weight"]
OWN = {"title": "Mine", "names": ["my-lora-*steps"], "steps": 3, "shift": 1.5}


@pytest.mark.parametrize(
    "name, keys, title, steps",
    [
        ("Qwen-Image-Lightning-8steps-V2.0-bf16", QWEN, "Qwen-Image Lightning", 8),
        ("qwen_image_lightning_4step", QWEN, "Qwen-Image Lightning", 4),
        ("Qwen-Image-fp8-e4m3fn-Lightning-4steps-V1.0-fp32", QWEN, "Qwen-Image Lightning", 4),
        ("Qwen-Image-Edit-2511-Lightning-4steps-V1.0-fp32", QWEN, "Qwen-Image Lightning", 4),
        ("Qwen Image Edit Lightning 8 steps v1.0 (1)", QWEN, "Qwen-Image Lightning", 8),
        ("Wuli-Qwen-Image-2512-Turbo-LoRA-4steps-V1.0-bf16_ComfyUi", QWEN, "Wuli Qwen-Image-2512 Turbo", 4),
        ("wuli_qwen_image_2512_turbo_lora_2steps_v1", QWEN, "Wuli Qwen-Image-2512 Turbo", 2),
        ("Z-Image-Fun-Lora-Distill-8-Steps-2602_UDCAI_ComfyUI", ZIMAGE, "Z-Image Fun Distill", 8),
        ("Z-Image-Fun-Lora-Distill-4-Steps-2603", FLAT, "Z-Image Fun Distill", 4),
        ("z-image-fun-lora-distill-2steps", ZIMAGE, "Z-Image Fun Distill", 2),
        ("p_qwen_image_2.1_8step_v0.1-comfyui-T8", ["blocks.0.x.lora_A.weight"], "Pruna for Qwen-Image-2.1", 8),
        ("Qwen-Image-2.1-viggle-turbo-v0.2.1-6step-lora-r256", PLUS, "Viggle Turbo for Qwen-Image-2.1", 6),
        ("Qwen-Image-2.1-viggle-turbo-v0.3-6step-lora-r128", PLUS, "Viggle Turbo for Qwen-Image-2.1", 6),
        ("Qwen-Image-2.1-viggle-turbo-4step-lora-r64", PLUS, "Viggle Turbo for Qwen-Image-2.1", 4),
        ("qwen_image_2.1_turbo_lora_avg_rank_178_bf16", PLUS, "Qwen-Image-2.1 Turbo as a LoRA", 8),
        ("p_q_image_2.1_5_steps_v0.1_comfyui_bf16", ["blocks.0.x.lora_A.weight"], "Pruna for Qwen-Image-2.1", 5),
    ],
)
def test_known_by_name(name, keys, title, steps, tmp_path):
    known, fault = recognise(tmp_path / f"{name}.safetensors", {}, keys)
    assert known and (known.title, known.steps, fault) == (title, steps, "")


@pytest.mark.parametrize(
    "name, keys",
    [
        ("Qwen-Image-Lightning-14steps", QWEN),
        ("Qwen-Image-Lightning-V1.0", QWEN),
        ("Qwen-Image-2.1-Lightning-4steps", QWEN),
        ("anime-for-Qwen-Image-Lightning-4steps", QWEN),
        ("Qwen-Image-Lightning-4steps-V1.0", ZIMAGE),
        ("Qwen-Image-Lightning-4steps-V1.0", [*QWEN, "unet.down_blocks.0.attn.to_q.lora_A.weight"]),
        ("Qwen-Image-2.1-viggle-turbo-5step-lora-r256", PLUS),
        ("qwen_image_2.1_turbo_lora_avg_rank_178_bf16", ZIMAGE),
        ("Z-Image-Turbo-Fun-Lora-Distill-8-Steps", ZIMAGE),
        ("Z-Image-Fun-Lora-Distill-8-Steps-2603", QWEN),
        ("p_q_image_2.1_6_steps_v0.2", ["blocks.0.x.lora_A.weight"]),
        ("动漫风格-4步", QWEN),
        ("-", QWEN),
    ],
)
def test_near_misses_are_unknown(name, keys, tmp_path):
    assert recognise(tmp_path / f"{name}.safetensors", {"ss_output_name": "a style", "title": name}, keys) == (None, "")


def test_known_by_metadata_where_it_was_renamed(tmp_path):
    for key in known_files.TITLES:
        known, _ = recognise(tmp_path / "fast.safetensors", {key: "Qwen-Image-Lightning-4steps-V1.0"}, QWEN)
        assert known and known.steps == 4


def test_every_entry_of_ours_has_its_source_and_can_be_sampled():
    for known in known_files.ours():
        assert known.source.startswith("https://") and known.names and known.cfg is not None
        sampling = known.sampling
        times = sampling.times()
        check_sampling(times, sampling.style, sampling.order, sampling.stochasticity, sampling.extrapolation)
        assert len(times) == known.steps + 1 and times[0] == 1 and times[-1] == 0
        assert Sampling.from_json(json.dumps(sampling.to_json())) == sampling


def test_the_page_lists_all_of_ours_and_its_example_is_one():
    page = (Path(known_files.__file__).parents[1] / "docs" / "files.md").read_text("utf-8")
    assert all(known.source in page for known in known_files.ours())
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    assert known_files.checked(example[0], "entry 1").fits(["my_turbo_v2_4steps_bf16"], {}, QWEN, set)


def test_the_sigmas_are_those_of_the_publisher():
    """ModelSamplingAuraFlow 3 with the scheduler simple: 3 t / (1 + 2 t)."""
    four = next(known for known in known_files.ours() if known.title == "Qwen-Image Lightning")
    assert four.sampling.sigmas == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert four.advice() == "4 steps, shift 3, strength 1, cfg 1"
    pruna = [known for known in known_files.ours() if "Pruna" in known.title]
    assert pruna[0].sampling.sigmas == pytest.approx(known_files.shifted(8, 2.0))
    viggle = [known for known in known_files.ours() if "Viggle" in known.title]
    assert viggle[0].sampling.sigmas == pytest.approx([2 * s / (1 + s) for s in (1, 0.9375, 0.875, 0.75, 0.5, 0.25, 0)])
    assert pruna[1].advice() == "5 steps, sigmas 1, 0.94, 0.8571, 0.6667, 0.4, 0, strength 1, cfg 1"


def test_sampling_by_sigmas_is_euler():
    sampling = Sampling(3, "multi", sigmas=(1.0, 0.75, 0.5, 0.0))
    x = sample(lambda x, t, r: x * t[:, None], torch.ones(1, 1), sampling.times(), **sampling.options())
    expected = 1 - 0.25
    for t, step in ((0.75, 0.25), (0.5, 0.5)):
        expected -= step * expected * t
    assert x.item() == pytest.approx(expected, rel=1e-6)
    assert near(3, [sampling]) == sampling and len(near(4, [sampling]).times()) == 5
    with pytest.raises(ValueError, match=r"sigmas \[1, 0\]; expected 5 numbers"):
        Sampling.from_json({"steps": 4, "sigmas": [1, 0]})
    with pytest.raises(ValueError):
        Sampling.from_json({"steps": 1, "sigmas": ["a", "b"]})
    assert "sigmas" not in Sampling(4).to_json()


def written(folder, entries):
    (folder / known_files.THEIRS).write_text(entries if isinstance(entries, str) else json.dumps(entries), "utf-8")
    return folder / "my_LoRA_3steps.safetensors"


def test_an_entry_of_the_user_comes_first(tmp_path):
    path = written(tmp_path, [OWN, {**OWN, "title": "Lightning, mine", "names": ["qwen-image-lightning-4steps*"]}])
    known, fault = recognise(path, {}, QWEN)
    assert known and (known.title, fault) == ("Mine", "")
    known, _ = recognise(tmp_path / "Qwen-Image-Lightning-4steps.safetensors", {}, QWEN)
    assert known and known.title == "Lightning, mine" and known.shift == 1.5


@pytest.mark.parametrize(
    "by, fits",
    [
        ({"metadata": {"ss_base_model_version": "qwen*"}}, True),
        ({"metadata": {"ss_base_model_version": "sdxl*"}}, False),
        ({"metadata": {"absent": "q*"}}, False),
        ({"keys": ["*.attn.to_q.*"]}, True),
        ({"keys": ["*.attn.to_q.*", "*.single.*"]}, False),
        ({"keys": ["*.attn.to_q.*"], "model": "qwen-image"}, True),
        ({"keys": ["*.attn.to_q.*"], "model": "z-image"}, False),
        ({"names": ["some*"], "metadata": {"ss_base_model_version": "*image*"}}, True),
        ({"names": ["other*"], "metadata": {"ss_base_model_version": "*image*"}}, False),
    ],
)
def test_all_that_an_entry_asks_for_must_fit(by, fits, tmp_path):
    written(tmp_path, [{"title": "x", "steps": 4, "sigmas": [1, 0.9, 0.5, 0.2, 0], **by}])
    known, fault = recognise(tmp_path / "some.safetensors", {"ss_base_model_version": "qwen_image"}, QWEN)
    assert (known is not None) is fits and not fault


@pytest.mark.parametrize(
    "entries, words",
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[" * 100_000, "nested more than"),
        ("[" + "9" * 5000 + "]", ""),
        ("\x00", "Expecting value"),
        ('{"steps": 4}', "expected a list"),
        ([4], "entry 1 is no object"),
        ([OWN, {**OWN, "step": 4}], "entry 2 has 'step'; expected any of title, names"),
        ([{**OWN, "names": "my-lora"}], "names is 'my-lora'; expected a list of wildcards"),
        ([{**OWN, "names": ["*"]}], "names is ['*']; expected a list of wildcards"),
        ([{**OWN, "steps": True}], "steps is True; expected a whole number from 1 to 100"),
        ([{**OWN, "steps": 10**400}], "whole number of 401 digits"),
        ([{**OWN, "shift": 10**400}], "whole number of 401 digits"),
        ('[{"title": "x", "names": ["x"], "steps": 1, "shift": NaN}]', "holds NaN, which is no number"),
        ([{**OWN, "strength": "1"}], "strength is '1'; expected a number from -10 to 10"),
        ([{**OWN, "title": "a\nb"}], r"title is 'a\nb'; expected printable text"),
        ([{**OWN, "note": "x" * 201}], "expected printable text of 200 characters"),
        ([{**OWN, "model": ["qwen-image"]}], "model is ['qwen-image']; expected one of"),
        ([{**OWN, "sigmas": [1, 0.5, 0.2, 0]}], "one of shift and sigmas"),
        ([{"title": "x", "names": ["x"], "steps": 4, "sigmas": [1, 0.5, 0]}], "has 3 sigmas; expected 5 for 4 steps"),
        ([{"title": "x", "names": ["x"], "steps": 2, "sigmas": [1, 1, 0]}], "expected numbers that fall from 1"),
        ([{"title": "x", "steps": 2, "shift": 3}], "expected any of names, metadata and keys"),
        (" " * (known_files.MOST + 1), "bytes; expected 262144 at most"),
    ],
)
def test_a_damaged_list_costs_a_line_and_ours_is_still_used(entries, words, tmp_path):
    path = written(tmp_path, entries)
    known, fault = recognise(path, {}, QWEN)
    assert known is None and words in fault and fault.startswith(str(tmp_path)) and "\n" not in fault and len(fault) < 700
    known, again = recognise(tmp_path / "Qwen-Image-Lightning-4steps.safetensors", {}, QWEN)
    assert known and again == fault


def test_a_list_that_is_no_text_and_wildcards_that_take_long_to_compare(tmp_path):
    (tmp_path / known_files.THEIRS).write_bytes(b"\xff\xfe[\xd8")
    assert "is not used" in recognise(tmp_path / "a.safetensors", {}, QWEN).fault
    written(tmp_path, [{**OWN, "names": ["a*" * 99 + "b"], "keys": ["*a" * 99 + "b"]}] * 20)
    assert recognise(tmp_path / f"{'a' * 190}.safetensors", {}, ["a" * 5000] * 50) == (None, "")


def test_inspect_says_it(tmp_path, capsys):
    tensors = {key: torch.zeros(2, 2) for key in QWEN}
    save(tensors, tmp_path / "Qwen-Image-Lightning-8steps-V1.1.safetensors")
    save(tensors, tmp_path / "style.safetensors")
    assert main([str(tmp_path / "Qwen-Image-Lightning-8steps-V1.1.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "  known as Qwen-Image Lightning, recommended: 8 steps, shift 3, strength 1, cfg 1\n" in text
    assert "source: https://github.com/ModelTC/Qwen-Image-Lightning" in text
    assert main([str(tmp_path / "style.safetensors")]) == 0 and "recommended" not in capsys.readouterr().out
    written(tmp_path, "{")
    assert main([str(tmp_path / "style.safetensors")]) == 0 and "is not used" in capsys.readouterr().out
