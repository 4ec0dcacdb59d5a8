from dataclasses import fields, replace

import pytest
import torch

from twinflow import objective, path
from twinflow.objective import Batch, Draws, Networks, Objective, Point, draw
from twinflow.roles import share_out

ROLES = dict(one_step=1, multi_step=1, any_step=1, fake=1)
GUIDED = Objective(guidance_ratio=0.8)


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
    return Batch(x, (c,), (u,))


def step(rows=8, settings=GUIDED, *, networks=None):
    data = batch(rows)
    draws = draw(data.x, settings, torch.Generator().manual_seed(0))
    return objective.loss(networks or Networks(Net()), data, settings, share_out(rows, settings.roles), draws)


def total(**options):
    return step(**options).total.item()


def gradients(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("rows, parts", [(b, p) for b in range(1, 10) for p in (1, 2, 4, 5) if b * p >= len(ROLES)])
@pytest.mark.parametrize("settings", [GUIDED, replace(GUIDED, order=0), replace(GUIDED, loss="l2", image_free=True)])
def test_micro_batches_add_up_to_the_whole_batch(rows, parts, settings):
    student, data = Net(), batch(rows * parts)
    networks = Networks(student, Net(1))
    draws = draw(data.x, settings, torch.Generator().manual_seed(1))
    whole = objective.loss(networks, data, settings, share_out(rows * parts, ROLES), draws)
    losses = []
    for k in range(parts):
        here = slice(k * rows, (k + 1) * rows)
        roles = share_out(rows, ROLES, part=k, parts=parts)
        part = Batch(data.x[here], (data.cond[0][here],), (data.uncond[0][here],))
        losses.append(objective.loss(networks, part, settings, roles, Draws(*(d[here] for d in draws))))
    mean = sum(loss.total for loss in losses) / parts
    torch.testing.assert_close(mean, whole.total, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(mean, student), gradients(whole.total, student), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_the_loss_is_a_function_of_its_arguments():
    networks = Networks(Net())
    before = torch.get_rng_state()
    assert total(networks=networks) == total(networks=networks)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_tensors_are_left_alone():
    data, settings = batch(8), replace(GUIDED, image_free=True)
    draws = draw(data.x, settings, torch.Generator().manual_seed(0))
    given = [data.x, *data.cond, *data.uncond, *draws]
    kept = [g.clone() for g in given]
    objective.loss(Networks(Net()), data, settings, share_out(8, ROLES), draws).total.backward()
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_terms_are_detached_and_named_by_role():
    loss = step()
    assert set(loss.terms) == {*ROLES, "rectify"}
    assert all(term.ndim == 0 and term.isfinite() and not term.requires_grad for term in loss.terms.values())
    by_role = sum(loss.terms[role] for role in ROLES) / len(ROLES)  # as many rows each
    assert loss.total.item() == pytest.approx((by_role + GUIDED.rectify * loss.terms["rectify"]).item())


def test_rectification_is_off_at_weight_0():
    assert "rectify" not in step(settings=replace(GUIDED, rectify=0.0)).terms


def test_guidance_adds_the_difference_of_two_instantaneous_velocities():
    data, net, t = batch(4), Net(), torch.full((4,), 0.5, dtype=torch.float64)
    target, kept = data.x.clone(), data.x.clone()
    v_c, v_u = (net(data.x, t, t, cond) for cond in (data.cond, data.uncond))
    guided = objective.guided_target(net, Point(data.x, t, 0 * t, data.cond), data.uncond, target, GUIDED)
    torch.testing.assert_close(guided, kept + 0.8 * (v_c - v_u))
    assert torch.equal(target, kept)


def test_on_a_straight_path_the_consistency_target_is_its_velocity():
    """Any student's v: the residual is (t - r)/dt (v - (z - x)), 0 where v is the path's own velocity."""
    data, noise = batch(5).x, batch(6).x[:5]
    t, r = torch.tensor([[1.0, 0.9, 0.5, 0.2, 0.1], [0.0, 0.3, 0.48, 0.0, 0.05]], dtype=torch.float64)
    straight = path.velocity(data, noise)
    at = Point(path.interpolate(data, noise, t), t, r, ())
    for order in (1, 2, 3):
        of = lambda v, order=order: objective.consistency_residual(
            lambda x, t, r, cond: straight, at, v, straight, replace(GUIDED, order=order)
        )
        torch.testing.assert_close(of(straight), 0 * straight, rtol=0, atol=1e-12)
        torch.testing.assert_close(of(straight + 0.1), path.like((t - r) / GUIDED.dt, data) * 0.1 + 0 * straight)


def test_the_gap_is_of_the_fake_from_the_real_velocity_and_at_most_1():
    data, t = batch(3).x, torch.tensor([0.2, 0.5, 0.9]).double()
    signed = lambda k: lambda x, t, r, cond: k * path.like(t.sign(), x).expand_as(x)
    for k, gap in ((0.3, -0.6), (2.0, -1.0)):
        assert torch.equal(objective.twin_gap(signed(k), data, 0 * data, t, ()), torch.full_like(data, gap))


OTHER = dict(
    roles=dict(one_step=1, multi_step=1, few_step=1, fake=1),
    order=3,
    dt=0.05,
    reach=0.5,
    guidance_ratio=0.3,
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
    base = replace(base, rectify=0.0) if name == "reach" else base
    changed = replace(base, **{name: OTHER[name]})
    assert getattr(changed, name) != getattr(base, name)
    assert total(rows=16, settings=changed) != total(rows=16, settings=base)


@pytest.mark.parametrize("rows, drawn, shared", [(8, 8, 12), (8, 12, 8), (4, 8, 8)])
def test_a_batch_whose_roles_or_draws_are_of_another_size_is_refused(rows, drawn, shared):
    draws = draw(batch(drawn).x, GUIDED, torch.Generator())
    words = f"the batch has {rows} rows, its roles are shared out over {shared}, and its draws are {drawn}; expected equal"
    with pytest.raises(ValueError, match=words):
        objective.loss(Networks(Net()), batch(rows), GUIDED, share_out(shared, ROLES), draws)


def test_only_the_students_own_forward_has_a_gradient():
    student, teacher, guide = Net(), Net(1), Net(2)
    step(networks=Networks(student, teacher, guide)).total.backward()
    assert [len(t) for t, _, _, grad in student.calls if grad] == [8]
    assert not any(grad for net in (teacher, guide) for *_, grad in net.calls)
    assert all(p.grad is None for net in (teacher, guide) for p in net.parameters())
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() for p in student.parameters())


def test_no_row_is_forwarded_that_its_target_does_not_need():
    student, teacher, guide = Net(), Net(1), Net(2)
    step(rows=16, networks=Networks(student, teacher, guide))
    guided = torch.cat([t for t, *_ in guide.calls])
    assert len(guided) == 2 * 8 and ((0 < guided) & (guided < 1)).all()  # not at t = 1, not the fakes
    assert len(teacher.calls) == GUIDED.order and all((t >= r).all() and (r >= 0).all() for t, r, *_ in teacher.calls)
    no_gradient = [len(t) for t, _, _, grad in student.calls if not grad]
    assert no_gradient == [4, 8]  # one-step samples for the fake rows; both sides of the rectification of the one_step rows


@pytest.mark.parametrize("alike", [False, True])
def test_processes_that_share_weights_make_the_same_forwards_whatever_their_times(alike):
    """Guidance and consistency that no row of this process needs: one row of each forward, which changes nothing."""
    settings = replace(GUIDED, guidance_range=(0.4, 0.4001), dt=0.9, roles=dict(multi_step=1, any_step=1), rectify=0.0)
    counts, losses = [], []
    for how in (False, alike):
        student, teacher, guide = Net(), Net(1), Net(2)
        losses.append(step(settings=settings, networks=Networks(student, teacher, guide, how)).total)
        counts.append([[len(t) for t, *_ in net.calls] for net in (student, teacher, guide)])
    assert counts == [[[8], [], []], [[8], [1] * settings.order, [2]] if alike else [[8], [], []]]
    assert torch.equal(*losses)


def test_without_guidance_the_unconditional_is_never_used():
    student, data = Net(), batch(8)
    step(settings=Objective(), networks=Networks(student))
    seen = torch.cat([c for _, _, c, _ in student.calls])
    among = lambda rows: (seen[:, None] == rows).all(-1).any(1)
    assert among(data.cond[0]).all() and not among(data.uncond[0]).any()


def test_image_free_training_never_reads_the_data():
    settings, data, student = replace(GUIDED, image_free=True), batch(8), Networks(Net())
    draws, roles = draw(data.x, settings, torch.Generator().manual_seed(0)), share_out(8, ROLES)
    losses = [objective.loss(student, b, settings, roles, draws).total for b in (data, replace(data, x=data.x * torch.nan))]
    assert losses[0].isfinite() and torch.equal(*losses)


def test_low_precision_data_are_trained_in_float32():
    data = batch(8, torch.bfloat16)
    draws = draw(data.x, GUIDED, torch.Generator().manual_seed(0))
    net = lambda x, t, r, c: (x * t.view(-1, 1, 1, 1)).bfloat16() * c[0].mean()
    loss = objective.loss(Networks(net), data, GUIDED, share_out(8, ROLES), draws)
    assert loss.total.dtype == torch.float32 and loss.total.isfinite()
