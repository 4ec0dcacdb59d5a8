"""TwinFlow Schedule: the times of the steps, as SIGMAS."""

from comfy_api.latest import io
from torch import Tensor

from ..twinflow import schedule
from ..twinflow.presets import SAMPLING
from .node import Node
from .report import warn
from .search import found_by

CATEGORY = "TwinFlow"
CUSTOM = "custom"
PRESETS = {"1 step" if steps == 1 else f"{steps} steps": sampling for steps, sampling in SAMPLING.items()}
DEFAULT_PRESET = "2 steps"


def denoised(times: Tensor, denoise: float) -> Tensor:
    """The same steps from a lower first time, for image to image, in float32; none at all for 0.

    Few-step schedules take a long last step, so cutting their start off would leave nothing: they are scaled instead.
    """
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise is {denoise}; expected 0 (the image as it is) to 1 (all noise)")
    scaled = schedule.merged(times * denoise)
    return scaled if len(scaled) > 1 else scaled[:0]


def denoise_input():
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="For image to image: how far up towards noise the first step starts. The number of steps stays the same.",
    )


class Schedule(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowSchedule",
            display_name="TwinFlow Schedule",
            category=CATEGORY,
            **found_by("few step", "one step", "scheduler", "sigmas"),
            description="The times that the sampler visits, from noise (1) to the image (0).",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=DEFAULT_PRESET,
                    tooltip=(
                        "The published schedule for so many steps; 'custom' uses the settings below. Pick the sampler "
                        "style that goes with it: few for 1, 2 and 4 steps, any for 8, multi for 30."
                    ),
                ),
                io.Int.Input("steps", default=2, min=1, max=1000, tooltip="Custom: the number of steps."),
                io.Float.Input(
                    "start_gap",
                    default=0.001,
                    min=0.0,
                    max=0.999,
                    step=0.001,
                    round=0.0001,
                    tooltip="Custom: the first time is 1 minus this.",
                ),
                io.Float.Input(
                    "end_gap",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Custom: the last time before 0, so the length of the last step. 0 spreads the steps evenly.",
                ),
                io.Float.Input(
                    "warp_a",
                    default=1.0,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    tooltip="Custom: a of the warp (1-(1-s^a)^b)^c; 1, 1, 1 is no warp.",
                ),
                io.Float.Input("warp_b", default=1.0, min=0.01, max=10.0, step=0.01, tooltip="Custom: b of the warp."),
                io.Float.Input("warp_c", default=1.0, min=0.01, max=10.0, step=0.01, tooltip="Custom: c of the warp."),
                denoise_input(),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="For SamplerCustom, SamplerCustomAdvanced and the TwinFlow Sampler."
                )
            ],
        )

    @classmethod
    def execute(cls, preset, steps, start_gap, end_gap, warp_a, warp_b, warp_c, denoise) -> io.NodeOutput:
        if preset == CUSTOM:
            if steps > 1 and start_gap >= 1 - end_gap:
                warn(f"the last time before 0, end_gap ({end_gap:g}), is not below the first, 1 - start_gap: it is one step")
                steps = 1
            times = schedule.times(steps, start_gap, end_gap, (warp_a, warp_b, warp_c))
        else:
            times = PRESETS[preset].times()
        return io.NodeOutput(denoised(times, denoise))
