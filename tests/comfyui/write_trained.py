"""Files of the trainer for ComfyUI to load, and the samples that the trainer's own sampler draws from them.

    python tests/comfyui/write_trained.py GOLDENS FOLDER      (in an interpreter with the trainer's requirements)

For every backbone that ComfyUI has and every mode: two TwinFlow steps on the tiny golden model, <name>_<mode>.safetensors
as trainer.lora or trainer.full would write it, and expected.safetensors with samples from that file, read back.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from trainer.backbones import flux2_klein, krea2, qwen_image, qwen_image_21, sd3, z_image
from trainer.config.flat import from_flat
from trainer.weights.inference import generate, load_trained
from trainer.weights.trainee import Trainee
from twinflow.draws import draw
from twinflow.objective import Batch, Networks, loss
from twinflow.presets import OBJECTIVES, Sampling
from twinflow.roles import share_out
from twinflow.weights import save

BACKBONES = {
    "qwen": qwen_image.BACKBONES["qwen-image"],
    "zimage": z_image.BACKBONES["z-image"],
    "sd3": sd3.BACKBONES["sd3.5"],
    "flux2": flux2_klein.BACKBONES["flux2-klein"],
    "krea2": krea2.BACKBONES["krea2"],
    "qwen21": qwen_image_21.BACKBONES["qwen-image-2.1"],
}
MODES = {
    "adapter": dict(mode="lora", time="two", rank=2, alpha=3.0, targets="attention"),
    "lora": dict(mode="lora", time="fold", rank=2, alpha=3.0, targets="all"),
    "full": dict(mode="full"),
}
SAMPLINGS = {"few": Sampling(2, "few", end_gap=0.6), "any": Sampling(4, "any"), "multi": Sampling(4, "multi", end_gap=0.1)}


def plain(backbone, config, weights):
    model = getattr(diffusers, backbone.transformer_class)(**config).eval()
    second = backbone.core.time.name + "."
    model.load_state_dict({k: v.float() for k, v in weights.items() if not k.startswith(second)})
    return model


def trained(trainee, x, cond):
    """Two steps, large enough to move every sample."""
    settings, optimizer = OBJECTIVES["twinflow"], torch.optim.AdamW(trainee.tensors.values(), lr=0.01)
    x, cond = x.repeat(2, 1, 1, 1), tuple(c.repeat(2, *[1] * (c.ndim - 1)) for c in cond)  # four rows, one for each role
    uncond = tuple(c.flip(-1) for c in cond)
    for step in range(2):
        draws, roles = draw(x, settings, torch.Generator().manual_seed(step)), share_out(len(x), settings.roles)
        optimizer.zero_grad()
        loss(Networks(trainee.network), Batch(x, cond, uncond), settings, roles, draws).total.backward()
        optimizer.step()
    return {name: p.detach() for name, p in trainee.tensors.items()}


def write(goldens: Path, folder: Path) -> None:
    expected = {}
    for name, backbone in BACKBONES.items():
        config = json.loads((goldens / f"{name}.json").read_text())["config"]
        recorded, weights = (load_file(goldens / f"{name}{end}.safetensors") for end in ("", "_weights"))
        other = recorded["c1"] if name == "sd3" else recorded["c1"].bool()
        x, cond = recorded["x"], (recorded["c0"], other)
        for mode, options in MODES.items():
            torch.manual_seed(0)
            trainee = Trainee(backbone, plain(backbone, config, weights), from_flat({**options, "dtype": "fp32"}))
            path = folder / f"{name}_{mode}.safetensors"
            values = trained(trainee, x, cond)
            save(trainee.file(values), path, trainee.provenance(2).to_metadata())
            network = load_trained(backbone, plain(backbone, config, weights), path)
            for style, sampling in SAMPLINGS.items():
                expected[f"{name}_{mode}/{style}"] = generate(network, x, cond, sampling)
            before = load_trained(backbone, plain(backbone, config, weights), start(backbone, config, weights, options, folder))
            moved = (generate(before, x, cond, SAMPLINGS["few"]) - expected[f"{name}_{mode}/few"]).abs().max()
            assert moved > 0.05, (name, mode, moved)
    save_file(expected, folder / "expected.safetensors")


def start(backbone, config, weights, options, folder: Path) -> Path:
    """The file of a training that has not begun."""
    torch.manual_seed(0)
    trainee = Trainee(backbone, plain(backbone, config, weights), from_flat({**options, "dtype": "fp32"}))
    path = folder / "start.safetensors"
    save(trainee.file({name: p.detach() for name, p in trainee.tensors.items()}), path, trainee.provenance(0).to_metadata())
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(sys.argv[1]), Path(sys.argv[2]))
