"""The tutorial: three objectives from one base, in one picture."""

from PIL import Image

from trainer.runs.digits import DigitsRun
from trainer.tutorial import OBJECTIVES, main


def test_three_runs_of_one_base_and_a_picture(tmp_path, capsys, monkeypatch):
    shown = DigitsRun.shown
    monkeypatch.setattr(DigitsRun, "shown", lambda *args: shown(*args)[:1])  # while they train
    tiny = ["--out", str(tmp_path), "--steps", "3", "--base-steps", "4", "--evaluate", "20"]
    assert main(tiny) == 0
    said = capsys.readouterr().out
    assert "3 of 3: TwinFlow" in said
    assert len({(tmp_path / f"tutorial-{name}" / "base.safetensors").read_bytes() for name in OBJECTIVES}) == 1
    assert len({(tmp_path / f"tutorial-{name}" / f"tutorial-{name}.safetensors").read_bytes() for name in OBJECTIVES}) == 3
    width, height = Image.open(tmp_path / "tutorial.png").size
    assert width > height > 300


def test_help_teaches(capsys):
    try:
        main(["--help"])
    except SystemExit as stop:
        assert stop.code == 0
    assert "RCGM" in capsys.readouterr().out
