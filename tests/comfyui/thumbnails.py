"""Writes example_workflows/*.jpg: a card for each template, drawn here, saying what it does; real digits and real emoji.

    python tests/comfyui/thumbnails.py [TITLE ...]      (emoji: in an interpreter with the trainer's requirements)

The big models' pictures would be real only if the models had been run, which they were not where this was written.
"""

import colorsys
import random
import sys
from collections.abc import Callable

import workflow
from PIL import Image, ImageDraw, ImageFont

SIZE, BIG, TILE = 512, 2, 150  # drawn at twice the size
INK, PAPER = "#1d2b38", "#f4efe6"
Painter = Callable[[float, float], tuple[int, int, int]]


def scene(hue: float) -> Painter:
    """Hills under a sun and a sky of this hue, at points of the unit square."""

    def colour(x: float, y: float):
        if (x - 0.7) ** 2 + (y - 0.28) ** 2 < 0.018:
            return shade(0.13, 0.45, 1.0)
        if y > 0.62 + 0.3 * (x - 0.3) ** 2:
            return shade(0.36, 0.35, 0.5)
        if y > 0.5 + abs(x - 0.35) * 0.7:
            return shade(hue + 0.04, 0.4, 0.6)
        return shade(hue, 0.2 + 0.3 * (1 - y), 0.95)

    return colour


def noise(x: float, y: float):
    return (random.randrange(70, 220),) * 3


