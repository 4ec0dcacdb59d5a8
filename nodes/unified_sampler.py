"""TwinFlow Unified Sampler: the SAMPLER for core's custom sampling nodes."""

from comfy_api.latest import io

from ..twinflow.sampler import STYLES
from .comfy_sampler import unified_sampler
from .node import Node
from .schedule import CATEGORY
from .search import found_by

NOISE = {"constant": None, "sde": "sde", "sde, first step kept": "sde-first"}


class UnifiedSampler(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowUnifiedSampler",
            display_name="TwinFlow Unified Sampler",
            category=CATEGORY,
            **found_by("few step", "one step", "distill", "turbo", "UCGM", "custom sampler"),
            description=(
                "The UCGM-S sampler, for SamplerCustom and SamplerCustomAdvanced. Connect TwinFlow Schedule to the sigmas."
            ),
            inputs=[
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default="few",
                    tooltip=(
                        "Where each step aims. few: straight at the image (1 to 4 steps). any: at the next time (4 to 8 "
                        "steps). multi: plain flow matching (30 steps)."
                    ),
                ),
                io.Combo.Input(
                    "order",
                    options=["1", "2"],
                    default="1",
                    tooltip="2 corrects every step but the last with a second model call, so it takes almost twice as long.",
                ),
                io.Combo.Input(
                    "noise",
                    options=list(NOISE),
                    default="constant",
                    tooltip=(
                        "How much of the noise is drawn afresh at each step. constant: the share below. sde: computed at "
                        "each step. sde, first step kept: computed once, as the released code does."
                    ),
                ),
                io.Float.Input(
                    "stochasticity",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of fresh noise, when noise is constant. 1 for few-step sampling, 0 for any and multi.",
                ),
                io.Float.Input(
                    "extrapolation",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Pushes the estimates on past those of the step before, from the third step on. 0 is off.",
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler")],
        )

    @classmethod
    def execute(cls, style, order, noise, stochasticity, extrapolation) -> io.NodeOutput:
        share = NOISE[noise] or stochasticity
        return io.NodeOutput(unified_sampler(style=style, order=int(order), stochasticity=share, extrapolation=extrapolation))
