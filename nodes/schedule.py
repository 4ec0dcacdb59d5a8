"""TwinFlow Schedule: the times of the steps, as SIGMAS."""

from comfy_api.latest import io

from ..twinflow.presets import SAMPLING, Sampling

CATEGORY = "TwinFlow"
CUSTOM = "custom"
PRESETS = [*(f"{steps} step" + "s" * (steps > 1) for steps in SAMPLING), CUSTOM]


