"""Alphas that a LoRA's metadata name, also those that somebody wrote to do harm."""

import json
import time

import pytest

from twinflow.alphas import Alphas
from twinflow.weights import WeightsError

MODULE = "transformer_blocks.0.attn.to_q"


def of(pattern, value=3, module=MODULE):
    return Alphas({"lora_alpha": "2", "alpha_pattern": json.dumps({pattern: value})}).of(module, 4)


@pytest.mark.parametrize(
    "pattern", ["attn.to_q", "to_q", f"^{MODULE}$", r"transformer_blocks\.\d+\.attn\.to_q", ".*to_[qk]", "(attn|ff).to_q"]
)
def test_patterns_are_matched_as_peft_does(pattern):
    assert of(pattern) == 3 and of(pattern, module="transformer_blocks.0.attn.to_v") == 2


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "(a+)+b", "(.*)*", "(a|a)*$", "(a{9}){9}", ".*.*.*.*to_q", "x" * 5000, "*", "a{2,1}"]
)
def test_others_are_refused_at_once(pattern):
    began = time.perf_counter()
    with pytest.raises(WeightsError, match="alpha_pattern") as error:
        of(pattern, module="a" * 60)
    assert time.perf_counter() - began < 0.5 and len(str(error.value)) < 300


def test_an_alpha_without_an_end_is_refused():
    with pytest.raises(WeightsError, match="too large"):
        Alphas({"lora_alpha": "1e308", "use_rslora": "true"}).of(MODULE, 4)
