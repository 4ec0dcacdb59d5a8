"""Two processes and one folder: the second says who holds it, and a killed one holds nothing."""

import os
import re
import signal

import pytest

from trainer import TrainerError
from trainer.cli import main
from trainer.runs import lock

from .test_resume import wait_for


def test_the_second_says_who_holds_the_run(tmp_path, start, tiny, capsys):
    process = start("lora", "--out", tmp_path)
    try:
        wait_for("digits-lora/.lock", tmp_path, process)
        wait_for("cache/*/.lock", tmp_path, process)
        assert main("lora", [*tiny, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert re.search(rf"digits-lora is in use by process {process.pid} on \S+ \(since \d{{4}}-.*--name", error), error
        assert error.count("\n") == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with lock.held(tmp_path / "digits-lora"):
        pass


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00"])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, content):
    with lock.held(tmp_path):
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(TrainerError, match="is in use by another process; wait"), lock.held(tmp_path):
            pass


def test_a_base_that_another_run_trains_is_waited_for(tmp_path, monkeypatch, capsys):
    """Until the other gives it back."""
    other = lock.held(tmp_path)
    other.__enter__()
    slept = []
    monkeypatch.setattr(lock.time, "sleep", lambda s: slept.append(s) or other.__exit__(None, None, None))
    with lock.held(tmp_path, wait=True):
        assert len(slept) == 1 and f"waiting for process {os.getpid()}" in capsys.readouterr().out


def test_processes_that_train_together_hold_it_once(tmp_path, monkeypatch):
    with lock.held(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with lock.held(tmp_path):
            pass
