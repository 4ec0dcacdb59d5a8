"""A judge of generated digits: a small classifier, and distances between feature distributions.

The classifier is trained on the training split only (a few seconds, deterministic).  Its penultimate layer gives the
features in which generated images are compared with real ones.  Label accuracy alone is no measure (a blurred class
mean is labelled perfectly), so `Judge.metrics` reports distribution, variety and memorising as well.
"""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

CLASSES = 10
TEST_SIZE = 450  # images that no generator is trained on
NEIGHBOURS = 5  # k of precision, recall, density and coverage


@dataclass(frozen=True)
class Split:
    """scikit-learn's digits, split once and for all; images are (n, 1, 8, 8) in [0, 1], labels (n,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@cache
def split() -> Split:
    x, y = load_digits(return_X_y=True)
    a, b, la, lb = train_test_split(x, y, test_size=TEST_SIZE, stratify=y, random_state=0)
    image = lambda v: torch.tensor(v / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return Split(image(a), torch.tensor(la), image(b), torch.tensor(lb))


class Perceptron(nn.Module):
    """Two hidden layers; the second gives the features."""

    def __init__(self, width: int = 128, features: int = 64):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, features), nn.ReLU())
        self.head = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


class Convolutional(Perceptron):
    """Two convolutions and one hidden layer, which gives the features."""

    def __init__(self, width: int = 32, features: int = 64):
        super().__init__(features=features)
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(width * 16, features), nn.ReLU(),
        )  # fmt: skip


NETWORKS = {"mlp": Perceptron, "cnn": Convolutional}


def train_classifier(network: str, digits: Split, *, steps: int = 1500, batch: int = 128, seed: int = 0) -> nn.Module:
    """Fit a classifier on the training split with small shifts and noise; leaves the global random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[network]()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(digits.train), (batch,), generator=generator)
        x = digits.train[rows]
        x = x + 0.05 * torch.randn(x.shape, generator=generator)
        loss = nn.functional.cross_entropy(model(x)[1], digits.train_labels[rows], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the gaussians fitted to two sets of features: |m - n|^2 + tr(S + T - 2 (S T)^(1/2))."""
    a, b = a.double(), b.double()
    root = matrix_root(a.T.cov())
    cross = matrix_root(root @ b.T.cov() @ root)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return (gap + a.T.cov().trace() + b.T.cov().trace() - 2 * cross.trace()).item()


def matrix_root(m: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((m + m.T) / 2)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def neighbour_metrics(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020)."""
    radius = lambda x: torch.cdist(x, x).kthvalue(k + 1, dim=1).values  # the nearest of all is the point itself
    distance, real_radius, made_radius = torch.cdist(real, made), radius(real)[:, None], radius(made)[None, :]
    inside = distance <= real_radius
    return {
        "precision": inside.any(0).double().mean().item(),
        "recall": (distance <= made_radius).any(1).double().mean().item(),
        "density": inside.double().sum(0).mean().item() / k,
        "coverage": inside.any(1).double().mean().item(),
    }


def within_class_spread(features: Tensor, labels: Tensor) -> float:
    """The mean over classes of the root of the features' total variance."""
    return torch.stack([features[labels == c].var(0).sum().sqrt() for c in range(CLASSES)]).mean().item()


def nearest_distance(images: Tensor, reference: Tensor) -> float:
    """The mean distance (pixels, L2) from an image to the nearest of the reference."""
    return torch.cdist(images.flatten(1), reference.flatten(1)).min(1).values.mean().item()


class Judge:
    """Compares generated digits with the training split; the real test split sets the scale, and is to be covered."""

    def __init__(self, network: str = "mlp", *, digits: Split | None = None, seed: int = 0):
        self.digits = digits or split()
        self.classifier = train_classifier(network, self.digits, seed=seed)
        self.real, _ = self.classifier(self.digits.train)
        self.unseen, _ = self.classifier(self.digits.test)
        self.spread = within_class_spread(self.real, self.digits.train_labels)
        self.test_distance = frechet_distance(self.unseen, self.real)
        self.test_pixels = frechet_distance(self.digits.test.flatten(1), self.digits.train.flatten(1))
        self.test_nearest = nearest_distance(self.digits.test, self.digits.train)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """images (n, 1, 8, 8) in [0, 1] with the labels asked for.

        frechet, and pixels (the same of the 64 pixels, in which no classifier has a part), are in units where the real test
        split has 1; diversity and nearest are relative to real images too.
        coverage is of the test split, real images that no generator has seen (its own coverage is therefore 1).
        """
        features, logits = self.classifier(images.float())
        return {
            "frechet": frechet_distance(features, self.real) / self.test_distance,
            "pixels": frechet_distance(images.flatten(1), self.digits.train.flatten(1)) / self.test_pixels,
            "accuracy": (logits.argmax(1) == labels).double().mean().item(),
            **neighbour_metrics(self.real, features),
            "coverage": neighbour_metrics(self.unseen, features)["coverage"],
            "diversity": within_class_spread(features, labels) / self.spread,
            "nearest": nearest_distance(images, self.digits.train) / self.test_nearest,
        }

    def real_test(self) -> dict[str, float]:
        """The metrics of the real test split, the best that a generator can ask for (450 images only)."""
        return self.metrics(self.digits.test, self.digits.test_labels)
