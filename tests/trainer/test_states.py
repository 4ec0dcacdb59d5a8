"""Training states converted to weights: the file that the run itself wrote at that step."""

import json

import pytest
import torch

from trainer.convert import main
from trainer.inspect import main as inspect
from trainer.training import checkpoint
from twinflow.weights import load, read_header


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_state_gives_the_file_of_its_step(finished, tmp_path, mode):
    run = finished / f"digits-{mode}"
    state = checkpoint.newest(run / "checkpoints")
    out = tmp_path / "out.safetensors"
    assert main([str(state), "--output", str(out)]) == 0
    step = json.loads(read_header(state).metadata["twinflow.training"])["step"]
    wanted = run / "checkpoints" / f"digits-{mode}-step-{step:06d}.safetensors"
    assert read_header(out).metadata == read_header(wanted).metadata
    ours, theirs = load(out), load(wanted)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], t) for name, t in theirs.items())


def test_bad_input(finished, tmp_path, capsys):
    state = checkpoint.newest(finished / "digits-lora" / "checkpoints")
    alone = tmp_path / "a" / "b" / state.name
    alone.parent.mkdir(parents=True)
    alone.write_bytes(state.read_bytes())
    for source, more, words in (
        (alone, [], "without its run"),
        (state, ["--to", "kohya"], "not for a training state"),
        (finished / "digits-lora", [], "is the folder of a run; expected a file of it, such as"),
    ):
        assert main([str(source), "--output", str(tmp_path / "x.safetensors"), *more]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_a_run_s_folder_is_told(finished, capsys):
    run = finished / "digits-lora"
    assert inspect([str(run), str(checkpoint.newest(run / "checkpoints"))]) == 0
    text = capsys.readouterr().out
    assert "a run of trainer.lora, model digits" in text and "finished weights: digits-lora.safetensors" in text
    assert "a TwinFlow adapter (LoRA and second time embedder) of Digits" in text and "a training state, not weights" in text
