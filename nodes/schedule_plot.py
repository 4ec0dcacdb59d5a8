"""TwinFlow Schedule Plot: the times of a schedule and where each step aims, as an image."""

import math

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw

from ..twinflow.sampler import STYLES, TARGETS
from .drawing import BACKGROUND, BLUE, GRID, INK, ORANGE, letters, tensor_of
from .node import Node
from .schedule import CATEGORY, DEFAULT_PRESET, PRESETS
from .search import found_by

STEP, AIM = BLUE, ORANGE


class SchedulePlot(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowSchedulePlot",
            display_name="TwinFlow Schedule Plot",
            category=CATEGORY,
            **found_by("plot sigmas", "few step"),
            description="Draws the times of a schedule, and the target of every step.",
            inputs=[
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default="few",
                    tooltip="With sigmas: the sampler's style, which decides where each step aims.",
                ),
                io.Int.Input("width", default=768, min=256, max=4096, step=16, tooltip="Width of the image in pixels."),
                io.Int.Input("height", default=512, min=256, max=4096, step=16, tooltip="Height of the image in pixels."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="From TwinFlow Schedule, or any other scheduler."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=DEFAULT_PRESET,
                    optional=True,
                    tooltip="Where no sigmas are connected: the published schedule for so many steps, with its style.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, style, width, height, sigmas=None, preset=DEFAULT_PRESET) -> io.NodeOutput:
        if sigmas is None:
            sigmas, style = PRESETS[preset].times(), PRESETS[preset].style
        times = sigmas.double().cpu()
        if len(times) < 2:
            raise ValueError(f"the schedule has {len(times)} times and so no step to draw; a denoise of 0 leaves none")
        image = draw(times, TARGETS[style](times[:-1], times[1:]), width, height)
        pixels = tensor_of(image)
        return io.NodeOutput(pixels, ui=ui.PreviewImage(pixels, cls=cls))


def draw(times: torch.Tensor, targets: torch.Tensor, width: int, height: int) -> Image.Image:
    """Steps to the right, times upwards; an arrow from every time to its target."""
    image = Image.new("RGB", (width, height), BACKGROUND)
    size = max(10.0, min(width, 1.5 * height) / 24)
    canvas, font = ImageDraw.Draw(image), letters(size)
    margin, line = 4 * size, max(2, round(size / 6))
    steps, top = len(times) - 1, max(1.0, float(times.max()))

    def place(i: float, t: float | torch.Tensor) -> tuple[float, float]:
        return margin + (width - 2 * margin) * i / steps, height - margin - (height - 2 * margin) * float(t) / top

    def dot(at: tuple[float, float], radius: float, **colours) -> None:
        canvas.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], **colours)

    for tick in np.linspace(0, top, 5):
        at = place(0, tick)
        canvas.line([at, place(steps, tick)], GRID)
        canvas.text((margin - 0.8 * size, at[1]), f"{tick:.2f}", INK, font, anchor="rm")
    spacing = math.ceil(1.2 * canvas.textlength("0.000", font) * steps / (width - 2 * margin))  # labels do not overlap
    for i, t in enumerate(times):
        x, y = place(i, t)
        if i < steps:
            aim = place(i + 0.5, targets[i])
            canvas.line([(x, y), aim], AIM, line // 2)
            dot(aim, size / 3, outline=AIM)
            canvas.line([(x, y), place(i + 1, times[i + 1])], STEP, line)
        dot((x, y), size / 2.5, fill=STEP)
        if i == steps or (i % spacing == 0 and steps - i >= spacing):
            canvas.text((x, y - 0.6 * size), f"{float(t):.3f}", INK, font, anchor="mb")
            canvas.text((x, height - margin + size), str(i), INK, font, anchor="mt")
    x = margin
    for text, colour in ((f"{steps} step{'s' if steps > 1 else ''}", INK), ("time", STEP), ("target", AIM)):
        canvas.text((x, 0.6 * size), text, colour, font)
        x += canvas.textlength(text, font) + 2 * size
    return image
