"""TwinFlow LoRA Loader: a LoRA without an embedder, of any layout, with the time conditioning that its metadata names."""

from dataclasses import replace

from comfy_api.latest import io

from ..twinflow.weights import WeightsError
from . import lora, model_files, shipped
from .loading import described, one_line
from .model_files import LORAS, ModelFile
from .node import Node
from .report import Report, shown
from .saved import attach_provenance
from .schedule import CATEGORY
from .search import found_by
from .supported import backbone_of
from .time_conditioning import attach, has_second_embedder, time_conditioning_of


class LoraLoader(Node):
    files = ("lora_name",)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowLoraLoader",
            display_name="TwinFlow LoRA Loader",
            category=CATEGORY,
            **found_by("turbo", "distill", "distilled", "few step", "one step"),
            description=(
                "Applies a LoRA of any layout, reports what was applied, and sets the time conditioning that the LoRA "
                "was trained with."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made for. It is not changed; LoRAs stack."),
                io.Combo.Input(
                    "lora_name",
                    options=[*model_files.names(LORAS), *shipped.adapters()],
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
        path = shipped.path_of(lora_name) or model_files.path_of(lora_name, LORAS)
        with one_line():
            patcher, report = apply_file(model, model_files.open_file(path), strength)
        return io.NodeOutput(patcher, report.text(), ui=shown(cls, report))


def apply_file(model, file: ModelFile, strength: float):
    """(clone of the model with the LoRA, Report).  Raises WeightsError where nothing would change, or only half of it."""
    name, two = type(model.model).__name__, has_second_embedder(model.model)
    if file.second and not two:
        raise WeightsError(
            f"{file.name}: is a TwinFlow adapter, with a second time embedder that this model ({name}) has no place for. Load "
            "base and adapter together with the TwinFlow Model Loader"
        )
    provenance, time = file.provenance, time_conditioning_of(model.model, model.model_options)
    if provenance is not None and provenance.time == "two" and not two:
        raise WeightsError(
            f"{file.name}: was trained with a second time embedder, which neither the file nor this model ({name}) has. Load "
            "its checkpoint or adapter with the TwinFlow Model Loader first (twinflow.time is 'two')"
        )
    backbone = backbone_of(model.model)
    if not file.lora:
        raise WeightsError(
            f"{file.name}: holds no LoRA. Choose a LoRA file; a whole model belongs in the TwinFlow Model Loader "
            f"({file.keys_found()})"
        )
    patcher, result = lora.apply(model, file.tensors(file.lora), strength, backbone and backbone.layout, file.metadata)
    if not result.applied:
        raise WeightsError(f"{file.name}: {result.why_nothing(backbone.title if backbone else name)}")
    rule = "two" if two else provenance.time if provenance else time.rule
    details = [*described(file), *result.details()]
    if file.second:
        assert backbone is not None  # the model has a second time embedder, so it is one of ours
        embedder = backbone.layout.to_native(file.tensors(file.second))
        patcher.add_patches({f"diffusion_model.{key}": ("set", (tensor,)) for key, tensor in embedder.items()})
        details.append(f"second time embedder: {len(embedder)} tensors, set from {file.name}")
    if others := [key for key in file.keys if key not in {*file.lora, *file.second}]:
        details.append(f"not used: {len(others)} tensors that are no LoRA ({', '.join(others[:6])})")
    known, fault = file.recognised
    details += known.details() if known else []
    unnamed = "" if provenance else " (the file names none; TwinFlow Model Patch sets another)"
    details.append(f"time conditioning: {rule}{unnamed}")
    time = replace(time, rule=rule, recommended=file.sampler or time.recommended)
    attach_provenance(patcher, provenance)
    times = {"two": "two-time", "fold": "folded time", "off": "time t only"}[rule]
    verdict = f"{result.verdict()}, {times}" + (f"; {known.verdict()}" if known else "")
    warnings = [*result.warnings(file.name), *filter(None, [fault])]
    return attach(patcher, time), Report(verdict, details, warnings)
