"""Where settings come from, and that what is printed is what is used."""

import json
import re
from dataclasses import fields
from typing import get_args

import pytest

from trainer import TrainerError
from trainer.backbones import backbone
from trainer.cli import EXTRA, main, read_file
from trainer.config.options import flag
from trainer.config.resolving import resolve
from trainer.config.saved import read_settings
from trainer.config.sections import OBJECTIVE
from trainer.config.settings import OPTIONS, Settings
from trainer.hints import ANSWERS, CALLED, VALUES
from twinflow.backbones import all_backbones, canonical, models
from twinflow.objective import Objective
from twinflow.presets import OBJECTIVES


def test_the_later_wins(tmp_path, capsys):
    file = tmp_path / "s.yaml"
    file.write_text("lr: 0.5\nrank: 3\nroles: {one_step: 1, fake: 2}\n")
    assert main("lora", ["--config", str(file), "--rank", "5", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["lr"], shown["rank"], shown["roles"]) == (0.5, 5, {"one_step": 1, "fake": 2})
    assert shown["batch"] == backbone("digits").recipe("lora")["batch"]
    assert shown["name"] == "digits-lora"


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert main("full", ["--out", str(tmp_path / "runs"), "--dry-run"]) == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("mode, options", [("lora", ["--preset", "rcgm"]), ("full", []), ("lora", ["--model", "sana"])])
def test_what_a_dry_run_prints_is_a_configuration(mode, options, tmp_path, capsys):
    assert main(mode, [*options, "--dry-run"]) == 0
    file = tmp_path / "settings.json"
    file.write_text(capsys.readouterr().out)
    given = {name.strip("-"): value for name, value in zip(options[::2], options[1::2])}
    assert resolve(mode, read_file(str(file), mode)) == resolve(mode, given)


@pytest.mark.parametrize("preset", OBJECTIVES)
@pytest.mark.parametrize("model", ["digits", "qwen-image"])
def test_a_preset_is_the_objective(preset, model, capsys):
    """And the guide and teacher that it was published with, whatever the recipe of the model."""
    settings = resolve("lora", {"model": model, "preset": preset})
    assert settings.objective == OBJECTIVES[preset]
    assert (settings.guidance.guide, settings.training.ema) == ("teacher", 0.99)
    changed = resolve("lora", {"model": model, "preset": preset, "dt": "0.25", "ema": 0.5})
    assert (changed.objective.dt, changed.objective.order) == (0.25, OBJECTIVES[preset].order)
    assert changed.training.ema == 0.5


def test_what_a_preset_leaves_to_the_recipe_is_said():
    said = []
    resolve("lora", {"model": "digits", "preset": "twinflow"}, said.append)
    assert len(said) == 1 and "--weights-ema stays 0.99 (recipe of digits)" in said[0], said
    said.clear()
    resolve("lora", {"model": "digits", "preset": "twinflow", "weights_ema": 0.0}, said.append)
    resolve("lora", {"model": "qwen-image", "preset": "twinflow"}, said.append)
    assert not said


def test_a_renamed_option_keeps_its_old_name_for_a_version(capsys):
    assert main("lora", ["--difference", "0.25", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["dt"] == 0.25 and "--difference is called --dt now" in captured.err


HASHES = [  # of the first version, for settings that give the same run: of all, and of the base
    ("lora", {"time_shift": 1}, "5de032604bc7", "5edc51fb3105"),
    ("full", {}, "0b4281ceb5a4", "5edc51fb3105"),
    ("lora", {"seed": 3, "rank": 4, "time": "fold", "targets": "attention", "rslora": True, "dropout": 0.1, "time_shift": 1},
     "d0ed70f73571", "4d49b773ef05"),
    ("lora", {"difference": 0.1, "guide": "teacher", "ema": 0.9, "time_shift": 1}, "fcde4d2076e6", "5edc51fb3105"),
    ("lora", {"model": "qwen-image"}, "968ba6d53f5a", "99f431eb915a"),
    ("full", {"model": "qwen-image"}, "849e8613f566", "99f431eb915a"),
    ("lora", {"model": "qwen-image", "quantize": "nf4", "optimizer": "adamw8bit", "data": "photos*3,more", "guidance": "4",
              "betas": "0.8,0.9"}, "f5b7c3b3f019", "99f431eb915a"),
    ("lora", {"model": "qwen-image", "preset": "lora-1st-order", "guidance": 4, "difference": "0.02"},
     "34a35c346c3a", "99f431eb915a"),
    ("lora", {"model": "qwen-image-edit"}, "2ff6f1b779ad", "cd4e2e353125"),
    ("lora", {"model": "z-image-turbo", "preset": "rcgm"}, "e4ad1a906f56", "a5f2057a3698"),
    ("full", {"model": "z-image"}, "de861779410b", "de874370cfcc"),
    ("lora", {"model": "sd3.5"}, "079641349d06", "4404ac9f092e"),
    ("full", {"model": "sd3.5", "preset": "flow-matching"}, "97fb124d7715", "4404ac9f092e"),
    ("full", {"model": "sana"}, "be2741768b22", "54270c0cd0c7"),
    ("full", {"model": "openuni", "image_free": True}, "aec9cc57f274", "21d987cef6e9"),
]  # fmt: skip


@pytest.mark.parametrize("mode, given, all_of_it, base", HASHES)
def test_the_same_settings_have_the_hash_of_the_first_version(mode, given, all_of_it, base):
    settings = resolve(mode, given)
    assert (settings.hash(), settings.hash(base=True)) == (all_of_it, base)


def test_a_config_json_is_read_back(tmp_path):
    settings = resolve("lora", {"model": "sd3.5", "roles": "one_step=1,fake=1", "rectify": 1, "data": "a,b", "cache": "c"})
    (tmp_path / "config.json").write_text(json.dumps(settings.flat()))
    assert read_settings(tmp_path) == settings
    older = settings.flat()
    older["difference"] = older.pop("dt")
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert read_settings(tmp_path) == settings
    for change in ({"reach": 0.5}, {"roles": {"multi_step": 1}, "order": 0}):  # what it dropped is refused now
        (tmp_path / "config.json").write_text(json.dumps(older | change))
        assert read_settings(tmp_path).objective.rectify == 0


@pytest.mark.parametrize(
    "given, ratio",
    [
        ({}, 0.5),  # the published ratio, as a scale of 2
        ({"guidance": 4}, 0.75),
        ({"guidance": 4, "guide": "base"}, 3.0),
        ({"guidance": 4, "guide": "base", "target": "guide"}, 4.0),
        ({"guidance": 1}, 0.0),
        ({"guidance_ratio": 0.8}, 0.8),
        ({"preset": "twinflow"}, 0.5),
        ({"preset": "twinflow", "guidance": 5}, 0.8),
        ({"guidance_ratio": 1.5, "guide": "base"}, 1.5),
    ],
)
def test_guidance_is_a_scale(given, ratio):
    """The teacher's fixed point under a ratio g is the scale 1 / (1 - g); a frozen base's is 1 + g."""
    assert resolve("lora", {"model": "qwen-image"} | given).objective.guidance_ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"guidance_ratio": 1}, "guidance-ratio is 1, which has no fixed point"),
        ({"guidance": 0.5}, "guidance is 0.5; input should be greater than or equal to 1"),
        ({"target": "guide", "guidance": 3}, "no fixed point"),
        ({"base_steps": 3}, "--base-steps means nothing to qwen-image"),
    ],
)
def test_guidance_that_cannot_be(given, words):
    with pytest.raises(TrainerError, match=words):
        resolve("lora", {"model": "qwen-image"} | given)


