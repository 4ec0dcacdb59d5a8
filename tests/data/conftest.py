"""Small real encoders that count their calls, and folders of real images."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trainer.data import Cache, DataRequest, Encoder, prepare
from twinflow.prompts import Prompt

torch.set_num_threads(1)


def collate(prompts):
    """As a backbone's: padded with zeros to the longest, and the mask.  Theirs would import diffusers, which takes long."""
    embeds = nn.utils.rnn.pad_sequence([p.embeds for p in prompts], batch_first=True)
    return embeds, torch.arange(embeds.shape[1]) < torch.tensor([len(p.embeds) for p in prompts])[:, None]


class TextEncoder(nn.Module):
    """A token a byte; references shift every token by their mean, as an edit model's text depends on its images."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(257, 16)

    def forward(self, texts, references=None):
        means = [torch.stack([x.mean() for x in seen]).sum() for seen in references] if references else [0.0] * len(texts)
        prompts = []
        for text, mean in zip(texts, means, strict=True):
            embeds = self.table(torch.tensor([256, *text.encode()])) + mean
            prompts.append(Prompt(text, embeds))
        return prompts


class Counted:
    """Encoders for a cache; opened: how often each was loaded; inputs: what it was called with; alive: its module."""

    def __init__(self, module, identity):
        self.identity, self.module, self.opened, self.inputs, self.alive = identity, module, 0, [], None

    def open(self):
        torch.manual_seed(0)
        module = self.module()
        self.opened, self.alive = self.opened + 1, weakref.ref(module)

        def encode(*arguments):
            self.inputs.append(arguments)
            return module(*arguments)

        return encode

    @property
    def freed(self):
        gc.collect()
        return self.alive() is None


def vae():
    return nn.Conv2d(3, 4, 8, stride=8)


@pytest.fixture
def text():
    return Counted(TextEncoder, "text-1")


@pytest.fixture
def image():
    return Counted(vae, "image-1")


@pytest.fixture
def cache(tmp_path, text, image):
    return Cache(tmp_path / "cache", Encoder(text.identity, text.open), Encoder(image.identity, image.open), torch.float32)


def draw(path, height, width, seed=0, **options):
    """An image of smooth colours, so that scaling keeps its mean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Six images in two aspects, captions of one and of three lines."""
    for i in range(6):
        path = draw(tmp_path / "photos" / f"{i}.png", *((40, 40), (64, 32))[i % 2], seed=i)
        path.with_suffix(".txt").write_text("one\ntwo\n\nthree\n" if i == 0 else f"image {i}\n")
    return tmp_path / "photos"


@pytest.fixture
def prepared(cache):
    """prepared(data, ...): the data and the report at 32 px."""

    def make(data, *, share=(0, 1), latents=None, wait=lambda: None, **settings):
        values = dict(resolution=32, multiple=8, aspect=2.0, aspects="1:1", encode_batch=4) | settings
        return prepare(DataRequest(str(data), **values), cache, collate, latents=latents, share=share, wait=wait)

    return make


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
