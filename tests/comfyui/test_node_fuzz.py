"""Mutated files for every reader of the nodes; tests/fuzz/fuzz.py --comfyui PATH tries any number of others."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "fuzz")]

import fuzz  # noqa: E402
import node_readers  # noqa: E402

INPUTS = 20  # a reader


def test_every_file_is_read_or_refused_in_a_line(comfy, tmp_path):
    for name, reader in node_readers.readers(comfy.part).items():
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        found, smallest = fuzz.run(name, reader, INPUTS, folder)
        assert not found, (name, found, {kind: data[:200] for kind, data in smallest.items()})
