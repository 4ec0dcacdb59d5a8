"""The ComfyUI nodes: the only place that imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from . import registry

WEB_DIRECTORY = "web"
registry.register()


class TwinFlow(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []


async def comfy_entrypoint() -> TwinFlow:
    return TwinFlow()
