"""The released tutorial (MNIST): full-batch terms in place of roles, composed of the pieces of twinflow.objective."""

import pytest
import torch

from twinflow import objective, path
from twinflow.ema import EMA
from twinflow.objective import (
    Batch,
    Networks,
    Objective,
    Point,
    consistency_residual,
    distance,
    guided_target,
    on_rows,
    select,
    velocities_of,
)
from twinflow.roles import share_out


def settings(cfg):
    return Objective(order=cfg["estimate_order"], guidance_ratio=cfg["enhanced_ratio"], loss="l2")


def guided(guide, at, uncond, target, ours):
    """The target of every row, guided."""
    formula = lambda rows: guided_target(guide, at[rows], select(uncond, rows), target[rows], ours)
    low, high = ours.guidance_range
    return on_rows((low < at.t) & (at.t < high), formula, target) if ours.guidance_ratio else target


def consistent(teacher, at, v, target, ours):
    """The consistency target of every row."""
    formula = lambda rows: consistency_residual(teacher, at[rows], v[rows], target[rows], ours)
    return v - on_rows(at.t >= at.r + ours.dt, formula, v - target).clamp(-1, 1)


def terms(cfg, student, teacher, x, c, e, drawn):
    """Prediction and target of every term of the tutorial's loss, by its name in the recording."""
    ours, cond = settings(cfg), (c,)
    t, z = drawn["u_t"].flatten(), drawn["z"]
    r = t - drawn["u_tt"].flatten() * t
    at = Point(path.interpolate(x, z, t), t, r, cond)
    target = guided(teacher, at, (e,), path.velocity(x, z), ours)
    v = at.velocity_of(student)
    pairs = {"rcgm": (v, consistent(teacher, at, v.detach(), target, ours))}
    if not cfg["using_twinflow"]:
        return pairs
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    jump = student(z, one, zero, cond)
    data, _ = path.endpoints(z, jump.detach(), one)
    s = drawn["dm_t"].flatten()
    x_s = path.interpolate(data, drawn["dm_z"], s)
    with torch.no_grad():  # the tutorial does not clamp the gap
        fake, real = velocities_of(student, Point(x_s, -s, -s, cond), Point(x_s, s, s, cond))
    return pairs | {
        "real_velocity": (student(at.x_t, t, t, cond), target),
        "adv": (student(path.interpolate(data, z, t), -t, -t, cond), path.velocity(data, z)),
        "rectify": (jump, jump.detach() - (fake - real)),
        "rcgm_1to0": (jump, consistent(teacher, Point(z, one, zero, cond), jump.detach(), target, ours)),
    }


def test_every_step_of_the_tutorial(golden, tools, replayed):
    tensors, index = golden("train_mnist")
    cases = {id: case for id, case in index.items() if isinstance(case, dict) and case["cls"] == "TwinFlow"}
    for id, case in cases.items():
        cfg, ema, first = case["cfg"], None, None
        rate = cfg["ema_decay_rate"]
        for k, step in enumerate(case["steps"]):
            where, prefix = (id, k), f"{id}/s{k}/"
            weights = {name: w.clone().requires_grad_() for name, w in tools.part(tensors, prefix + "param/").items()}
            first = first or {name: w.detach().clone() for name, w in weights.items()}
            student = teacher = tools.net(weights)
            if 0 < rate < 1:
                ema = ema or EMA(weights.values(), rate)
                ema.live = list(weights.values())
                assert step["ema_decay_used"] == pytest.approx(ema.decay, abs=1e-12), where
                ema.update()
                averaged = dict(zip(weights, ema.shadow, strict=True))
                for name, w in averaged.items():
                    torch.testing.assert_close(w, tensors[f"{prefix}ema/{name}"], rtol=2e-6, atol=1e-7)
                teacher = tools.net(averaged)
            elif rate == 1:
                teacher = tools.net(first)
            x, c, e = (tensors[f"data/b{case['batch']}/s{k}/{n}"] for n in ("x", "c0", "e0"))
            pairs = terms(cfg, student, teacher, x, c, e, tools.part(tensors, prefix + "draw/"))
            assert list(pairs) == step["terms"], where
            for name, (prediction, target) in pairs.items():
                for ours, kind in ((prediction, "pred"), (target, "target")):
                    want = tensors[f"{prefix}{name}/{kind}"]
                    torch.testing.assert_close(ours, want, rtol=1e-4, atol=2e-5, msg=lambda m, w=where, n=name: f"{w} {n} {m}")
            loss = sum(distance(p, q, settings(cfg)).mean() for p, q in pairs.values())
            tools.check_step(where, loss, weights, tensors, prefix, str)
    replayed(len(cases))


def test_the_tutorials_rcgm_class_crashes_and_the_preset_trains(golden, tools, replayed):
    tensors, index = golden("train_mnist")
    errors = [name for name in index if name.endswith("_error")] or ["base_RCGM_error"]
    start = next(name for name in tensors if name.endswith("s0/param/l1.weight")).removesuffix("l1.weight")
    velocity = tools.net({name: w.clone().requires_grad_() for name, w in tools.part(tensors, start).items()})
    roles = dict(any_step=1)
    ours = Objective(roles=roles, order=1, rectify=0.0, loss="l2")
    batch = next(case["batch"] for case in index.values() if isinstance(case, dict))
    x, c, e = (tensors[f"data/b{batch}/s0/{n}"] for n in ("x", "c0", "e0"))
    draws = objective.draw(x, ours, torch.Generator().manual_seed(0))
    loss = objective.loss(Networks(velocity), Batch(x, (c,), (e,)), ours, share_out(batch, roles), draws)
    assert loss.total.isfinite() and set(loss.terms) == {"any_step"}
    replayed(len(errors))