def shade(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def sketch(x: float, y: float):
    red, green, blue = scene(0.58)(x, y)
    return (round(0.3 * red + 0.5 * green + 0.2 * blue),) * 3


def holed(painter: Painter) -> Painter:
    return lambda x, y: noise(x, y) if 0.5 < x < 0.9 and 0.1 < y < 0.45 else painter(x, y)


def tile(painter: Painter, width: int = TILE, pixel: int = 6) -> Image.Image:
    cells = width // pixel
    image = Image.new("RGB", (cells, cells))
    image.putdata([painter((i % cells + 0.5) / cells, (i // cells + 0.5) / cells) for i in range(cells * cells)])
    return image.resize((width * BIG, width * BIG), Image.Resampling.NEAREST)


def card(head: str, line: str, before: Painter, after: Painter, steps: int) -> Image.Image:
    """before -> after in so many hops, with two lines of text."""
    image, draw = blank(head, line)
    y = 110
    image.paste(tile(before), (40 * BIG, y * BIG))
    image.paste(tile(after, pixel=2), ((SIZE - 40 - TILE) * BIG, y * BIG))
    start, width = 40 + TILE + 10, SIZE - 2 * (40 + TILE + 10)
    hop, base = width / steps, y + TILE / 2 + 18
    for n in range(steps):
        box = [start + n * hop, base - min(hop, 40), start + (n + 1) * hop, base + min(hop, 40)]
        draw.arc([part * BIG for part in box], 180, 360, fill=INK, width=5 * BIG)
    for n in range(steps + 1):
        x, r = start + n * hop, 7
        draw.ellipse([part * BIG for part in (x - r, base - r, x + r, base + r)], fill="#e07a3f" if n == steps else INK)
    return image


def blank(head: str, line: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE * BIG, SIZE * BIG), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((40 * BIG, 330 * BIG), head, INK, ImageFont.load_default(46 * BIG))
    draw.text((40 * BIG, 396 * BIG), line, "#5b6a78", ImageFont.load_default(27 * BIG))
    return image, draw


def comparison() -> Image.Image:
    image, draw = blank("1, 2, 4, 8 steps", "one seed, side by side")
    for n, (steps, pixel) in enumerate(((1, 12), (2, 6), (4, 3), (8, 1))):
        x = 40 + n * 110
        image.paste(tile(scene(0.58), 102, pixel), (x * BIG, 120 * BIG))
        draw.text((x * BIG, 236 * BIG), str(steps), INK, ImageFont.load_default(34 * BIG))
    return image


def digits() -> Image.Image:
    """Digits that the distilled model drew in two steps, from the grid in docs."""
    grid = Image.open(workflow.REPOSITORY / "docs" / "digits.png").convert("RGB")
    return grid.crop((484, 32, 704, 252)).resize((SIZE * BIG, SIZE * BIG), Image.Resampling.NEAREST)


class Emoji:
    """The shipped model that needs one step: v(x, t, r) for some prompts."""

    def __init__(self, *texts: str):
        sys.path.insert(0, str(workflow.REPOSITORY))
        from trainer.backbones import backbone
        from trainer.weights.inference import load_trained, noise
        from twinflow.backbones.emoji import SHIPPED
        from twinflow.words import load_words

        known, words = backbone("emoji"), load_words(SHIPPED / "words.safetensors")
        self.network = load_trained(known, known.load(), SHIPPED / "distilled.safetensors")
        self.cond, self.rows = known.collate([words.encode(text) for text in texts]), len(texts)
        self.noise = noise(2 * len(texts), (12, 16, 16), 1)

    def data(self, x, t: float, r: float):
        """x - |t| v(x, t, r)."""
        times = (x.new_full((self.rows,), time) for time in (t, r))
        return x - abs(t) * self.network(x, *times, self.cond).detach()

    def picture(self, latents, row: int, scale: int) -> Image.Image:
        from trainer.backbones.emoji import to_images

        values = (to_images(latents)[row] * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(values).resize((32 * scale, 32 * scale), Image.Resampling.NEAREST)


def emoji() -> Image.Image:
    """What the shipped model draws in one step."""
    names = ("dog face", "red heart", "pizza", "rocket", "sunflower", "grinning face", "strawberry", "tiger face", "hamburger")
    model, image = Emoji(*names), Image.new("RGB", (SIZE * BIG, SIZE * BIG), "white")
    made = model.data(model.noise[: len(names)], 1.0, 0.0)
    for i in range(len(names)):
        image.paste(model.picture(made, i, 9), (40 + i % 3 * 328, 30 + i // 3 * 322))
    return credited(image)


def twin() -> Image.Image:
    """A sample of one step, noised, and what the real and the fake field see in it."""
    image, draw = blank("The twin", "how TwinFlow works, in pictures")
    model = Emoji("dog face")
    x, again = model.data(model.noise[:1], 1.0, 0.0), model.noise[1:]
    for column, text in enumerate(("x_t", "real", "fake")):
        draw.text(((100 + 155 * column) * BIG, 56 * BIG), text, INK, ImageFont.load_default(27 * BIG), anchor="mm")
    for row, t in enumerate((0.4, 0.8)):
        x_t = (1 - t) * x + t * again
        for column, latents in enumerate((x_t, model.data(x_t, t, t), model.data(x_t, -t, -t))):
            image.paste(model.picture(latents, 0, 7), ((100 + 155 * column - 56) * BIG, (80 + 120 * row) * BIG))
    return credited(image)


def credited(image: Image.Image) -> Image.Image:
    text = "trained on Twemoji by Twitter, Inc and others, CC-BY 4.0"
    ImageDraw.Draw(image).text((40, 500 * BIG), text, "#5b6a78", ImageFont.load_default(11 * BIG), anchor="lm")
    return image


CARDS = {
    "Emoji in one step": emoji,
    "How TwinFlow works - the twin": twin,
    "Qwen-Image in 2 steps": lambda: card("Qwen-Image", "text to image in 2 steps", noise, scene(0.58), 2),
    "Z-Image Turbo in 2 steps": lambda: card("Z-Image Turbo", "text to image in 2 steps", noise, scene(0.03), 2),
    "Z-Image Turbo with core samplers": lambda: card("Z-Image Turbo", "with core's sampling nodes", noise, scene(0.09), 2),
    "Image to image": lambda: card("Image to image", "Z-Image Turbo, 4 steps", sketch, scene(0.58), 4),
    "Inpainting": lambda: card("Inpainting", "Z-Image Turbo, 4 steps", holed(scene(0.58)), scene(0.58), 4),
    "Compare 1, 2, 4 and 8 steps": comparison,
    "Your Qwen-Image LoRA": lambda: card("Qwen-Image LoRA", "of your own, 4 steps", noise, scene(0.8), 4),
    "Your Qwen-Image-Edit adapter": lambda: card("Qwen-Image-Edit", "an adapter of your own, 4 steps", scene(0.58), sketch, 4),
    "Your FLUX.2 klein adapter": lambda: card("FLUX.2 klein", "an adapter of your own, 4 steps", noise, scene(0.68), 4),
    "Your Krea 2 adapter": lambda: card("Krea 2", "an adapter of your own, 4 steps", noise, scene(0.38), 4),
    "Your Qwen-Image-2.1 adapter": lambda: card("Qwen-Image-2.1", "an adapter of your own, 4 steps", noise, scene(0.88), 4),
    "Your SD3.5 LoRA": lambda: card("SD3.5 LoRA", "of your own, 4 steps", noise, scene(0.48), 4),
    "Handwritten digits": digits,
}


def main() -> None:
    random.seed(0)
    for title, draw in CARDS.items():
        if sys.argv[1:] and title not in sys.argv[1:]:
            continue
        image = draw().resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        image.save(workflow.FOLDER / f"{title}.jpg", quality=85)


if __name__ == "__main__":
    main()
