"""Pictures from a finished run's files."""

import hashlib

import pytest
import torch
from PIL import Image

from trainer.generate import main
from trainer.runs import pictures
from twinflow.backbones.emoji import SHIPPED


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_pictures_of_the_prompts_asked_for(finished, tmp_path, mode):
    run, sizes = str(finished / f"digits-{mode}"), []
    for prompts in (["3"], ["3", "7"]):
        path = tmp_path / "new" / f"{len(prompts)}.png"
        assert main([run, "--prompts", *prompts, "--steps", "2", "--output", str(path)]) == 0
        sizes.append(Image.open(path).size)
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] < sizes[1][1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompts", "cat"], ["'cat' is unknown", "0, 1, 2"]),
        (["--steps", "3"], ["--steps 3", "1, 2, 4"]),
        (["--each", "0"], ["--each is 0"]),
        (["--size", "64x64"], ["--size means nothing to digits"]),
        (["--reference", "x.png"], ["--reference is for models that edit"]),
    ],
)
def test_bad_input(finished, tmp_path, capsys, options, words):
    output = tmp_path / "x.png"
    assert main([str(finished / "digits-lora"), *options, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and not output.exists()


def test_pictures_of_their_own_say_how_they_were_drawn(finished, tmp_path):
    """And what is asked for in a prompt or a file counts before the options."""
    (tmp_path / "p.csv").write_text("prompt,seed,steps\n3,9223372036854775807,1\n")
    run, asked = str(finished / "digits-lora"), ["--prompts", "7 --d 5 --s 1,4", str(tmp_path / "p.csv"), "--each", "2"]
    assert main([run, *asked, "--output", str(tmp_path / "all")]) == 0
    found = {path.name: pictures.read(path) for path in (tmp_path / "all").glob("0*.png")}
    assert {name: (facts["prompt"], facts["seed"], facts["steps"]) for name, (_, facts) in found.items()} == {
        "01-7-1-nfe-01.png": ("7", 5, 1), "01-7-1-nfe-02.png": ("7", 6, 1), "01-7-4-nfe-01.png": ("7", 5, 4),
        "01-7-4-nfe-02.png": ("7", 6, 4), "02-3-1-nfe-01.png": ("3", 2**63 - 1, 1), "02-3-1-nfe-02.png": ("3", 2**63, 1),
    }  # fmt: skip
    assert (tmp_path / "all" / "grid.png").exists()
    facts = found["01-7-4-nfe-02.png"][1]
    weights = finished / "digits-lora" / facts["weights"]
    assert facts["hash"] == hashlib.sha256(weights.read_bytes()).hexdigest() and facts["model"] == facts["base"] == "digits"
    again = [run, "--prompts", "7", "--steps", "4", "--seed", "6", "--each", "1", "--output", str(tmp_path / "one.png")]
    assert main(again) == 0 and not (tmp_path / "one").exists()
    picture, own = pictures.read(tmp_path / "one.png")
    assert own == facts and torch.equal(picture, found["01-7-4-nfe-02.png"][0])


@pytest.mark.parametrize("output", ["x.jpg", "x.png/", "sub.v2"])
def test_where_pictures_go(finished, tmp_path, capsys, output):
    code = main(
        [str(finished / "digits-lora"), "--prompts", "1", "--each", "1", "--steps", "1", "--output", f"{tmp_path}/{output}"]
    )
    if output.endswith("/"):
        assert code == 0 and (tmp_path / "x.png" / "01-1-1-nfe.png").exists()
    else:
        assert code == 2 and "ends in .png" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompts", "3 --w 64"], ["a size means nothing to digits"]),
        (["--prompts", "3 --foo 1"], ["--foo", "--w, --h, --d"]),
        (["--prompts", "nowhere.txt"], ["nowhere.txt", "is not there"]),
        (["--steps", "x"], ["--steps", "'x'", "see --help"]),
        (["--nonsense"], ["--nonsense", "see --help"]),
        (["--checkpoint", "99"], ["--checkpoint is 99", "a step among"]),
    ],
)
def test_bad_input_is_one_line(finished, tmp_path, capsys, options, words):
    assert main([str(finished / "digits-lora"), *options, "--output", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_without_the_run_it_is_the_same_picture(finished, tmp_path, mode):
    """Of the run's file, and what lies beside it."""
    run, asked = finished / f"digits-{mode}", ["--prompts", "7", "--steps", "4", "--seed", "6", "--each", "1", "--output"]
    assert main([str(run), *asked, str(tmp_path / "run.png")]) == 0
    given = ["--model", "digits", "--weights", str(run / f"digits-{mode}.safetensors")]
    assert main([*given, *asked, str(tmp_path / "file.png")]) == 0
    (own, _), (other, facts) = (pictures.read(tmp_path / name) for name in ("run.png", "file.png"))
    assert torch.equal(own, other) and facts["weights"] == f"digits-{mode}.safetensors" and "run" not in facts
    plain = ["--model", "digits", "--weights", str(run / "base.safetensors"), "--prompts", "7", "--output"]
    assert main([*plain, str(tmp_path / "base.png")]) == 0 and pictures.read(tmp_path / "base.png")[1]["steps"] == 30


def test_models_that_come_with_the_project(tmp_path, capsys):
    file = SHIPPED / "distilled.safetensors"
    for options in (["--weights", str(file), "--steps", "2"], ["--weights", str(SHIPPED / "adapter.safetensors")], []):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        assert main(["--model", "emoji", *options, "--prompts", "red heart", "--output", str(path)]) == 0
        assert pictures.read(path)[0].std() > 0.1
    captured = capsys.readouterr()
    assert captured.out.count("GiB of host memory") == 3 and "without TwinFlow" not in captured.err
    assert main(["--model", "emoji", "--steps", "1", "--prompts", "red heart", "--output", str(tmp_path / "base.png")]) == 0
    told = capsys.readouterr().err
    assert "emoji, plain: drawn in 1 NFE without TwinFlow weights" in told and f"--weights {file}" in told
    assert main(["--model", "digits", "--prompts", "3"]) == 2 and "no published model" in capsys.readouterr().err


def test_a_folder_that_holds_no_run(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
