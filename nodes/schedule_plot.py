"""TwinFlow Schedule Plot: the times of a schedule and where each step aims, as an image."""

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont

from ..twinflow.sampler import STYLES, TARGETS
from .schedule import CATEGORY
from .search import found_by

BACKGROUND, GRID, INK, STEP, AIM = (24, 26, 30), (52, 56, 64), (214, 218, 224), (86, 180, 233), (230, 159, 0)
MARGIN = 56


class SchedulePlot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowSchedulePlot",
            display_name="TwinFlow Schedule Plot",
            category=CATEGORY,
            **found_by("plot sigmas", "few step"),
            description="Draws the times of a schedule, and the target of every step.",
            inputs=[
                io.Sigmas.Input("sigmas", tooltip="From TwinFlow Schedule, or any other scheduler."),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default="few",
                    tooltip="The sampler's style, which decides where each step aims.",
                ),
                io.Int.Input("width", default=768, min=256, max=4096, step=16, tooltip="Width of the image in pixels."),
                io.Int.Input("height", default=512, min=256, max=4096, step=16, tooltip="Height of the image in pixels."),
            ],
            outputs=[io.Image.Output(display_name="image")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, sigmas, style, width, height) -> io.NodeOutput:
        times = sigmas.double().cpu()
        if len(times) < 2:
            raise ValueError(f"the schedule has {len(times)} times and so no step to draw; a denoise of 0 leaves none")
        image = draw(times, TARGETS[style](times[:-1], times[1:]), width, height)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255)[None]
        return io.NodeOutput(pixels, ui=ui.PreviewImage(pixels, cls=cls))


def draw(times: torch.Tensor, targets: torch.Tensor, width: int, height: int) -> Image.Image:
    """Steps to the right, times upwards; an arrow from every time to its target."""
    image = Image.new("RGB", (width, height), BACKGROUND)
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default()
    steps, top = len(times) - 1, max(1.0, float(times.max()))

    def place(i: float, t: float | torch.Tensor) -> tuple[float, float]:
        return MARGIN + (width - 2 * MARGIN) * i / steps, height - MARGIN - (height - 2 * MARGIN) * float(t) / top

    for tick in np.linspace(0, top, 5):
        x, y = place(0, tick)
        canvas.line([(x, y), place(steps, tick)], GRID)
        canvas.text((8, y - 6), f"{tick:.2f}", INK, font)
    spacing = max(1, steps // 12)
    for i, t in enumerate(times):
        x, y = place(i, t)
        if i < steps:
            aim = place(i + 0.5, targets[i])
            canvas.line([(x, y), aim], AIM)
            canvas.ellipse([aim[0] - 3, aim[1] - 3, aim[0] + 3, aim[1] + 3], outline=AIM)
            canvas.line([(x, y), place(i + 1, times[i + 1])], STEP, 2)
        canvas.ellipse([x - 4, y - 4, x + 4, y + 4], STEP)
        if i % spacing == 0 or i == steps:
            canvas.text((x - 14, y - 20), f"{float(t):.3f}", INK, font)
            canvas.text((x - 3, height - MARGIN + 10), str(i), INK, font)
    canvas.text((MARGIN, 12), f"{steps} step{'s' if steps > 1 else ''}", INK, font)
    canvas.text((MARGIN + 90, 12), "time", STEP, font)
    canvas.text((MARGIN + 150, 12), "target", AIM, font)
    return image
