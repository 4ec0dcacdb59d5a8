"""The released tutorial (MNIST): full-batch terms in place of roles, composed of the pieces of twinflow.objective."""

import math

import pytest
import torch

from twinflow import objective, path
from twinflow.ema import EMA
from twinflow.objective import Objective, consistent, distance, guided, twin_gap
from twinflow.roles import share_out


def settings(cfg):
    return Objective(order=cfg["estimate_order"], guidance=cfg["enhanced_ratio"], loss="l2")


def terms(cfg, student, teacher, x, c, e, drawn):
    """Prediction and target of every term of the tutorial's loss, by its name in the recording."""
    ours, cond = settings(cfg), (c,)
    t, z = drawn["u_t"].flatten(), drawn["z"]
    r, real = t - drawn["u_tt"].flatten() * t, torch.ones(len(x), dtype=torch.bool)
    x_t = path.interpolate(x, z, t)
    target = guided(path.velocity(x, z), teacher, x_t, t, real, cond, (e,), ours)
    v = student(x_t, t, r, cond)
    pairs = {"rcgm": (v, consistent(v.detach(), target, teacher, x_t, t, r, real, cond, ours))}
    if not cfg["using_twinflow"]:
        return pairs
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    jump = student(z, one, zero, cond)
    data, _ = path.endpoints(z, jump.detach(), one)
    gap = twin_gap(student, data, drawn["dm_z"], drawn["dm_t"].flatten(), cond, limit=math.inf)
    return pairs | {
        "real_velocity": (student(x_t, t, t, cond), target),
        "adv": (student(path.interpolate(data, z, t), -t, -t, cond), path.velocity(data, z)),
        "rectify": (jump, jump.detach() - gap),
        "rcgm_1to0": (jump, consistent(jump.detach(), target, teacher, z, one, zero, real, cond, ours)),
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
    loss = objective.loss(velocity, x, (c,), (e,), ours, share_out(batch, roles), draws)
    assert loss.total.isfinite() and set(loss.terms) == {"any_step"}
    replayed(len(errors))
