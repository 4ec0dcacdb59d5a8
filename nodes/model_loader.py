"""TwinFlow Model Loader: a checkpoint, or a plain base and a TwinFlow adapter, as an ordinary MODEL."""

from comfy_api.latest import io

from . import model_files, shipped
from .loading import DTYPES, load_model, one_line
from .model_files import LORAS, MODELS
from .node import Node
from .report import shown
from .schedule import CATEGORY
from .search import found_by
from .supported import names

NONE = "none"


class ModelLoader(Node):
    files = ("model_name", "adapter")

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowModelLoader",
            display_name="TwinFlow Model Loader",
            category=CATEGORY,
            **found_by("turbo", "distill", "distilled", "few step", "one step", "time embedder"),
            description=(
                "Loads a TwinFlow model: one file with its second time embedder, or a plain base with a TwinFlow adapter."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=[*model_files.names(MODELS), *shipped.models()],
                    tooltip=(
                        f"A {names()} file in models/diffusion_models, .safetensors or .gguf, with any of the usual prefixes, "
                        "or a small model that comes with the pack (TwinFlow emoji)."
                    ),
                ),
                io.Combo.Input(
                    "adapter",
                    options=[NONE, *model_files.names(LORAS, MODELS), *shipped.adapters()],
                    default=NONE,
                    tooltip=(
                        "For a plain base: the TwinFlow adapter (LoRA and second embedder in one file) in models/loras, "
                        "or any file with the second embedder; of a large one only the embedder is read."
                    ),
                ),
                io.Float.Input(
                    "adapter_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the adapter's LoRA. Its second embedder is used as it is.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="default",
                    tooltip=(
                        "How the weights are kept in memory. GGUF files keep their own type when ComfyUI-GGUF is installed."
                    ),
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(
                    display_name="report", tooltip="What was found in the files, what was missing, dtypes and metadata."
                ),
            ],
        )

    @classmethod
    def execute(cls, model_name, adapter=NONE, adapter_strength=1.0, weight_dtype="default") -> io.NodeOutput:
        path = shipped.path_of(model_name) or model_files.path_of(model_name, MODELS)
        own = shipped.path_of(adapter)
        adapter_path = None if adapter == NONE else own or model_files.path_of(adapter, LORAS, MODELS)
        with one_line():
            model, report = load_model(path, adapter_path, adapter_strength, weight_dtype)
        return io.NodeOutput(model, report.text(), ui=shown(cls, report))
