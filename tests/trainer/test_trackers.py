"""What TensorBoard and W&B are shown, and that neither ever stops a run.

TensorBoard's files are read back.  W&B is a stand-in with the functions that accelerate's own tracker calls.
"""

import csv
import sys
from types import ModuleType, SimpleNamespace

import pytest
from accelerate import tracking

from trainer.cli import main
from trainer.training.meters import Meters

SHORT = ["--steps", "4", "--base-steps", "3"]
SEEN = ["--sample-every", "2", "--sample-base", "2"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The folder of a run of all weights, with its events by tag, and the settings that TensorBoard has."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from .conftest import TINY

    out = tmp_path_factory.mktemp("runs")
    assert main("full", [*TINY, *SHORT, *SEEN, "--out", str(out), "--tracker", "tensorboard"]) == 0
    logs = out / "digits-full" / "logs" / "digits-full"
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    (about,) = [folder for folder in logs.iterdir() if folder.is_dir() and list(folder.glob("events*"))]
    settings = EventAccumulator(str(about))
    settings.Reload()
    return out / "digits-full", events, settings


def test_losses_rates_speed_and_memory(shown):
    folder, events, _ = shown
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "distil"]
    for term in ("loss", "one_step", "multi_step", "any_step", "few_step", "fake", "grad_norm"):
        if rows[0].get(term):
            found = {event.step: event.value for event in events.Scalars(f"distil/{term}")}
            assert found == pytest.approx({int(row["step"]): float(row[term]) for row in rows}, rel=1e-4), term
    rates = [event.value for event in events.Scalars("distil/lr")]
    assert rates == pytest.approx([float(row["rate"]) * rates[0] / float(rows[0]["rate"]) for row in rows], rel=1e-4)
    assert all(event.value > 0 for event in events.Scalars("distil/images_per_second"))
    assert all(0.05 < event.value < 100 for event in events.Scalars("distil/memory_host_gib"))
    assert [event.step for event in events.Scalars("base/loss")] == [1, 2, 3]


def test_pictures_and_settings(shown):
    _, events, settings = shown
    assert {event.step for event in events.Images("samples")} == {0, 2, 4}
    assert all(event.width > 200 and event.height > 200 for event in events.Images("samples"))
    from tensorboard.plugins.hparams import plugin_data_pb2

    (summary,) = [m for t, m in settings.summary_metadata.items() if t.endswith("session_start_info")]  # where hparams has them
    data = plugin_data_pb2.HParamsPluginData.FromString(summary.plugin_data.content)
    found = data.session_start_info.hparams
    assert found["steps"].number_value == 4 and found["model"].string_value == "digits" and "roles" in found


class Wandb(ModuleType):
    """Notes what it is told; fails from its `broken`th log on."""

    def __init__(self, broken=10**9):
        super().__init__("wandb")
        self.logged, self.broken, self.started, self.finished = [], broken, [], 0
        self.config, self.Image = SimpleNamespace(update=lambda values, **_: self.started.append(values)), lambda image: image

    def init(self, **options):
        self.started.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))
        if len(self.logged) >= self.broken:
            raise ConnectionError("the service is down\nmore")

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch, tiny, tmp_path):
    """wandb(stand-in): a run's exit code with it."""

    def run(module, *options):
        monkeypatch.setitem(sys.modules, "wandb", module)
        for module in ("training.trackers", "runs.checks.environment"):
            monkeypatch.setattr(f"trainer.{module}.find_spec", lambda name: True)
        monkeypatch.setattr("accelerate.tracking._available_trackers", [tracking.LoggerType.WANDB])
        return main("lora", [*tiny, *SHORT, "--out", str(tmp_path), "--tracker", "wandb", *options])

    return run


def test_weights_and_biases(wandb, tmp_path):
    module = Wandb()
    assert wandb(module, "--sample-every", "4", "--sample-base", "0") == 0
    options, settings = module.started
    assert (options["project"], options["name"], options["resume"]) == ("twinflow", "digits-lora", "allow")
    assert settings["steps"] == 4 and settings["lr"] > 0
    steps = [step for step, _ in module.logged]
    assert steps == sorted(steps) and steps[-1] == 7  # it drops what goes back: the distillation counts on from the base
    assert {"distil/loss", "distil/lr", "distil/images_per_second", "samples"} <= {n for _, v in module.logged for n in v}
    assert module.finished == 1
    again = Wandb()
    assert wandb(again, "--steps", "6") == 0
    assert again.started[0]["id"] == options["id"]  # a run that goes on goes on there, too


def test_a_tracker_that_fails_in_the_middle(wandb, tmp_path, capsys):
    assert wandb(Wandb(broken=4)) == 0
    said = capsys.readouterr().out
    assert said.count("wandb: step") == 1 and "the service is down" in said and "more" not in said.split("wandb: step")[1][:60]
    with open(tmp_path / "digits-lora" / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["stage"] == "distil"] == ["1", "2", "3", "4"]


def test_a_tracker_that_cannot_start(wandb, capsys, monkeypatch, tmp_path):
    module = Wandb()
    monkeypatch.setattr(module, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no account\nlog in first")))
    assert wandb(module) == 2
    error = capsys.readouterr().err
    assert "--tracker wandb" in error and "no account" in error and "WANDB_MODE=offline" in error and error.count("\n") == 1


def test_a_broken_tensorboard_that_nobody_asked_for(tiny, tmp_path, capsys, monkeypatch):
    def broken(self):
        raise ImportError("numpy is too new")

    monkeypatch.setattr(tracking.TensorBoardTracker, "start", broken)
    assert main("lora", [*tiny, *SHORT, "--out", str(tmp_path)]) == 0
    assert "tensorboard cannot start (ImportError: numpy is too new)" in capsys.readouterr().out


def test_learning_rates_by_group():
    import torch

    groups = [dict(kind=k, params=[torch.zeros(1)], lr=lr) for k, lr in (("muon", 1e-2), ("adamw", 1e-3), ("adamw", 1e-4))]
    meters = Meters(4, torch.device("cpu"), [torch.optim.SGD(groups[:1]), torch.optim.SGD(groups[1:])])
    assert meters.rates() == {"lr": 1e-2, "lr_adamw": 1e-3, "lr_embedder": 1e-4}
    for _ in range(3):
        meters.begin()
        meters.end()
    assert meters.read()["images_per_second"] > 0 and meters.steps == 0
