"""The loop by itself, on a network of one matrix."""

import csv
import math
import threading
import time

import pytest
import torch
from accelerate import Accelerator

from trainer import Diverged, TrainerError
from trainer.config.sections import Training
from trainer.data.order import rows_at
from trainer.training import checkpoint, loop
from trainer.training.ahead import Ahead
from trainer.training.log import Log
from trainer.training.loop import Job, learning_rate, train
from twinflow.objective import Objective


class Points:
    """Rows whose data are their own number."""

    def __init__(self, total=7):
        self.x = torch.arange(total).float()[:, None].expand(-1, 3).contiguous()

    def __len__(self):
        return len(self.x)

    def batch_at(self, index, batch, seed):
        rows = torch.tensor([row for _, row in rows_at(index * batch, batch, len(self), seed)])
        return self.x[rows], (self.x[rows],), (torch.zeros_like(self.x[rows]),)


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3))
        self.calls = 0
        self.poison = ()

    def forward(self, x, t, r, cond):
        if torch.is_grad_enabled():
            self.calls += 1
        out = (x + cond[0]) @ self.weight + t[:, None] - r[:, None] ** 2
        return out * math.nan if self.calls in self.poison and torch.is_grad_enabled() else out


def run(folder, network, steps=12, log_every=1, **changes):
    accelerator = Accelerator(cpu=True)
    tensors = dict(network.named_parameters())
    training = {name: changes.pop(name) for name in list(changes) if name in Training.model_fields}
    job = Job(
        name="test",
        network=network,
        tensors=tensors,
        groups=[dict(kind="adamw", params=list(tensors.values()), lr=1e-2, peak=1e-2)],
        data=changes.pop("data", None) or Points(),
        objective=Objective(loss="l2"),
        training=Training(**dict(steps=steps, batch=4, accumulation=1, warmup=0) | training),
        **changes,
    )
    folder.mkdir(exist_ok=True)
    log = Log(folder / "metrics.csv", accelerator, log_every)
    return train(job, accelerator, log, folder / "checkpoints", seed=0, model="x", save_every=5, keep=2)


def test_validation_is_over_all_rows_and_changes_nothing_of_the_training(tmp_path):
    """Its terms stand in the log at its steps, also where it is not the log's turn."""
    seen, data = [], Points(9)
    plain = data.batch_at
    data.batch_at = lambda index, *rest: seen.append(index) or plain(index, *rest)
    options = dict(steps=6, log_every=5, validate_every=4)
    validated = run(tmp_path / "with", Linear(), validation=data, **options)
    assert seen == [0, 1, 2] * 2  # nine rows in batches of four, after steps 4 and 6
    rows = [row for row in logged(tmp_path / "with") if row["validation_loss"]]
    assert [row["step"] for row in rows] == ["4", "6"] and all(float(row["validation_fake"]) > 0 for row in rows)
    assert torch.equal(validated["last"]["weight"], run(tmp_path / "without", Linear(), **options)["last"]["weight"])


def logged(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_rises_then_falls(schedule):
    rates = [learning_rate(i, Training(steps=100, warmup=10, schedule=schedule)) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] == (1 if schedule == "constant" else pytest.approx(0, abs=0.02))


def test_a_step_without_finite_gradient_is_skipped_and_counted(tmp_path):
    network = Linear()
    network.poison = (3, 4)
    values = run(tmp_path, network, averages={"weights": 0.5})
    assert values["last"]["weight"].isfinite().all() and values["weights"]["weight"].isfinite().all()
    assert logged(tmp_path)[-1]["skipped"] == "2"


def test_ten_in_a_row_stop_training_and_keep_the_last_good_checkpoint(tmp_path):
    network = Linear()
    network.poison = range(7, 100)
    with pytest.raises(Diverged, match="not finite for 10 steps"):
        run(tmp_path, network, steps=30)
    for path in checkpoint.list_all(tmp_path / "checkpoints"):
        from twinflow.weights import load

        assert all(t.isfinite().all() for t in load(path).values())
    assert checkpoint.newest(tmp_path / "checkpoints")


def test_going_on_is_the_same_as_never_stopping(tmp_path):
    whole = run(tmp_path / "a", Linear(), averages={"teacher": 0.9, "weights": 0.8})
    run(tmp_path / "b", Linear(), averages={"teacher": 0.9, "weights": 0.8})
    for path in checkpoint.list_all(tmp_path / "b" / "checkpoints")[:1]:  # as if killed before the last was written
        path.unlink()
    again = run(tmp_path / "b", Linear(), averages={"teacher": 0.9, "weights": 0.8})
    for key in whole:
        assert torch.equal(whole[key]["weight"], again[key]["weight"]), key
    assert len((tmp_path / "b" / "metrics.csv").read_text().splitlines()) == 13


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, Linear())
    assert [p.name[5:13] for p in checkpoint.list_all(tmp_path / "checkpoints")] == ["00000012", "00000010"]


