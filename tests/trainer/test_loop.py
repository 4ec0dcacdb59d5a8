"""The loop by itself, on a network of one matrix."""

import math

import pytest
import torch
from accelerate import Accelerator

from trainer import Diverged, checkpoint
from trainer.log import Log
from trainer.loop import Job, learning_rate, rows_at, train
from twinflow.objective import Objective


class Points:
    """Rows whose data are their own number."""

    def __init__(self, total=7):
        self.x = torch.arange(total).float()[:, None].expand(-1, 3).contiguous()

    def __len__(self):
        return len(self.x)

    def batch(self, rows):
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


def run(folder, network, steps=12, **changes):
    accelerator = Accelerator(cpu=True)
    tensors = dict(network.named_parameters())
    job = Job(
        name="test",
        network=network,
        tensors=tensors,
        groups=[dict(kind="adamw", params=list(tensors.values()), lr=1e-2, peak=1e-2)],
        data=Points(),
        objective=Objective(loss="l2"),
        steps=steps,
        **{"batch": 4, **changes},
    )
    folder.mkdir(exist_ok=True)
    log = Log(folder / "metrics.csv", accelerator, 1)
    return train(job, accelerator, log, folder / "checkpoints", seed=0, config_hash="x", save_every=5, keep=2)


def test_every_epoch_sees_every_row_once_in_another_order():
    rows = torch.cat([rows_at(i * 4, 4, 7, seed=3) for i in range(7)]).view(4, 7)
    assert all(epoch.sort().values.tolist() == list(range(7)) for epoch in rows)
    assert len({tuple(epoch.tolist()) for epoch in rows}) == 4
    assert not torch.equal(rows[0], rows_at(0, 7, 7, seed=4))


def test_rows_larger_than_the_data():
    assert rows_at(5, 20, 7, seed=0).shape == (20,)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_rises_then_falls(schedule):
    rates = [learning_rate(i, 100, 10, schedule) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] == (1 if schedule == "constant" else pytest.approx(0, abs=0.02))


def test_a_step_without_finite_gradient_is_skipped_and_counted(tmp_path):
    network = Linear()
    network.poison = (3, 4)
    values = run(tmp_path, network, averages={"weights": 0.5})
    assert values["last"]["weight"].isfinite().all() and values["weights"]["weight"].isfinite().all()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1].endswith(",2")


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
    head, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    terms = dict(zip(head.split(","), rows[-1].split(","), strict=True))
    assert all(float(terms[role]) > 0 for role in ("one_step", "multi_step", "any_step", "fake", "rectify"))
    assert network.calls == 8


def test_a_network_that_is_its_own_teacher_equals_no_average(tmp_path):
    a = run(tmp_path / "a", Linear())
    b = run(tmp_path / "b", Linear(), averages={"weights": 0.5})
    assert torch.equal(a["last"]["weight"], b["last"]["weight"])
    assert not torch.equal(b["weights"]["weight"], b["last"]["weight"])
