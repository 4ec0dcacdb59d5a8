"""TwinFlow Model Patch: how the model hears the times, and which branch answers."""

from dataclasses import replace

from comfy_api.latest import io

from .channel import attach, has_second_embedder, times_of
from .schedule import CATEGORY
from .text_preview import text_preview

RULES = {"auto": None, "two embedders": "two", "folded (t - r/2)": "fold", "off": "off"}
HEARD = {"two": "t and r, by two embedders", "fold": "t - r/2, by one embedder", "off": "t alone"}
BRANCHES = ["real", "twin"]


class ModelPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowModelPatch",
            display_name="TwinFlow Model Patch",
            category=CATEGORY,
            description=(
                "Sets how the model hears the time t and the target time r of a step, and which of its two branches answers."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any Qwen-Image, Z-Image or SD3.5 model. It is not changed; the output is a clone."
                ),
                io.Combo.Input(
                    "times",
                    options=list(RULES),
                    default="auto",
                    tooltip=(
                        "auto: as the checkpoint and the LoRA say. two embedders: for files with a second time embedder. "
                        "folded: for a TwinFlow LoRA without one that the stock loader loaded. off: the model hears t "
                        "alone."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=BRANCHES,
                    default="real",
                    tooltip=(
                        "real: the model as it is. twin: the field of the model's own samples (negative time), to look at "
                        "what it believes of them."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="report", tooltip="What the model now hears."),
            ],
        )

    @classmethod
    def execute(cls, model, times, branch) -> io.NodeOutput:
        told = times_of(model.model, model.model_options)
        told = replace(told, rule=RULES[times] or told.rule, branch=branch)
        name = type(model.model).__name__
        if told.rule == "two" and not has_second_embedder(model.model):
            raise ValueError(
                f"times is {times!r}, but the model ({name}) has no second time embedder. "
                "Load a TwinFlow checkpoint or adapter with the TwinFlow Model Loader, or choose 'folded (t - r/2)'"
            )
        report = f"{name} hears {HEARD[told.rule]}; branch {branch}"
        return io.NodeOutput(attach(model, told), report, ui=text_preview(cls, report))
