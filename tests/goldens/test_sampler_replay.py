"""The released sampler's trajectories, from twinflow.sampler and twinflow.schedule."""

import torch

from twinflow import sampler
from twinflow.path import like
from twinflow.time_embedding import fold

STYLES = {"few": "few", "any": "any", "mul": "multi"}
# A matrix product rounds differently from machine to machine; everything else is exact.
NETWORK_TOLERANCE = {
    "affine": {"float64": 0, "float32": 0, "bfloat16": 0},
    "mlp": {"float64": 1e-12, "float32": 2e-6, "bfloat16": 2e-2},
}


def network(case, tensors, index):
    def affine(x, t, r):
        a, b, c = (index["affine"][k] for k in "abc")
        return (a * x + b * like(t, x).to(x) + c * like(r, x).to(x)).to(x.dtype)

    def mlp(x, t, r):
        h = torch.cat([x.flatten(1), t.to(x)[:, None], r.to(x)[:, None]], 1)
        w1, b1, w2, b2 = (tensors[f"mlp.{k}"].to(h) for k in ("W1", "b1", "W2", "b2"))
        return (torch.tanh(h @ w1.T + b1) @ w2.T + b2).view_as(x)

    base = {"affine": affine, "mlp": mlp}[case["model"]]
    if not case["api"].startswith("lora"):
        return base
    return lambda x, t, r: base(x, folded(t, r), torch.zeros_like(t))


def folded(t, r):
    return fold(t.to(torch.promote_types(t.dtype, torch.float32)), r)


def recorded(case, tensors, id):
    """The network's recorded answers, given only to the recorded questions: bit-exact on any machine."""
    calls = iter(range(case["nfe"]))

    def velocity(x, t, r):
        i = next(calls)
        assert torch.equal(x, tensors[f"{id}/x_in"][i].to(x.dtype)), (id, i)
        lora = case["api"] == "lora"
        assert ((folded(t, r) if lora else t).double() == case["model_t"][i]).all(), (id, i)
        assert lora or (r.double() == case["model_tt"][i]).all(), (id, i)
        return tensors[f"{id}/F"][i].to(x.dtype)

    return velocity


def run(tools, case, tensors, velocity):
    """What the released sampler returns (x and every estimate of the data), the trajectory, the draws."""
    z = tensors["z0"].to(getattr(torch, case["dtype"]))
    estimates, states, draws = [z], [], iter(tensors["noise_bank"])
    share, order = case["stochast_ratio"], case["sampling_order"]
    steps = (case["sampling_steps"] + 1) // 2 if order == 2 else case["sampling_steps"]
    out = sampler.sample(
        velocity,
        z,
        tools.times(steps, case["rfba_gap_steps"], case["time_dist_ctrl"], z.dtype),
        style=STYLES[case["style"]],
        order=order,
        stochasticity="sde-first" if share == "SDE" else share,
        extrapolation=case["extrapol_ratio"],
        noise_like=lambda x: next(draws),
        callback=lambda i, t, x, data: (states.append(x), estimates.append(data)),
    )
    return out, torch.stack([e.double() for e in estimates]), torch.stack(states), len(list(draws))


def furthest(case, tensors, id, out, estimates, states):
    """The largest difference from the recording."""
    samples, x = tensors[f"{id}/samples"].double(), tensors[f"{id}/x"].double()
    pairs = [(out.double(), samples[-1]), (estimates, samples), (states, x[: len(states)])]
    assert all(a.shape == b.shape for a, b in pairs), id
    return max((a - b).abs().max().item() for a, b in pairs)


def test_every_sampler_case_is_reproduced(golden, replayed, tools):
    tensors, index = golden("sampler")
    for id, case in index["cases"].items():
        out, estimates, states, left = run(tools, case, tensors, network(case, tensors, index))
        assert len(tensors["noise_bank"]) - left == case["noise_draws"], id
        error = furthest(case, tensors, id, out, estimates, states)
        assert error <= NETWORK_TOLERANCE[case["model"]][case["dtype"]], (id, case, error)
    replayed(len(index["cases"]))


def test_with_the_recorded_network_outputs_every_case_is_bit_exact(golden, replayed, tools):
    tensors, index = golden("sampler")
    cases = {id: case for id, case in index["cases"].items() if f"{id}/F" in tensors}
    for id, case in cases.items():
        out, estimates, states, _ = run(tools, case, tensors, recorded(case, tensors, id))
        assert furthest(case, tensors, id, out, estimates, states) == 0, (id, case)
    replayed(len(cases))


def test_every_schedule_is_bit_exact(golden, replayed, tools):
    tensors, index = golden("sampler")
    for id, case in index["schedules"].items():
        dtype = getattr(torch, case["latent_dtype"])
        times = tools.times(case["steps"], case["gap"], case["tdc"], dtype)
        assert times.dtype == dtype and torch.equal(times.double(), tensors[id].double()), id
    replayed(len(index["schedules"]))


def test_second_order_works_where_the_released_code_crashes(golden, replayed, tools):
    """r = t in the second call ("*_fix"); a step from t = 1, where it divides by 0, is of first order here."""
    tensors, index = golden("sampler")
    for id, case in index["order2"].items():
        velocity = network(case, tensors, index)
        starts_at_one = len(case["t_steps"]) > 2 if case.get("t_steps") else case["sampling_steps"] > 2
        if case["rfba_gap_steps"][0] == 0 and starts_at_one:
            assert case["error"] or case["nan"], id
            assert run(tools, case, tensors, velocity)[0].isfinite().all(), id
        elif case["error"]:
            assert run(tools, case, tensors, velocity)[0].isfinite().all(), id
        else:
            error = furthest(case, tensors, id, *run(tools, case, tensors, velocity)[:3])
            assert error <= NETWORK_TOLERANCE[case["model"]][case["dtype"]], (id, case, error)
    replayed(len(index["order2"]))
