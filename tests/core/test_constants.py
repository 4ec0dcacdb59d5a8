import math

import pytest

from twinflow.constants import Objective
from twinflow.presets import OBJECTIVES


@pytest.mark.parametrize(
    "name, value",
    [
        ("roles", dict(one_step=0)),
        ("roles", dict(two_step=1)),
        ("roles", dict(one_step=-1, fake=2)),
        ("roles", dict(one_step=math.nan, fake=2)),
        ("roles", dict(one_step=math.inf, fake=2)),
        ("order", -1),
        ("order", 1.5),
        ("dt", 0),
        ("dt", math.nan),
        ("reach", 2),
        ("reach", math.nan),
        ("target", "noise"),
        ("guidance_ratio", -1),
        ("guidance_ratio", math.inf),
        ("guidance_ratio", math.nan),
        ("guidance_range", (0.7, 0.3)),
        ("guidance_range", (0.0, math.nan)),
        ("guidance_range", (0.0, math.inf)),
        ("times", "cosine"),
        ("time_beta", (0, 1)),
        ("time_beta", (1, math.inf)),
        ("time_normal", (0, 0)),
        ("time_normal", (math.nan, 1)),
        ("time_scale", 0),
        ("time_scale", math.nan),
        ("rectify", -1),
        ("rectify", math.inf),
        ("loss", "l1"),
        ("barron_alpha", 3),
        ("barron_alpha", -math.inf),
        ("barron_scale", 0),
        ("barron_scale", math.nan),
    ],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"objective: {name} is .*; expected "):
        Objective(**{name: value})


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(order=0, roles=dict(one_step=1)), "roles is .* expected one of multi_step, fake with order 0"),
        (dict(stratified=True, time_beta=(2.0, 1.0)), "time_beta is .* expected 1, 1 for stratified times"),
        (dict(reach=0.5), "rectify is 0.5; expected 0 with reach 0.5: .*; set rectify 0, or reach 1"),
        (dict(roles=dict(any_step=1, fake=1)), "rectify is 0.5; expected 0 without the roles one_step and fake"),
        (dict(roles=dict(one_step=1, any_step=1)), "rectify is 0.5; expected 0 without the roles one_step and fake"),
        (dict(roles=dict(one_step=1, any_step=1, fake=0)), "rectify is 0.5; .* give both a share in roles"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_way_out(settings, words):
    with pytest.raises(ValueError, match=words):
        Objective(**settings)


def test_without_rectification_any_reach_and_any_roles_are_possible():
    assert Objective(rectify=0.0, reach=0.5).reach == 0.5
    assert Objective(rectify=0.0, roles=dict(any_step=1)).order == 2


def test_the_presets_guide_by_the_published_ratio():
    assert {name: preset.guidance_ratio for name, preset in OBJECTIVES.items()} == {
        "twinflow": 0.5,
        "rcgm": 0.5,
        "flow-matching": 0.0,
        "lora-1st-order": 0.5,
        "lora-2nd-order": 0.5,
    }
