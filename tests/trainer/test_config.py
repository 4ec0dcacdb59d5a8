"""Where settings come from, and that what is printed is what is used."""

import json

import pytest

from trainer import TrainerError
from trainer.cli import main
from trainer.config import resolve
from twinflow.presets import OBJECTIVES


def test_the_later_wins(tmp_path, capsys):
    file = tmp_path / "s.yaml"
    file.write_text("lr: 0.5\nrank: 3\nroles: {one_step: 1, fake: 2}\n")
    assert main("lora", ["--config", str(file), "--rank", "5", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["lr"], shown["rank"], shown["roles"]) == (0.5, 5, {"one_step": 1, "fake": 2})
    assert shown["batch"] == BACKBONE.recipe("lora")["batch"]
    assert shown["name"] == "digits-lora"


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert main("full", ["--out", str(tmp_path / "runs"), "--dry-run"]) == 0
    assert not (tmp_path / "runs").exists()
    assert Config(**json.loads(capsys.readouterr().out)) == resolve("full", {"out": tmp_path / "runs"})


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_a_preset_is_the_objective(preset):
    assert resolve("lora", {"preset": preset}).objective() == OBJECTIVES[preset]
    changed = resolve("lora", {"preset": preset, "difference": "0.25"}).objective()
    assert changed.difference == 0.25 and changed.order == OBJECTIVES[preset].order


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
    assert resolve("lora", {"model": "qwen-image"} | given).objective().guidance == pytest.approx(ratio)


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
    config = resolve("lora", {"roles": "one_step=2, multi_step", "guidance_range": "0.1,0.9", "betas": "0.8,0.9"})
    assert config.roles == {"one_step": 2, "multi_step": 1}
    assert config.guidance_range == (0.1, 0.9) and config.betas == (0.8, 0.9)


def test_the_hash_is_of_what_decides_the_weights():
    one = resolve("lora", {})
    assert one.hash() == resolve("lora", {"name": "x", "out": "y", "log_every": 3, "evaluate": 5}).hash()
    assert one.hash() != resolve("lora", {"rank": 3}).hash() != resolve("lora", {"seed": 1}).hash()
    assert one.hash(base=True) == resolve("full", {"lr": 1}).hash(base=True)
    assert one.hash(base=True) != resolve("lora", {"base_steps": 3}).hash(base=True)


def test_every_setting_has_help_and_a_heading():
    for name, field in Config.model_fields.items():
        assert field.description and field.json_schema_extra["group"], name


def test_help_teaches(capsys):
    for mode in ("lora", "full"):
        with pytest.raises(SystemExit) as done:
            main(mode, ["--help"])
        text = capsys.readouterr().out
        assert done.value.code == 0 and "--model digits" in text
        assert ("--rank" in text) == (mode == "lora")
        assert f"[{BACKBONE.recipe(mode)['base_steps']}]" in text, "the defaults shown are those of the model"


def test_a_setting_of_a_lora_is_none_of_full():
    with pytest.raises(SystemExit) as done:
        main("full", ["--rank", "3"])
    assert done.value.code == 2


def test_misspelt_settings_are_answered_with_the_nearest():
    with pytest.raises(TrainerError, match="'guidence' is unknown; did you mean guidance"):
        resolve("lora", {"guidence": 1})
