"""The judge sees what a person would: real digits pass; noise, blur, copies and one picture again and again do not."""

import pytest
import torch

from trainer.runs.judge import Judge, frechet_distance, neighbour_metrics, split


@pytest.fixture(scope="module")
def judge():
    return Judge()


def test_real_digits_are_the_measure(judge):
    real = judge.real_test()
    assert real["frechet"] == pytest.approx(1) and real["nearest"] == pytest.approx(1)
    assert real["accuracy"] > 0.97 and real["precision"] > 0.9 and real["recall"] > 0.9


def test_a_blurred_class_mean_is_labelled_right_and_still_caught(judge):
    d = judge.digits
    means = torch.stack([d.train[d.train_labels == c].mean(0) for c in range(10)])
    labels = torch.arange(500) % 10
    seen = judge.metrics(means[labels] + 0.01 * torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels)
    assert seen["accuracy"] > 0.95
    assert seen["frechet"] > 10 and seen["recall"] < 0.1 and seen["diversity"] < 0.3


def test_noise_is_caught(judge):
    labels = torch.arange(500) % 10
    seen = judge.metrics(torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels)
    assert seen["frechet"] > 20 and seen["accuracy"] < 0.3 and seen["coverage"] < 0.3


def test_copies_are_caught(judge):
    d = judge.digits
    assert judge.metrics(d.train[:900], d.train_labels[:900])["nearest"] < 1e-3


def test_coverage_is_of_the_real_digits_that_no_generator_has_seen(judge):
    d = judge.digits
    assert judge.real_test()["coverage"] == 1
    whole, few = (judge.metrics(d.train[:n], d.train_labels[:n])["coverage"] for n in (len(d.train), 60))
    assert whole > 0.98 and few < 0.8


def test_the_judge_is_the_same_every_time(judge):
    state = torch.random.get_rng_state()
    again = Judge(digits=split())
    assert torch.equal(state, torch.random.get_rng_state())
    assert again.real_test() == judge.real_test()


def test_frechet_distance_of_gaussians_is_the_formula():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 2, generator=g, dtype=torch.float64)
    b = 2 * torch.randn(200_000, 2, generator=g, dtype=torch.float64) + 3
    assert frechet_distance(a, b) == pytest.approx(2 * 9 + 2 * (2 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_neighbours_of_the_same_and_of_another_place():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    same, far = neighbour_metrics(x, x), neighbour_metrics(x, x + 100)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert far["precision"] == far["recall"] == far["coverage"] == far["density"] == 0
