"""A classifier two-sample test (C2ST): can a network that is trained for nothing else tell two sets of images apart?

Source: Lopez-Paz and Oquab 2017 (arXiv 1610.06545).  No recipe was chosen by it, and it needs no idea of what may differ.
"""

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

STEPS, BATCH, TRAINED = 400, 64, 0.7
SMALLEST = 4  # side of the last feature maps
FEWEST = 50  # images of either kind: of fewer, the 30 % that are scored say nothing


def network(channels: int, side: int) -> nn.Sequential:
    """A small convolutional network (B, channels, side, side) -> (B, 1); side is 8 or more."""
    layers, widths = [], (channels, 32, 64, 64)
    for i, (before, after) in enumerate(zip(widths, widths[1:])):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.SiLU()]
        if side > (SMALLEST if i else 2 * SMALLEST):
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(widths[-1] * side**2, 64), nn.SiLU(), nn.Linear(64, 1)
    )


def told_apart(images: Tensor, base: Tensor | None) -> float | str:
    """For a table: auc() against the base's samples; "" for these themselves, without any, and of fewer than FEWEST."""
    return "" if base is None or base is images or min(len(base), len(images)) < FEWEST else auc(base, images)


def auc(a: Tensor, b: Tensor, *, seed: int = 0) -> float:
    """How well images a (N, C, H, H) in [0, 1] are told from b (M, C, H, H): the area under the ROC curve on the 30 % that
    was not trained on; .5 is not at all, 1 is always.  Grows with the number of images.  Computed where the images are; the
    global random state is kept."""
    device = a.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        n = min(len(a), len(b))
        k = int(n * TRAINED)
        order = torch.randperm(n)  # one for both: pairs from one noise, half of which were trained on, would be told by heart
        a, b = a[order] * 2 - 1, b[order] * 2 - 1
        x, y = torch.cat([a[:k], b[:k]]), torch.arange(2.0, device=device).repeat_interleave(k)
        model = network(*a.shape[1:3]).to(device)
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-3)
        for _ in range(min(STEPS, 2 * n)):  # of few images there is no more to learn
            rows = torch.randint(len(x), (BATCH,))
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            score = model.eval()(torch.cat([a[k:], b[k:]]))[:, 0]
    return float(roc_auc_score(torch.arange(2).repeat_interleave(n - k), score.cpu()))
