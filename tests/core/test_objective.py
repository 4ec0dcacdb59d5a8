from dataclasses import fields, replace

import pytest
import torch

from twinflow import objective
from twinflow.objective import Draws, Objective, draw, role_times
from twinflow.roles import share_out

ROLES = dict(one_step=1, multi_step=1, any_step=1, fake=1)
GUIDED = Objective(guidance=0.8)


class Net(torch.nn.Module):
    """Double precision, so that the size of a batch shows in no digit; counts the rows it sees."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8 + 2 + 3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).double()
        self.calls = []

    def forward(self, x, t, r, cond):
        (c,) = cond
        self.calls.append((t, r, c, torch.is_grad_enabled()))
        h = torch.cat([x.flatten(1).double(), t[:, None].double(), r[:, None].double(), c.double()], 1)
        return self.layers(h).view(x.shape)


def batch(rows, dtype=torch.float64):
    g = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 2, 2, 2, generator=g, dtype=dtype)
    c, u = torch.randn(2, rows, 3, generator=g, dtype=dtype)
    return x, (c,), (u,)


def step(rows=8, settings=GUIDED, *, student=None, teacher=None, guide=None, seed=0):
    student = student or Net()
    x, cond, uncond = batch(rows)
    draws = draw(x, settings, torch.Generator().manual_seed(seed))
    roles = share_out(rows, settings.roles)
    return objective.loss(student, x, cond, uncond, settings, roles, draws, teacher=teacher, guide=guide)


def total(**options):
    return step(**options).total.item()


def gradients(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("rows, parts", [(b, p) for b in range(1, 10) for p in (1, 2, 4, 5) if b * p >= len(ROLES)])
@pytest.mark.parametrize("settings", [GUIDED, replace(GUIDED, order=0), replace(GUIDED, loss="l2", image_free=True)])
def test_micro_batches_add_up_to_the_whole_batch(rows, parts, settings):
    student, teacher = Net(), Net(1)
    x, cond, uncond = batch(rows * parts)
    draws = draw(x, settings, torch.Generator().manual_seed(1))
    whole = objective.loss(student, x, cond, uncond, settings, share_out(rows * parts, ROLES), draws, teacher=teacher)
    losses = []
    for k in range(parts):
        here = slice(k * rows, (k + 1) * rows)
        roles = share_out(rows, ROLES, part=k, parts=parts)
        part = (x[here], (cond[0][here],), (uncond[0][here],))
        losses.append(objective.loss(student, *part, settings, roles, Draws(*(d[here] for d in draws)), teacher=teacher))
    mean = sum(loss.total for loss in losses) / parts
    torch.testing.assert_close(mean, whole.total, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(mean, student), gradients(whole.total, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rows", range(4, 30))
@pytest.mark.parametrize("weights", [ROLES, dict(one_step=1, any_step=6, fake=2), dict(one_step=0, multi_step=3, fake=1)])
def test_every_role_gets_its_share_of_the_rows(rows, weights):
    roles = share_out(rows, weights)
    sizes = {role: r.stop - r.start for role, r in roles.rows.items()}
    assert list(sizes) == [role for role, w in weights.items() if w] and sum(sizes.values()) == rows
    assert sum(roles.share.values()) == pytest.approx(1) and roles.share == {k: n / rows for k, n in sizes.items()}
    assert min(sizes.values()) >= 1
    for role, size in sizes.items():  # one row is each role's own; the others are within one of their proportion
        assert abs(size - rows * weights[role] / sum(weights.values())) < 2, (role, size)


def test_the_released_rounding_loses_a_role_and_the_fair_one_does_not():
    assert "fake" not in share_out(6, ROLES, rounding="released").rows
    assert "fake" in share_out(6, ROLES).rows


def test_a_batch_with_fewer_rows_than_roles_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="batch 1 x accumulation 3 is 3 rows; .* raise the accumulation to 4 or drop roles"):
        share_out(1, ROLES, parts=3)


@pytest.mark.parametrize(
    "settings",
    [GUIDED, replace(GUIDED, time_beta=(2.0, 1.5)), replace(GUIDED, times="logit-normal"), Objective(stratified=True)],
)
def test_draws_come_from_the_given_generator_alone(settings):
    x, _, _ = batch(6)
    before = torch.get_rng_state()
    a, b = (draw(x, settings, torch.Generator().manual_seed(5)) for _ in range(2))
    other = draw(x, settings, torch.Generator().manual_seed(6))
    assert torch.equal(torch.get_rng_state(), before)
    for name, p, q, r in zip(Draws._fields, a, b, other, strict=True):
        assert torch.equal(p, q) and not torch.equal(p, r), name
        assert p.shape == (x.shape if p.ndim > 1 else (6,))
        assert p.ndim > 1 or ((p >= 0) & (p <= 1)).all(), name


def test_the_loss_is_a_function_of_its_arguments():
    student = Net()
    before = torch.get_rng_state()
    assert total(student=student) == total(student=student)
    assert torch.equal(torch.get_rng_state(), before)


def test_times_follow_their_distribution():
    x = torch.zeros(20000, 1)
    drawn = lambda **settings: draw(x, Objective(**settings), torch.Generator().manual_seed(0)).t
    assert drawn().mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert drawn(time_beta=(2.0, 1.0)).mean().item() == pytest.approx(2 / 3, abs=0.01)
    assert drawn(times="logit-normal", time_normal=(1.0, 1.0)).median().item() == pytest.approx(0.731, abs=0.01)
    even = draw(torch.zeros(16, 1), Objective(stratified=True), torch.Generator().manual_seed(0)).t
    assert (even * 16).long().sort().values.tolist() == list(range(16))


def test_the_callers_tensors_are_left_alone():
    x, cond, uncond = batch(8)
    settings = replace(GUIDED, image_free=True)
    draws = draw(x, settings, torch.Generator().manual_seed(0))
    given = [x, *cond, *uncond, *draws]
    kept = [g.clone() for g in given]
    objective.loss(Net(), x, cond, uncond, settings, share_out(8, ROLES), draws).total.backward()
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_terms_are_detached_and_named_by_role():
    loss = step()
    assert set(loss.terms) == {*ROLES, "rectify"}
    assert all(term.ndim == 0 and term.isfinite() and not term.requires_grad for term in loss.terms.values())
    by_role = sum(loss.terms[role] for role in ROLES) / len(ROLES)  # as many rows each
    assert loss.total.item() == pytest.approx((by_role + GUIDED.rectify * loss.terms["rectify"]).item())


@pytest.mark.parametrize(
    "changed", [dict(rectify=0.0), dict(reach=0.5), dict(roles=dict(multi_step=1, any_step=1, fake=1))], ids=str
)
def test_rectification_needs_its_weight_the_full_reach_and_one_step_rows(changed):
    assert "rectify" not in step(settings=replace(GUIDED, **changed)).terms


def test_guidance_leaves_the_target_it_is_given_alone():
    x, cond, uncond = batch(4)
    target, t = x.clone(), torch.full((4,), 0.5, dtype=x.dtype)
    pushed = objective.guided(target, Net(), x, t, t > 0, cond, uncond, GUIDED)
    assert torch.equal(target, x) and not torch.equal(pushed, x)


OTHER = dict(
    roles=dict(one_step=1, multi_step=1, few_step=1, fake=1),
    order=3,
    difference=0.05,
    reach=0.5,
    guidance=0.3,
    guidance_range=(0.3, 0.7),
    target="guide",
    times="logit-normal",
    time_beta=(2.0, 1.0),
    time_normal=(1.0, 0.5),
    time_scale=0.9,
    stratified=True,
    rectify=0.9,
    loss="l2",
    barron_alpha=0.5,
    barron_scale=1e-2,
    image_free=True,
)


@pytest.mark.parametrize("name", [field.name for field in fields(Objective)])
def test_every_setting_is_read(name):
    base = replace(GUIDED, times="logit-normal") if name == "time_normal" else GUIDED
    changed = replace(base, **{name: OTHER[name]})
    assert getattr(changed, name) != getattr(base, name)
    assert total(rows=16, settings=changed) != total(rows=16, settings=base)


@pytest.mark.parametrize(
    "name, value",
    [
        ("roles", dict(one_step=0)),
        ("roles", dict(two_step=1)),
        ("roles", dict(one_step=-1, fake=2)),
        ("order", -1),
        ("difference", 0),
        ("reach", 2),
        ("target", "noise"),
        ("guidance", -1),
        ("times", "cosine"),
        ("time_beta", (0, 1)),
        ("time_normal", (0, 0)),
        ("time_scale", 0),
        ("rectify", -1),
        ("loss", "l1"),
        ("barron_alpha", 3),
        ("barron_scale", 0),
    ],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"objective: {name} is .*; expected "):
        Objective(**{name: value})


def test_roles_set_the_times():
    weights = {role: 1 for role in objective.ROLES}
    x, _, _ = batch(20)
    roles, settings = share_out(20, weights), Objective(roles=weights)
    draws = draw(x, settings, torch.Generator().manual_seed(0))
    t, r = role_times(draws, roles, settings)
    rows = roles.rows
    assert (t[rows["one_step"]] == 1).all() and (r[rows["one_step"]] == 0).all()
    assert torch.equal(t[rows["fake"]], -draws.t[rows["fake"]]) and torch.equal(r[rows["fake"]], t[rows["fake"]])
    near, far, few = rows["multi_step"], rows["any_step"], rows["few_step"]
    assert (t[near] - r[near] <= 0.05 * t[near]).all() and (t[near] > r[near]).all()
    torch.testing.assert_close(r[far], draws.t[far] * (1 - draws.r[far]))
    assert (r[few] == 0).all() and torch.equal(t[few], draws.t[few])


def test_only_the_students_own_forward_has_a_gradient():
    student, teacher, guide = Net(), Net(1), Net(2)
    step(student=student, teacher=teacher, guide=guide).total.backward()
    assert [len(t) for t, _, _, grad in student.calls if grad] == [8]
    assert not any(grad for net in (teacher, guide) for *_, grad in net.calls)
    assert all(p.grad is None for net in (teacher, guide) for p in net.parameters())
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() for p in student.parameters())


def test_no_row_is_forwarded_that_its_target_does_not_need():
    student, teacher, guide = Net(), Net(1), Net(2)
    step(rows=16, student=student, teacher=teacher, guide=guide)
    guided = torch.cat([t for t, *_ in guide.calls])
    assert len(guided) == 2 * 8 and ((0 < guided) & (guided < 1)).all()  # not at t = 1, not the fakes
    assert len(teacher.calls) == GUIDED.order and all((t >= r).all() and (r >= 0).all() for t, r, *_ in teacher.calls)
    no_gradient = [len(t) for t, _, _, grad in student.calls if not grad]
    assert no_gradient == [4, 8]  # one-step samples for the fake rows; both sides of the rectification of the one_step rows


def test_without_guidance_the_unconditional_is_never_asked():
    student = Net()
    step(settings=Objective(), student=student)
    _, (c,), (u,) = batch(8)
    seen = torch.cat([c for _, _, c, _ in student.calls])
    assert (seen[:, None] == c).all(-1).any(1).all() and not (seen[:, None] == u).all(-1).any()


def test_image_free_training_never_looks_at_the_data():
    settings = replace(GUIDED, image_free=True)
    x, cond, uncond = batch(8)
    draws, roles = draw(x, settings, torch.Generator().manual_seed(0)), share_out(8, ROLES)
    losses = [objective.loss(Net(), y, cond, uncond, settings, roles, draws).total for y in (x, x * torch.nan)]
    assert losses[0].isfinite() and torch.equal(*losses)


def test_low_precision_data_are_trained_in_float32():
    x, cond, uncond = batch(8, torch.bfloat16)
    draws = draw(x, GUIDED, torch.Generator().manual_seed(0))
    assert draws.noise.dtype == torch.float32
    net = lambda x, t, r, c: (x * t.view(-1, 1, 1, 1)).bfloat16() * c[0].mean()
    loss = objective.loss(net, x, cond, uncond, GUIDED, share_out(8, ROLES), draws)
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()