def test_digits_bring_their_own_data():
    with pytest.raises(TrainerError, match="--data means nothing to digits"):
        resolve("lora", {"data": "photos"})


def test_the_command_line_reads_tables_and_pairs():
    config = resolve(
        "lora", {"roles": "one_step=2, multi_step", "rectify": "0", "guidance_range": "0.1,0.9", "betas": "0.8,0.9"}
    )
    assert config.objective.roles == {"one_step": 2, "multi_step": 1}
    assert config.objective.guidance_range == (0.1, 0.9) and config.training.betas == (0.8, 0.9)


def test_the_hash_is_of_what_decides_the_weights():
    one = resolve("lora", {})
    assert one.hash() == resolve("lora", {"name": "x", "out": "y", "log_every": 3, "evaluate": 5}).hash()
    assert one.hash() != resolve("lora", {"rank": 3}).hash() != resolve("lora", {"seed": 1}).hash()
    assert one.hash(base=True) == resolve("full", {"lr": 1}).hash(base=True)
    assert one.hash(base=True) != resolve("lora", {"base_steps": 3}).hash(base=True)


def test_every_setting_has_help_and_a_heading():
    assert set(OBJECTIVE) | {"guidance_ratio"} == {field.name for field in fields(Objective)}
    for name, option in OPTIONS.items():
        assert option.help and (not option.section or Settings.model_fields[option.section].description), name


