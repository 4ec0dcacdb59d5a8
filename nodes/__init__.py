"""The ComfyUI nodes: the only place that imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from . import help_pages, registry, saved, stock_lora, template_order
from .cached_prompt import CachedPrompt
from .emoji_image import EmojiImage
from .emoji_prompt import EmojiPrompt
from .inspector import Inspect
from .lora_loader import LoraLoader
from .model_loader import ModelLoader
from .model_patch import ModelPatch
from .sampler import Sampler
from .saver import Save
from .schedule import Schedule
from .schedule_plot import SchedulePlot
from .unified_sampler import UnifiedSampler
from .velocity_fields import VelocityFields

WEB_DIRECTORY = "web"
NODES = [
    ModelLoader, LoraLoader, ModelPatch, CachedPrompt, Schedule, UnifiedSampler, Sampler, SchedulePlot,
    EmojiPrompt, EmojiImage, VelocityFields, Inspect, Save,
]  # fmt: skip

registry.register()
saved.remember()
stock_lora.watch()
help_pages.add_route()
template_order.keep()


class TwinFlow(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> TwinFlow:
    return TwinFlow()
