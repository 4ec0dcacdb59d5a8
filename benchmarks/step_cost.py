"""What a TwinFlow step costs next to the straightforward one: every forward on the full batch, then rows picked by mask.

    python benchmarks/step_cost.py

Beside them the released code's way, whose fake samples and rectification keep to their rows.  All get the same draws and must
give the same loss and gradients.  Forward equivalents: rows that go through a network, 1 for a forward and 3 for a forward
with its backward; they depend on the draws, so many are counted.  Time: they take turns on a compute-bound transformer, in one
thread whose own time counts; the ratio is the median over the turns.
Prints the ratios last; exit code 1 where one misses its bound, or where the numbers differ.
"""

import argparse
import copy
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from row import Row, end, of_ratios  # noqa: E402

from twinflow import objective  # noqa: E402
from twinflow.draws import draw, role_times  # noqa: E402
from twinflow.objective import Batch, Networks, Objective  # noqa: E402
from twinflow.roles import share_out  # noqa: E402

BOUNDS = {"straightforward": (0.75, 0.70), "released": (0.78, 0.75)}  # of forward equivalents, of time
SETTINGS = Objective(guidance_ratio=0.5)  # published roles 1:1:1:1, order 2, Barron, rectified


class Net(nn.Module):
    """A small transformer over 8x8 patches; cond is one vector a row.  Time per row does not depend on the batch."""

    def __init__(self, width: int, depth: int, patch: int = 16):
        super().__init__()
        self.enter, self.leave = nn.Linear(patch, width), nn.Linear(width, patch)
        self.times = nn.Sequential(nn.Linear(2 + 8, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(0.02 * torch.randn(64, width))
        layer = lambda: nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(layer() for _ in range(depth))
        self.cost = 0

    def forward(self, x, t, r, cond):
        h = self.enter(x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2))
        h = h + self.place + self.times(torch.cat([t[:, None], r[:, None], *cond], 1))[:, None]
        for block in self.blocks:
            h = block(h)
        self.cost += len(x) * (3 if torch.is_grad_enabled() else 1)
        return self.leave(h).view(-1, 8, 8, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def straightforward(student, teacher, x, cond, uncond, settings, roles, draws, *, everywhere=False):
    """The step of method.md on the full batch; only the fake samples and the rectification keep to their rows.

    everywhere: these two forwards are made of the full batch, too, and their rows picked afterwards.
    """
    column = lambda v: v.view(-1, 1, 1, 1)
    rows = lambda c, which: tuple(k[which] for k in c)
    t, r = role_times(draws, roles, settings)
    fake, one = (torch.zeros(len(x), dtype=torch.bool) for _ in range(2))
    fake[roles.rows["fake"]], one[roles.rows["one_step"]] = True, True
    with torch.no_grad():
        full, none = torch.ones_like(t), torch.zeros_like(t)
        x, asked = x.clone(), full.bool() if everywhere else fake
        own = draws.sample_noise[asked] - student(draws.sample_noise[asked], full[asked], none[asked], rows(cond, asked))
        x[fake] = own[fake[asked]]
    size = column(t.abs())
    x_t = (1 - size) * x + size * draws.noise
    v = student(x_t, t, r, cond)
    with torch.no_grad():
        target = draws.noise - x
        push = settings.guidance_ratio * (teacher(x_t, t, t, cond) - teacher(x_t, t, t, uncond))
        low, high = settings.guidance_range
        target = torch.where(column((low < t) & (t < high) & ~fake), target + push, target)
        dt, n = settings.dt, settings.order
        at, journey, start = x_t - dt * target, torch.zeros_like(x), torch.maximum(t - dt, r)
        for i in range(n):
            a, b = (start + (r - start) * k / n for k in (i, i + 1))
            u = teacher(at, a, b, cond)
            at = at + column(b.abs() - a.abs()) * u
            journey = journey + column(a - b) * u
        near = column(t - r < dt)
        residual = torch.where(near, v, (column(t - r) * v - journey) / dt) - target
        target = torch.where(column(fake), target, v - residual.clamp(-1, 1))
        weight = torch.where(fake, 1.0, torch.tan((1 - (t - r)) * math.pi / 2.5) + 1)

    def barron(a, b):
        m, s = (a - b).square().flatten(1).mean(1), settings.barron_scale
        return m * (m.detach() / (s**2 + 1e-8) + 1) ** -0.5 / s

    loss = (barron(v, target) * weight).mean()
    with torch.no_grad():
        asked = full.bool() if everywhere else one
        data, s, c = (x_t - v)[asked], draws.renoise_t[asked], rows(cond, asked)
        again = (1 - column(s)) * data + column(s) * draws.renoise[asked]
        gap = (student(again, -s, -s, c) - student(again, s, s, c)).clamp(-1, 1)[one[asked]]
    return loss + settings.rectify * barron(v[one], v[one].detach() - gap).mean()


def twinflow(student, teacher, x, cond, uncond, settings, roles, draws):
    return objective.loss(Networks(student, teacher), Batch(x, cond, uncond), settings, roles, draws).total


STEPS = {"straightforward": partial(straightforward, everywhere=True), "released": straightforward, "twinflow": twinflow}


def timed(step, student, teacher, batch):
    """Loss, gradients, forward equivalents and seconds of one step."""
    student.cost = teacher.cost = 0
    student.zero_grad()
    start = time.process_time()
    loss = step(student, teacher, *batch)
    loss.backward()
    seconds = time.process_time() - start
    return loss.item(), [p.grad.clone() for p in student.parameters()], student.cost + teacher.cost, seconds


def differ(a, b) -> str | None:
    if abs(a[0] - b[0]) > 2e-5 * max(1, abs(b[0])):
        return f"losses {a[0]} and {b[0]}"
    worst = max(((p - q).abs().max() / q.abs().max().clamp_min(1e-3)).item() for p, q in zip(a[1], b[1], strict=True))
    return f"gradients, by {worst:.1e} of the largest" if worst > 1e-4 else None


def compare(width, depth, batch, repeats, seed):
    """Forward equivalents and seconds of all on the same draws, a list each; None where their numbers differ."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    student = Net(width, depth)
    teacher = copy.deepcopy(student).requires_grad_(False)
    for p in teacher.parameters():
        p.add_(0.01 * torch.randn(p.shape, generator=generator))
    roles, results = share_out(batch, SETTINGS.roles), {name: [] for name in STEPS}
    for k in range(repeats + 1):
        x = torch.randn(batch, 4, 16, 16, generator=generator)
        cond, uncond = (torch.randn(batch, 8, generator=generator),), (torch.zeros(batch, 8),)
        drawn = (x, cond, uncond, SETTINGS, roles, draw(x, SETTINGS, generator))
        done = {name: timed(STEPS[name], student, teacher, drawn) for name in sorted(STEPS, reverse=bool(k % 2))}
        for name in BOUNDS:
            if difference := differ(done["twinflow"], done[name]):
                print(f"error: draw {k}: the steps differ in their {difference} ({name})")
                return None
        for name in STEPS if k else ():  # the first warms up
            results[name].append(done[name][2:])
    print(f"width {width:3d}: loss and gradients equal on {repeats + 1} draws")
    return results


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--batch", type=int, default=64, help="rows of a step (64)")
    arguments.add_argument("--repeats", type=int, default=9, help="timed steps of each (9)")
    arguments.add_argument("--draws", type=int, default=200, help="on which forward equivalents are counted (200)")
    given = arguments.parse_args()
    torch.set_num_threads(1)  # two threads on a busy machine measure the machine
    print(f"batch {given.batch}, guidance ratio {SETTINGS.guidance_ratio}, order {SETTINGS.order}, roles 1:1:1:1, one thread")
    # which rows need which forward depends on the draws: counted on many with a network that costs nothing
    counted = compare(8, 1, given.batch, given.draws, seed=1)
    clocked = counted and compare(160, 2, given.batch, given.repeats, seed=2)
    if not counted or not clocked:
        return 1
    for name in STEPS:
        per_row = statistics.mean(n for n, _ in counted[name]) / given.batch
        seconds = statistics.median(s for _, s in clocked[name])
        print(f"{name:16s} {per_row:5.2f} forward equivalents a row, {seconds:6.3f} s a step (median of {given.repeats})")
    rows = []
    for name, (equivalents, time_) in BOUNDS.items():
        total = sum(n for n, _ in counted["twinflow"]) / sum(n for n, _ in counted[name])
        ratios = [a / b for (_, a), (_, b) in zip(clocked["twinflow"], clocked[name], strict=True)]
        rows.append(Row(f"training step, forward equivalents, beside the {name} one", equivalents, total))
        rows.append(of_ratios(f"training step, time, beside the {name} one", time_, ratios))
    return end(rows)


if __name__ == "__main__":
    sys.exit(main())