def test_a_batch_of_one_trains_all_roles_by_accumulation(tmp_path):
    network = Linear()
    run(tmp_path, network, steps=2, batch=1, accumulation=4)
    terms = logged(tmp_path)[-1]
    assert all(float(terms[role]) > 0 for role in ("one_step", "multi_step", "any_step", "fake", "rectify"))
    assert network.calls == 8


def test_a_network_that_is_its_own_teacher_equals_no_average(tmp_path):
    a = run(tmp_path / "a", Linear())
    b = run(tmp_path / "b", Linear(), averages={"weights": 0.5})
    assert torch.equal(a["last"]["weight"], b["last"]["weight"])
    assert not torch.equal(b["weights"]["weight"], b["last"]["weight"])


def test_batches_are_read_one_ahead_and_are_those_that_are_asked_for(tmp_path):
    """In another thread, each once, in order, none beyond the last step; a resume begins where it is."""
    seen, threads, data = [], set(), Points()
    plain = data.batch_at

    def noted(index, *rest):
        seen.append(index)
        threads.add(threading.current_thread() is threading.main_thread())
        return plain(index, *rest)

    data.batch_at = noted
    run(tmp_path, Linear(), steps=5, batch=2, accumulation=2, data=data)
    assert seen == list(range(10)) and threads == {True, False}
    run(tmp_path, Linear(), steps=7, batch=2, accumulation=2, data=data)
    assert seen == list(range(14))


def test_a_slow_disk_does_not_hold_up_the_step():
    data = Points()
    plain = data.batch_at
    data.batch_at = lambda *address: time.sleep(0.05) or plain(*address)
    ahead = Ahead(data, 4, 0)
    for index in range(4):
        x, _, _ = ahead.take(index, index + 1)
        assert torch.equal(x, plain(index, 4, 0)[0])
        time.sleep(0.1)
    assert ahead.waited < 0.1, "the first only"
    assert torch.equal(ahead.take(9)[0], plain(9, 4, 0)[0]), "after a jump"
    ahead.close()


@pytest.mark.parametrize("fault", [TrainerError("a file is broken"), OSError("gone"), KeyboardInterrupt()], ids=repr)
def test_what_fails_ahead_is_raised_at_its_step(tmp_path, fault):
    data = Points()
    plain = data.batch_at

    def fails(index, *rest):
        if index == 3:
            raise fault
        return plain(index, *rest)

    data.batch_at = fails
    with pytest.raises(type(fault)) as raised:
        run(tmp_path, Linear(), data=data)
    assert raised.value is fault and [row["step"] for row in logged(tmp_path)] == ["1", "2", "3"]


def test_times_are_shifted_by_each_batch(tmp_path, monkeypatch):
    seen, plain = [], loop.loss
    monkeypatch.setattr(loop, "loss", lambda *given: seen.append(given[4].t) or plain(*given))
    run(tmp_path / "a", Linear(), steps=3)
    run(tmp_path / "b", Linear(), steps=3, shift=lambda x: 1 + float(x.sum()))
    shifts = [1 + float(Points().batch_at(index, 4, 0)[0].sum()) for index in range(3)]
    for before, after, s in zip(seen[:3], seen[3:], shifts, strict=True):
        torch.testing.assert_close(after, s * before / (1 + (s - 1) * before))
    assert len(set(shifts)) == 3
