"""What ComfyUI reads.  Anything else that imports the repository root (pytest, pip) gets an empty module."""

import sys

if __package__ and "comfy" in sys.modules:
    from .nodes import WEB_DIRECTORY, comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
