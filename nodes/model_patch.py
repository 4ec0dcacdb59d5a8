"""TwinFlow Model Patch: the model's time conditioning, and which branch answers."""

from dataclasses import replace

from comfy_api.latest import io

from .node import Node
from .report import Report, shown
from .schedule import CATEGORY
from .search import found_by
from .supported import names
from .time_conditioning import attach, has_second_embedder, time_conditioning_of

RULES = {"auto": None, "two embedders": "two", "folded (t - r/2)": "fold", "off": "off"}
GIVEN = {"two": "t and r, with two time embedders", "fold": "t - r/2, with one time embedder", "off": "t only"}
BRANCHES = ["real", "twin"]


class ModelPatch(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowModelPatch",
            display_name="TwinFlow Model Patch",
            category=CATEGORY,
            **found_by("negative time", "time embedder", "target time", "twin", "fold"),
            description=(
                "Sets the time conditioning of the model, on the time t and the target time r of a step, and which of its two "
                "branches answers."
            ),
            inputs=[
                io.Model.Input("model", tooltip=f"Any {names()} model. It is not changed; the output is a clone."),
                io.Combo.Input(
                    "times",
                    options=list(RULES),
                    default="auto",
                    tooltip=(
                        "auto: as the checkpoint and the LoRA say. two embedders: for files with a second time embedder. "
                        "folded: for a TwinFlow LoRA without one that the stock loader loaded. off: the model gets t "
                        "only."
                    ),
                ),
                io.Combo.Input(
                    "branch",
                    options=BRANCHES,
                    default="real",
                    tooltip=(
                        "real: the model as it is. twin: the field of the model's own samples (negative time), to look at "
                        "what it predicts for them."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="report", tooltip="The times that the model now gets."),
            ],
        )

    @classmethod
    def execute(cls, model, times, branch) -> io.NodeOutput:
        time = time_conditioning_of(model.model, model.model_options)
        time = replace(time, rule=RULES[times] or time.rule, branch=branch)
        name = type(model.model).__name__
        if time.rule == "two" and not has_second_embedder(model.model):
            raise ValueError(
                f"times is {times!r}, but the model ({name}) has no second time embedder. "
                "Load a TwinFlow checkpoint or adapter with the TwinFlow Model Loader, or choose 'folded (t - r/2)'"
            )
        report = Report(f"{name} gets {GIVEN[time.rule]}; branch {branch}")
        return io.NodeOutput(attach(model, time), report.text(), ui=shown(cls, report))
