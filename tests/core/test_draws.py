from dataclasses import replace

import pytest
import torch

from twinflow.constants import Objective
from twinflow.draws import Draws, draw, role_times
from twinflow.roles import ROLES, share_out

GUIDED = Objective(guidance_ratio=0.8)


@pytest.mark.parametrize(
    "settings",
    [GUIDED, replace(GUIDED, time_beta=(2.0, 1.5)), replace(GUIDED, times="logit-normal"), Objective(stratified=True)],
)
def test_draws_come_from_the_given_generator_alone(settings):
    x = torch.zeros(6, 2, 2, 2, dtype=torch.float64)
    before = torch.get_rng_state()
    a, b = (draw(x, settings, torch.Generator().manual_seed(5)) for _ in range(2))
    other = draw(x, settings, torch.Generator().manual_seed(6))
    assert torch.equal(torch.get_rng_state(), before)
    for name, p, q, r in zip(Draws._fields, a, b, other, strict=True):
        assert torch.equal(p, q) and not torch.equal(p, r), name
        assert p.shape == (x.shape if p.ndim > 1 else (6,)) and p.dtype == torch.float64
        assert p.ndim > 1 or ((p >= 0) & (p <= 1)).all(), name


def test_draws_for_low_precision_data_are_float32():
    assert {d.dtype for d in draw(torch.zeros(4, 2, dtype=torch.bfloat16), GUIDED, torch.Generator())} == {torch.float32}


def test_times_follow_their_distribution():
    x = torch.zeros(20000, 1)
    drawn = lambda **settings: draw(x, Objective(**settings), torch.Generator().manual_seed(0)).t
    assert drawn().mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert drawn(time_beta=(2.0, 1.0)).mean().item() == pytest.approx(2 / 3, abs=0.01)
    assert drawn(times="logit-normal", time_normal=(1.0, 1.0)).median().item() == pytest.approx(0.731, abs=0.01)
    even = draw(torch.zeros(16, 1), Objective(stratified=True), torch.Generator().manual_seed(0)).t
    assert (even * 16).long().sort().values.tolist() == list(range(16))


@pytest.mark.parametrize("scale, reach", [(1.0, 1.0), (0.9, 1.0), (1.0, 0.5), (1.0, 0.01)])
def test_roles_set_the_times(scale, reach):
    weights = {role: 1 for role in ROLES}
    roles = share_out(20, weights)
    settings = Objective(roles=weights, time_scale=scale, reach=reach, rectify=0.0)
    draws = draw(torch.zeros(20, 1, dtype=torch.float64), settings, torch.Generator().manual_seed(0))
    t, r = role_times(draws, roles, settings)
    drawn, rows = scale * draws.t, roles.rows
    assert (t[rows["one_step"]] == 1).all() and (r[rows["one_step"]] == 0).all()
    assert torch.equal(t[rows["fake"]], -drawn[rows["fake"]]) and torch.equal(r[rows["fake"]], t[rows["fake"]])
    near, far, few = rows["multi_step"], rows["any_step"], rows["few_step"]
    assert torch.equal(t[near], drawn[near]) and torch.equal(t[far], drawn[far]) and torch.equal(t[few], drawn[few])
    torch.testing.assert_close(r[near], drawn[near] * (1 - draws.r_near[near] * min(0.05, reach)))
    torch.testing.assert_close(r[far], drawn[far] * (1 - draws.r[far] * reach))
    assert (r[few] == 0).all()
