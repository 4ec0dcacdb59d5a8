"""TwinFlow LoRA Loader: a LoRA without an embedder, of any layout, with the time conditioning that its metadata names."""

from dataclasses import replace

from comfy_api.latest import io

from ..twinflow.weights import WeightsError
from . import lora, model_files
from .loading import described
from .model_files import LORAS, ModelFile
from .schedule import CATEGORY
from .supported import backbone_of
from .text_preview import text_preview
from .time_conditioning import attach, has_second_embedder, time_conditioning_of


class LoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowLoraLoader",
            display_name="TwinFlow LoRA Loader",
            category=CATEGORY,
            description=(
                "Applies a LoRA of any layout, reports what was applied, and sets the time conditioning that the LoRA "
                "was trained with."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made for. It is not changed; LoRAs stack."),
                io.Combo.Input(
                    "lora_name",
                    options=model_files.names(LORAS),
                    tooltip="A LoRA file in models/loras. Adapters with a second embedder belong in the TwinFlow Model Loader.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly the LoRA changes the weights.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="report", tooltip="Modules applied and dropped, time conditioning, metadata."),
            ],
        )

    @classmethod
    def execute(cls, model, lora_name, strength=1.0) -> io.NodeOutput:
        file = model_files.open_file(model_files.path_of(lora_name, LORAS))
        patcher, report = apply_file(model, file, strength)
        return io.NodeOutput(patcher, report, ui=text_preview(cls, report))


def apply_file(model, file: ModelFile, strength: float):
    """(clone of the model with the LoRA, report).  Raises WeightsError where nothing would change, or only half of it."""
    two = has_second_embedder(model.model)
    if file.second and not two:
        raise WeightsError(
            f"{file.name}: is a TwinFlow adapter, with a second time embedder ({file.second[0]}), which this model "
            f"({type(model.model).__name__}) does not have. Load base and adapter together with the TwinFlow Model Loader"
        )
    provenance, time = file.provenance, time_conditioning_of(model.model, model.model_options)
    if provenance is not None and provenance.time == "two" and not two:
        raise WeightsError(
            f"{file.name}: was trained with a second time embedder (twinflow.time is 'two'), which neither the file nor this "
            f"model ({type(model.model).__name__}) has. Load its checkpoint or adapter with the TwinFlow Model Loader first"
        )
    backbone = backbone_of(model.model)
    layout = backbone and backbone.layout
    patcher, result = lora.apply(model, file.tensors([key for key in file.keys if key not in file.second]), strength, layout)
    if not result.applied:
        raise WeightsError(
            f"{file.name}: none of its {len(result.dropped)} modules fits this model ({type(model.model).__name__}): "
            f"{', '.join(result.dropped[:6])}. It was made for another backbone, or holds no LoRA"
        )
    lines = [described(file, None), result.report()]
    if file.second:
        assert layout is not None  # the model has a second time embedder, so it is one of ours
        embedder = layout.to_native(file.tensors(file.second))
        patcher.add_patches({f"diffusion_model.{key}": ("set", (tensor,)) for key, tensor in embedder.items()})
        lines.append(f"second time embedder: {len(embedder)} tensors, set from {file.name}")
    rule = "two" if two else provenance.time if provenance else time.rule
    time = replace(time, rule=rule, recommended=provenance.sampler if provenance and provenance.sampler else time.recommended)
    unnamed = "" if provenance else " (the file names none; TwinFlow Model Patch sets another)"
    lines.append(f"time conditioning: {rule}{unnamed}")
    return attach(patcher, time), "\n".join(lines)
