"""Mutated inputs for every reader, the same ones in every run; python tests/fuzz/fuzz.py tries any number of others."""

import random
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent)]

import fuzz  # noqa: E402
import mutations  # noqa: E402
from reader import Reader  # noqa: E402
from readers import READERS  # noqa: E402

from twinflow.weights import WeightsError, read_header, save  # noqa: E402

INPUTS = 200  # a reader


@pytest.mark.parametrize("name", READERS)
def test_every_input_is_read_or_refused_in_a_line(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, smallest = fuzz.run(name, READERS[name], round(INPUTS * READERS[name].share), tmp_path)
    assert not found, {kind: (times, smallest[kind][:200]) for kind, times in found.items()}


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda path: {}["absent"], "foreign KeyError"),
        (lambda path: (_ for _ in ()).throw(ValueError("x" * 1000)), "error of 1000 characters"),
        (lambda path: (_ for _ in ()).throw(ValueError("two\nlines")), "more than a line"),
        (lambda path: bytearray(2**24), "16 MiB of memory"),
        (lambda path: (_ for _ in ()).throw(UnicodeDecodeError("utf-8", b"x", 0, 1, "why")), "foreign UnicodeDecodeError"),
    ],
)
def test_it_notices(read, told, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    assert told in fuzz.fault(Reader(".bin", lambda path: None, read), path, 1)


def test_files_of_others_are_given_to_a_reader(tmp_path):
    """As --files does; a fault is told under the file's name, and what comes after it is tried, too."""
    files = [tmp_path / name for name in ("bad.bin", "good.bin", "worse.bin")]
    for file, text in zip(files, ("bad", "good", "worse"), strict=True):
        file.write_text(text)
    texts = {"good": 0, "sound": 0}
    reader = Reader(".txt", lambda path: path.write_text("sound"), lambda path: texts[path.read_text()])
    told = fuzz.given_to(reader, files, tmp_path)
    assert [line.split(":")[:2] for line in told] == [[name, " foreign KeyError"] for name in ("bad.bin", "worse.bin")]


def test_mutations_are_many_and_repeatable():
    own = [mutations.structured({"a": [1, {"b": 2}], "c": "d"}, random.Random(seed)) for seed in range(200)]
    assert len({repr(value) for value in own}) > 100
    assert repr(own) == repr([mutations.structured({"a": [1, {"b": 2}], "c": "d"}, random.Random(s)) for s in range(200)])


def test_a_file_cut_anywhere_is_called_cut_off(tmp_path):
    """As a download that stopped is: the fault that users meet most."""
    path = tmp_path / "a.safetensors"
    save({"a": torch.zeros(300), "b": torch.zeros(300)}, path)  # more than their header takes
    whole = path.read_bytes()
    for size in range(len(whole) - 1, 0, -7):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="cut off"):
            read_header(path)