def test_help_teaches(capsys):
    for mode in ("lora", "full"):
        assert main(mode, ["--model", "digits", "--help"]) == 0
        text = capsys.readouterr().out
        assert "--model digits" in text and ("--rank" in text) == (mode == "lora")
        assert f"[{backbone('digits').recipe(mode)['base_steps']}]" in text, "the defaults shown are those of the model"
        assert text.index("most used:") < text.index("--steps") < text.index("--betas")
        assert "--resolution" not in text, "digits have no use for it"
    assert main("lora", ["--model", "z-image", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--resolution" in text and "--base-steps" not in text


def test_help_without_a_model_has_every_option(capsys):
    for mode in ("lora", "full"):
        assert main(mode, ["--help"]) == 0
        text = capsys.readouterr().out
        expected = [flag(name) for name, o in OPTIONS.items() if name != "mode" and not (mode == "full" and o.lora)]
        assert all(name in text for name in expected)
        assert ("peak learning rate [0.0001]" if mode == "lora" else "peak learning rate [1e-05]") in text
    assert len([name for name, o in OPTIONS.items() if o.top]) + len(EXTRA) == 10


def test_the_options_that_hints_name_are_there():
    assert set(CALLED.values()) | set(VALUES) <= set(OPTIONS)
    assert not (set(CALLED) | set(ANSWERS)) & (set(OPTIONS) | set(EXTRA))
    for name, values in VALUES.items():
        assert set(values.values()) <= set(get_args(OPTIONS[name].kind)), name
    flags = {flag(name) for name in (*OPTIONS, *EXTRA, "help")}
    for answer in ANSWERS.values():
        named = set(re.findall(r"--[a-z0-9_-]+", answer)) - {"--num_processes", "--use_fsdp", "--fsdp_version"}  # accelerate's
        assert named <= flags, answer


def test_a_setting_of_a_lora_is_none_of_full(capsys):
    assert main("full", ["--rank", "3"]) == 2
    assert "--rank means nothing to trainer.full" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--learning_rate", "1e-4"], "--learning_rate is not an option; here it is called --lr 1e-4"),
        (["--network_dim=16"], "here it is called --rank 16"),
        (["--mixed_precision", "bf16"], "here it is called --dtype bf16"),
        (["--max_train_steps", "50"], "here it is called --steps 50"),
        (["--train_batch_size", "2"], "here it is called --batch 2"),
        (["--output_dir", "x"], "here it is called --out x"),
        (["--base_steps", "3"], "did you mean --base-steps 3?"),
        (["--stpes", "3"], "did you mean --steps"),
        (["--network_module", "networks.lora"], "python -m trainer.lora trains a LoRA"),
        (["--model", "qwen_image"], "did you mean --model qwen-image?"),
        (["--model", "qwen-image-2601"], "did you mean --model qwen-image (with --source Qwen/Qwen-Image-2601)?"),
        (["--model", "mine/Z-Image-Turbo"], "did you mean --model z-image-turbo (with --source mine/Z-Image-Turbo)?"),
        (["--model", "z-image-omni"], "announced it, and not published its weights; expected z-image or"),
        (["--model", "Tongyi-MAI/Z-Image-Edit"], "announced it, and not published its weights"),
        (["--model", "zimage"], "did you mean --model z-image?"),
        (["--lr_scheduler", "polynomial"], "here it is called --schedule"),  # and there is nothing like this value
        (["--model", "stabilityai/stable-diffusion-3.5-large-turbo"], "did you mean --model sd3.5-large (with --source stab"),
        (["--model", "./mine.safetensors"], "a file or folder goes to --source"),
        (["--modle", "sana"], "did you mean --model or"),
        (["--optimizer", "adam"], "--optimizer: 'adam' is not one of 'adamw', 'adamw8bit', 'muon'"),
        (["--betas", "0.9"], "betas is 0.9; expected two numbers, such as 0.9,0.999"),
        (["--rectify", "inf"], "rectify is 'inf'; input should be a finite number"),
        (["photos"], "options begin with --"),
    ],
)
def test_what_other_trainers_call_it_is_answered(options, words, capsys):
    assert main("lora", options) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "asked, name, repository",
    [
        ("qwen-image-2512", "qwen-image-2512", "Qwen/Qwen-Image-2512"),
        ("Qwen/Qwen-Image-2512", "qwen-image-2512", "Qwen/Qwen-Image-2512"),
        ("Qwen/Qwen-Image", "qwen-image", "Qwen/Qwen-Image"),
        ("qwen/qwen-image", "qwen-image", "Qwen/Qwen-Image"),
        ("qwen-image-edit-2511", "qwen-image-edit", "Qwen/Qwen-Image-Edit-2511"),
        ("Qwen/Qwen-Image-Edit-2509", "qwen-image-edit-2509", "Qwen/Qwen-Image-Edit-2509"),
        ("z-image-base", "z-image", "Tongyi-MAI/Z-Image"),
        ("Tongyi-MAI/Z-Image-Turbo", "z-image-turbo", "Tongyi-MAI/Z-Image-Turbo"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "flux2-klein", "black-forest-labs/FLUX.2-klein-base-4B"),
        ("black-forest-labs/FLUX.2-klein-4B", "flux2-klein-distilled", "black-forest-labs/FLUX.2-klein-4B"),
        ("stabilityai/stable-diffusion-3.5-large", "sd3.5-large", "stabilityai/stable-diffusion-3.5-large"),
    ],
)
def test_a_model_is_known_by_its_other_names(asked, name, repository, capsys):
    settings = resolve("lora", {"model": asked})
    assert (settings.model, settings.run.name) == (name, f"{name}-lora") and backbone(asked).repository == repository
    assert main("lora", ["--model", asked, "--help"]) == 0
    assert f"these are for {name}." in " ".join(capsys.readouterr().out.split())


def test_every_other_name_leads_to_a_model_and_hides_none():
    for record in all_backbones().values():
        assert set(record.aliases.values()) <= set(record.models) and not set(record.aliases) & set(models())
        for name, repository in record.models.items():
            assert canonical(name) == name and (not repository or record.models[canonical(repository)] == repository)
    assert canonical("") == "" and canonical("no/Such-Model") == "no/Such-Model"


def test_misspelt_settings_are_answered_with_the_nearest():
    with pytest.raises(TrainerError, match="'guidence' is unknown; did you mean guidance"):
        resolve("lora", {"guidence": 1})


@pytest.mark.parametrize("name", ["quantize", "tracker"])
def test_off_in_a_file_is_none(tmp_path, name):
    for word in ("off", "no", "false", "none"):
        (tmp_path / "s.yaml").write_text(f"{name}: {word}\n")
        assert resolve("lora", read_file(str(tmp_path / "s.yaml"), "lora")).flat()[name] == "none"
