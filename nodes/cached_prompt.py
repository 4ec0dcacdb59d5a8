"""TwinFlow Cached Prompt: an embedding that the trainer kept, as CONDITIONING, in place of the text encoder."""

from comfy_api.latest import io

from ..twinflow.prompts import load_prompts
from ..twinflow.weights import WeightsError
from . import model_files
from .node import Node
from .schedule import CATEGORY
from .search import found_by

FOLDER = "prompts"


class CachedPrompt(Node):
    files = ("file",)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowCachedPrompt",
            display_name="TwinFlow Cached Prompt",
            category=CATEGORY,
            **found_by("prompt embedding", "text encoder"),
            description=(
                "Loads a prompt embedding that the trainer cached, so that a checkpoint can be tried without its text encoder."
            ),
            inputs=[
                io.Combo.Input(
                    "file", options=model_files.names(FOLDER), tooltip="A prompts file of the trainer, in models/prompts."
                ),
                io.String.Input(
                    "prompt", default="", tooltip="The prompt's name or its text in the file. Empty takes the first one."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning"),
                io.String.Output(display_name="text", tooltip="The text that was encoded."),
            ],
        )

    @classmethod
    def execute(cls, file, prompt="") -> io.NodeOutput:
        path = model_files.path_of(file, FOLDER)
        try:
            prompts = load_prompts(path)
        except WeightsError as error:
            raise ValueError(str(error).replace(path, file)) from None
        found = [p for name, p in prompts.items() if prompt in ("", name, p.text)]
        if not found:
            names = ", ".join(f"{name} ({p.text!r})" for name, p in list(prompts.items())[:12])
            raise ValueError(f"{file}: has no prompt {prompt!r}; it has {names}")
        first = found[0]
        pooled = None if first.pooled is None else first.pooled.float()[None]  # None as from core: FLUX.2 asks for it, to 0.18
        return io.NodeOutput([[first.embeds.float()[None], {"pooled_output": pooled}]], first.text)
