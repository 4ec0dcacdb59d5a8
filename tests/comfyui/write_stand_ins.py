"""usage: write_stand_ins.py COMFYUI MODELS GOLDENS: small files for the shared workflows, made with ComfyUI's own classes."""

import importlib
import sys
from pathlib import Path

comfyui, models, goldens = map(Path, sys.argv[1:])
here, sys.argv = Path(__file__).parent, sys.argv[:1]
sys.path[:0] = [str(comfyui), str(here)]

from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.supported_models  # noqa: E402
import stand_ins  # noqa: E402

sys.path.append(str(here.parents[1]))
find = importlib.import_module("twinflow.backbones").find
kinds = {"zimage": "ZImage", "flux2": "Flux2", "krea2": "Krea2", "qwen21": "QwenImage21"}
newer = tuple(name for name, kind in kinds.items() if hasattr(comfy.supported_models, kind))
stand_ins.write(models, goldens, find, newer=newer)
reads_width = "decoder.head.0.gamma" in (comfyui / "comfy" / "sd.py").read_text()  # older versions know one width only
stand_ins.write_vaes(models / "vae", 8 if reads_width else 96)
