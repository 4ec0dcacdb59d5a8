"""The ready configurations: each is a whole configuration, and fits the card that its name or its first lines promise."""

import re

import pytest
import yaml

from trainer import TrainerError
from trainer.backbones import backbone
from trainer.cli import CONFIGS, main, read_file
from trainer.config.resolving import resolve
from trainer.plan.memory import GIB, plan

FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_fits_the_card_it_is_for(path):
    text = path.read_text()
    mode, card = yaml.safe_load(text)["mode"], int(re.search(r"(\d+) ?gb", path.stem + text, re.I)[1])
    config = resolve(mode, read_file(path.stem, mode))
    assert f"trainer.{mode} --config {path.stem}" in text
    many = re.search(r"(\d+)x\d+gb", path.stem)
    assert plan(backbone(config.model), config, int(many[1]) if many else 1).peak < card * GIB


def test_the_list_is_whole():
    names = {path.stem for path in FILES}
    assert {f"qwen-image-lora-{n}gb" for n in (24, 48, 80)} | {f"z-image-lora-{n}gb" for n in (12, 16, 24)} <= names
    assert {"qwen-image-full-8x80gb", "sd3.5-medium-lora", "sd3.5-medium-full", "sana-full"} <= names
    assert {"krea2-lora-24gb", "qwen-image-2.1-lora-16gb", "qwen-image-2.1-lora-24gb"} <= names
    assert {f"flux2-klein-lora-{n}gb" for n in (12, 16, 24)} | {"flux2-klein-full-4x24gb"} <= names


def test_a_configuration_of_the_other_command(capsys):
    with pytest.raises(TrainerError, match="expected python -m trainer.full"):
        read_file("sana-full", "lora")
    assert main("lora", ["--config", "no-such-thing"]) == 2
    assert "cannot be read" in capsys.readouterr().err
