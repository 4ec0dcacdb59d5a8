"""TwinFlow Inspect: what a file is, and what each loader will make of it; no tensor is read."""

from comfy_api.latest import io

from ..twinflow.inspection import inspect
from . import model_files, shipped
from .loading import one_line
from .model_files import LORAS, MODELS
from .node import Node
from .report import Report, shown
from .schedule import CATEGORY
from .search import found_by


class Inspect(Node):
    files = ("file",)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowInspect",
            display_name="TwinFlow Inspect",
            category=CATEGORY,
            **found_by("metadata", "what is this file", "lora rank", "keys"),
            description="Says what a model or LoRA file is, and what each loader will make of it. Nothing is loaded.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*model_files.names(MODELS, LORAS), *shipped.models(), *shipped.adapters()],
                    tooltip="A file in models/diffusion_models or models/loras, .safetensors or .gguf, of any size.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(display_name="report", tooltip="What it is, its metadata, and what each loader drops.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        path = shipped.path_of(file) or model_files.path_of(file, MODELS, LORAS)
        with one_line():
            found = inspect(path)
        return io.NodeOutput(found.text(), ui=shown(cls, Report(found.verdict, found.details)))
