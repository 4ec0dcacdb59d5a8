"""A few of the faults that faults.py brings about, at the moments that matter, of one small run each."""

import resource
import signal
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

sys.path[:0] = [str(Path(__file__).parent)]

import folders  # noqa: E402
import kills  # noqa: E402
import real_runs as runs  # noqa: E402

from trainer import TrainerError  # noqa: E402
from trainer.runs import lock  # noqa: E402
from trainer.training import log as logs  # noqa: E402
from twinflow.atomic import append, new_folder, remove_leftovers, write_atomically, write_text  # noqa: E402

RUN = runs.Run(
    "digits-lora",
    lambda out: ["trainer.lora", "--model", "digits", "--base-steps", "2", "--base-batch", "8", "--steps", "4", "--batch", "8",
                 "--rank", "2", "--sample-every", "2", "--sample-base", "0", "--evaluate", "0", *runs.COMMON, "--out", out],
    ("digits-lora/base.safetensors", "digits-lora/digits-lora.safetensors"),
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to; beside it, what it wrote."""
    out = tmp_path_factory.mktemp("whole") / "out"
    out.mkdir()
    code, text = RUN.run(out, out.parent, dict(log=str(kills.log_of(out, 0))))
    assert code == 0, text
    return out


def test_all_is_written_in_one_place(whole):
    """Into a temporary file first; the log is appended to, and a lock is no content."""
    opened = [Path(path).name for event, path, *_ in kills.writes(kills.log_of(whole, 0)) if event == "open"]
    others = [name for name in opened if not (name.startswith(".") and name.endswith(".tmp"))]
    assert len(opened) > 20 and set(others) == {".lock", "metrics.csv"}


def test_killed_on_a_full_disk_and_killed_again(whole, tmp_path):
    """In a preview, in a checkpoint, in the final write: it ends in the same weights, and leaves nothing behind."""
    out = tmp_path / "out"
    out.mkdir()
    assert RUN.run(out, tmp_path, dict(at=2, holds="/samples/.", do="kill"))[0] == -9
    assert [path.name for path in runs.leftovers(out) if path.name.endswith(".tmp")]
    code, text = RUN.run(out, tmp_path, dict(at=1, on=True, holds="digits-lora/", do="ENOSPC"))
    assert code == 1 and "No space left on device" in text and "same command again" in text and "Traceback" not in text
    code, text = RUN.run(out, tmp_path, dict(at=1, on=True, holds="/checkpoints/.step-00000004", do="EROFS"))
    assert code == 0 and "step-00000004.safetensors could not be saved" in text and "writable" in text
    (out / "digits-lora" / "metrics.json").unlink()
    assert RUN.run(out, tmp_path, dict(at=2, holds="/.digits-lora.safetensors", do="kill"))[0] == -9
    assert folders.goes_on(RUN, whole, out, tmp_path) == ""


def test_a_folder_that_goes_away_is_saved_again(whole, tmp_path):
    line, fault = "", "exit 0"
    for attempt in range(4):
        out = tmp_path / str(attempt)
        out.mkdir()
        line, fault = folders.removed(RUN, whole, out, tmp_path)
        if fault != "exit 0":  # the run was over before its folder was gone: a busy machine
            break
    assert not fault and "what is trained was saved there again" in line


WHOLE = "stage,step,seconds,rate,loss\nbase,1,0.10,0.1,2\ndistil,1,0.20,0.1,nan\ndistil,2,0.30,0.1,1.5\n"


@pytest.mark.parametrize(
    "text, steps, damaged",
    [
        (WHOLE, 3, []),
        (WHOLE.replace("\n", "\r\n"), 3, []),
        ("", 0, [1]),
        (WHOLE[:-10], 2, [4]),
        (WHOLE[:-25], 1, [3]),
        (WHOLE + "\0" * 100, 3, [5]),
        (WHOLE + "distil,3,0.40,0.1,1,5,7\n", 3, [5]),
        (WHOLE.replace("distil,1,0.20", "distil,x,0.20"), 2, [3]),
        (WHOLE.replace("distil,1,0.20", "distil,1,nan"), 2, [3]),
        (WHOLE.replace("distil,1,0.20", "distil,-1,0.20"), 2, [3]),
        (WHOLE.replace("0.1,nan", '"0,1",nan'), 2, [3]),
        ("hello\n" + WHOLE.partition("\n")[2], 0, [1, 2, 3, 4]),
    ],
)
def test_lines_of_a_log_that_are_damaged_are_left_out(tmp_path, text, steps, damaged):
    (tmp_path / "metrics.csv").write_bytes(text.encode())
    rows, lost = logs.read(tmp_path / "metrics.csv")
    assert (len(rows), lost) == (steps, damaged)
    assert all(set(row) == set(logs.FIELDS) for row in rows)


def test_a_log_that_failed_once_is_whole_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    log = logs.Log(folder / "metrics.csv", Accelerator(cpu=True), 1)
    log.open_stage("distil", 0, 0.0)
    for step in (1, 2, 3):
        if step == 2:
            folder.rename(tmp_path / "away")
        if step == 3:
            (tmp_path / "away").rename(folder)
        log.step(step, 0.0, 1e-4, {"loss": 1.0})
    rows, damaged = logs.read(folder / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3"] and not damaged


def test_what_cannot_be_appended_whole_is_not(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError):
            append("a line that is longer\n", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_text() == "one\n"
    append("two\n", path)
    assert path.read_text() == "one\ntwo\n"


def test_leftovers_go_and_what_is_written_stays(tmp_path):
    for name in (".a.tmp", "b.tmp", ".c", "sub/.d.x.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".link.tmp").symlink_to(tmp_path / "b.tmp")
    counts = []

    def write(temporary):
        counts.append(remove_leftovers(tmp_path, "**/*"))
        Path(temporary).write_text("new")

    write_atomically(tmp_path / "e", write)
    assert counts == [2] and (tmp_path / "e").read_text() == "new"
    assert {path.name for path in tmp_path.rglob("*")} == {"b.tmp", ".c", "sub", ".link.tmp", "e"}


@pytest.mark.parametrize("name", ["x.safetensors", "a [1]*.safetensors", "x" * 240 + ".safetensors"])
def test_a_command_that_was_killed_leaves_nothing_for_ever(tmp_path, name):
    """The next one with the same output removes it, file or folder, and nothing of others; a living one keeps its own."""
    from trainer.tools.command import check_output

    def killed(temporary):
        (Path(temporary).parent / f"{Path(temporary).name[:-12]}abcdefgh.tmp").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / name, killed)
    (tmp_path / f".{name[:50]}.ijklmnop.tmp").mkdir()
    (tmp_path / ".other.abcdefgh.tmp").write_text("of another")
    with new_folder(tmp_path / name) as living:
        check_output(tmp_path / name, [], True)
        assert {path.name for path in tmp_path.iterdir()} == {living.name, ".other.abcdefgh.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == {name, ".other.abcdefgh.tmp"}


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "猫" * 85, "a\nb", "-x", " ", "a b"])
def test_any_name_that_a_disk_takes(tmp_path, name):
    write_text("x", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_errors_name_what_was_to_be_written(tmp_path):
    for path in (tmp_path / "none" / "x", tmp_path / ("x" * 256)):
        with pytest.raises(OSError) as caught:
            write_text("x", path)
        assert caught.value.filename == str(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_text("x", tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder") and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("file", ".lock"):
        (tmp_path / name).symlink_to(precious)
    with pytest.raises(OSError):
        append("x", tmp_path / "file")
    write_text("x", tmp_path / "file")
    with pytest.raises(TrainerError, match="is a link"), lock.held(tmp_path):
        pass
    assert precious.read_text() == "precious" and not (tmp_path / "file").is_symlink()
