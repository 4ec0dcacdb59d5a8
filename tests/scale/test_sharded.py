"""The state of sharded training on disk: written by two processes, read by two and by one, whatever happens in between."""

import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import TrainerError
from trainer.tensors.deferred import Deferred, made, outlines
from trainer.training import checkpoint, sharded
from twinflow.weights import WeightsError, file_order, load, read_header, save, save_streamed

from . import state_worker
from .test_distributed import together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded")
    checkpoint.write(state_worker.at(state_worker.state(False), 1), path / "single", "x", 1)
    assert together(path, worker="state_worker.py")[0].count("done") == 1
    return path


def test_one_process_reads_what_two_wrote(folder):
    state, said = state_worker.blank(False), []
    assert checkpoint.restore(state, folder / "checkpoints", "x", said.append).name == "step-00000005"
    found, wanted = checkpoint.contents(state), load(folder / "wanted.safetensors")
    assert state_worker.equal(found, wanted) and state.step == 5 and len(wanted) == 4 * (1 + 1 + 3)
    assert len(said) == 1 and "is of 2 processes, and 1 trains now" in said[0]


def test_another_model_is_refused(folder):
    with pytest.raises(TrainerError, match="was trained from other weights"):
        checkpoint.restore(state_worker.blank(False), folder / "checkpoints", "y")


def test_a_table_of_contents_runs_no_code(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    (tmp_path / "about.json").write_text(json.dumps(dict(step=1, skipped=0, seconds=0.0)))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match="names builtins.print"):
        sharded.Folder(tmp_path)


KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn]


def some(g):
    tensors = {f"n{i}.{k}": torch.randn(i, 3, generator=g).to(kind) for k, kind in enumerate(KINDS) for i in (2, 0, 10)}
    return tensors | {"scalar": torch.ones(()), 'a ü"': torch.ones(3, 4).T}


def test_the_same_content_is_the_same_bytes(tmp_path):
    """In whatever order the tensors come; metadata stay in theirs.  The library reads what was meant."""
    tensors, about = some(torch.Generator().manual_seed(0)), {"z": "1", "x": "ü", "a": "2"}
    save(tensors, tmp_path / "a", about)
    save(dict(reversed(tensors.items())), tmp_path / "b", about)
    save_streamed(tensors, (tensors[name] for name in file_order(tensors)), tmp_path / "c", about)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b == c
    assert list(read_header(tmp_path / "a").metadata.items()) == [("format", "pt"), *about.items()]
    save(tensors, tmp_path / "d", dict(reversed(about.items())))
    assert list(read_header(tmp_path / "d").metadata) == ["format", *reversed(about)] and (tmp_path / "d").read_bytes() != a
    found = load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    assert all(t.dtype == found[name].dtype and torch.equal(t, found[name]) for name, t in tensors.items())


def test_a_file_is_laid_out_as_the_library_does(tmp_path):
    tensors = {name: t.contiguous() for name, t in some(torch.Generator().manual_seed(0)).items()}
    save(tensors, tmp_path / "a")
    save_file(tensors, tmp_path / "b")
    a, b = ((tmp_path / name).read_bytes() for name in "ab")
    assert list(read_header(tmp_path / "a").tensors.items()) == list(read_header(tmp_path / "b").tensors.items())
    assert a[8 + int.from_bytes(a[:8], "little") :] == b[8 + int.from_bytes(b[:8], "little") :]


def test_a_streamed_file_is_whole_or_absent(tmp_path):
    tensors = {"a": torch.ones(2), "b": torch.ones(3)}
    for given in ([tensors["a"]], [tensors["b"], tensors["a"]], [*tensors.values(), tensors["a"]]):
        with pytest.raises(ValueError):
            save_streamed(tensors, given, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_deferred_tensors_are_what_was_done_to_them():
    asked = []
    tensors = {name: torch.randn(4, 6, generator=torch.Generator().manual_seed(k)) for k, name in enumerate("qkv")}

    def late(name):
        return Deferred(torch.empty(4, 6, device="meta"), lambda: asked.append(name) or tensors[name])

    def work(q, k, v):
        wide, scaled = k.reshape(1, 1, *k.shape).bfloat16(), v.to(torch.float64) * 0.3
        return {"qkv": torch.cat([q, k, v]), "swapped": torch.cat(q.chunk(2)[::-1]), "wide": wide, "scaled": scaled}

    ours, wanted = work(*map(late, "qkv")), work(*tensors.values())
    assert not asked and {n: (t.shape, t.dtype) for n, t in outlines(ours).items()} == {
        n: (t.shape, t.dtype) for n, t in wanted.items()
    }
    assert ours["wide"].ndim == 4 and ours["qkv"].numel() == 72
    assert all(torch.equal(a, b) for a, b in zip(made(ours.values()), wanted.values(), strict=True))


@pytest.mark.parametrize("room", [100, 5000, 500_000])
def test_a_full_disk_is_told_by_its_own_error(room, tmp_path, monkeypatch):
    """Not by what torch's zip writer says after it."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sharded.distributed, "get_rank", lambda: 0)
    plan = SimpleNamespace(items=[SimpleNamespace(index=i) for i in range(3)])
    planner = SimpleNamespace(resolve_data=lambda item: torch.zeros(100_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sharded.Writer(tmp_path).write_data(plan, planner)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
