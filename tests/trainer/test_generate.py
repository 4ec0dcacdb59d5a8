"""Pictures from a finished run's files."""

import pytest
from PIL import Image

from trainer.generate import main


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


def test_a_folder_that_holds_no_run(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
