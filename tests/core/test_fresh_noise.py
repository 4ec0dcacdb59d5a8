"""Fresh noise of a row is decided by the seed, the row's first noise and the draw: not by what else is in the batch."""

import torch

from twinflow.fresh_noise import FreshNoise, row_seeds


def first_noise(rows=3):
    return torch.randn(rows, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def drawn(noise, seed=7, draws=3):
    fresh = FreshNoise(row_seeds(seed, noise))
    return torch.stack([fresh(noise) for _ in range(draws)], 1)  # (B, draws, ...)


def test_any_rows_in_any_order():
    noise = first_noise()
    whole = drawn(noise)
    for rows in ([0], [1], [2], [2, 0], [1, 2, 0], [1, 1, 0, 1]):
        assert torch.equal(drawn(noise[rows]), whole[rows]), rows


def test_every_row_draw_and_seed_has_its_own():
    found = torch.cat([drawn(first_noise(), seed) for seed in (7, 8, 2**64 - 1)]).flatten(0, 1)
    assert len(found.unique(dim=0)) == 3 * 3 * 3
    assert abs(float(found.mean())) < 0.1 and abs(float(found.std()) - 1) < 0.1


def test_rows_without_first_noise_have_the_seed_alone():
    """Also beside rows that have some, and whatever their latents are."""
    noise = first_noise()
    noise[1] = 0
    mixed, none = drawn(noise), drawn(torch.zeros(2, 2, 4, 4))
    assert torch.equal(mixed[1], none[0]) and torch.equal(none[0], none[1])
    assert torch.equal(mixed[[0, 2]], drawn(first_noise())[[0, 2]])
    assert not torch.equal(none, drawn(torch.zeros(2, 2, 4, 4), seed=8))


def test_a_seed_draws_what_it_always_drew():
    """Recorded: pictures that people keep seeds of."""
    fresh = FreshNoise(row_seeds(7, first_noise()))
    first, second = fresh(first_noise()), fresh(first_noise())
    torch.testing.assert_close(first[1, 0, 0], torch.tensor([1.1813869, 0.9352439, -0.3472879, -0.5947182]), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        second[2, 1, 3], torch.tensor([-1.8067611, -0.0198588, -1.8852024, 0.5587996]), rtol=0, atol=1e-5
    )
