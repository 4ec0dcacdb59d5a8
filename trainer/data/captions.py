"""What is trained of a row's captions: with a trigger before them, and their tags in several orders.

Each text that comes out is encoded once and kept, so the orders are few and the same in every run; which one a row gets in
an epoch is drawn like a caption of several.
"""

import re

import torch

from ..seeds import seed_of
from .sources import Source


def made(texts: tuple[str, ...], source: Source) -> tuple[str, ...]:
    """As many orders of each, equally many each; the source's own caption where there is none, then the trigger alone."""
    trigger = source.trigger.strip()
    texts = texts or ((source.caption,) if source.caption else ())
    ordered = [order for text in texts for order in orders(text, source.orders, source.keep)]
    return tuple(triggered(text, trigger) for text in ordered) or ((trigger,) if trigger else ())


def triggered(text: str, trigger: str) -> str:
    """With the trigger before it, unless it is in it."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text):
        return text
    return f"{trigger} {text}"


def orders(text: str, count: int, keep: int) -> list[str]:
    """A caption, and count - 1 times its comma-separated tags shuffled, the first `keep` staying."""
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    first, rest = tags[:keep], tags[keep:]
    if len(rest) < 2:
        return [text] * count
    return [text, *(", ".join(first + shuffled(rest, seed_of("tags", text, n))) for n in range(1, count))]


def shuffled(tags: list[str], seed: int) -> list[str]:
    return [tags[i] for i in torch.randperm(len(tags), generator=torch.Generator().manual_seed(seed))]
