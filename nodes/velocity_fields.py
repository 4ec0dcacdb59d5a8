"""TwinFlow Velocity Fields: the real and the fake velocity field of a model, and their difference, as one picture."""

import re

import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw
from torch import Tensor

from .drawing import BACKGROUND, DIM, GRID, INK, letters, tensor_of
from .fields import Row, fields
from .inputs import check_room
from .node import Node
from .report import warn
from .schedule import CATEGORY
from .search import found_by
from .setups import title

MOST = 16  # rows
PIXEL_BYTES = 32  # of a pixel: in PIL, in float32, and what is made of it
COLUMNS = (
    ("noised", "x_t"),
    ("real field", "v(x_t, t, r=t)"),
    ("fake field", "v(x_t, -t, r=-t)"),
    ("fake - real", "{gain:.2g} times"),
    ("jump", "v(x_t, t, r=0)"),
)


class VelocityFields(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowVelocityFields",
            display_name="TwinFlow Velocity Fields",
            category=CATEGORY,
            **found_by("twin", "fake trajectory", "negative time", "rectification", "lesson", "explain"),
            description=(
                "Draws what a TwinFlow model has learnt: at several times, the picture that its real field sees in a noised "
                "picture, the one that its fake field sees, their difference, and the jump to the picture in one step."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Any TwinFlow model."),
                io.Conditioning.Input("positive", tooltip="What the picture shows."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An encoded image; or an empty latent, and the model's own sample of one step is looked at.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of the sample of one step, and of the noise that is added to it.",
                ),
                io.String.Input(
                    "times",
                    default="0.2, 0.4, 0.6, 0.8",
                    placeholder="0.2, 0.4, 0.6, 0.8",
                    tooltip="The times t, one row each: above 0 (the picture), at most 1 (noise).",
                ),
                io.Int.Input("cell", default=160, min=32, max=1024, step=8, tooltip="Width of each of the pictures in pixels."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the pictures. Without it the colours are estimated, as in previews.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, latent_image, seed, times, cell, vae=None) -> io.NodeOutput:
        picture = pictures(model.model, vae)
        rows = fields(model, positive, latent_image, seed, times_of(times))
        if missing := lacking(model.model, rows):
            warn(missing)
        image = tensor_of(drawn([row.each(picture) for row in rows], cell))
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def times_of(text: str) -> list[float]:
    """Raises ValueError for what is no list of times."""
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    try:
        times = [float(part) for part in parts]
    except ValueError:
        times = []
    if not 1 <= len(times) <= MOST or not all(0 < t <= 1 for t in times):
        raise ValueError(f"times are {text!r}; expected 1 to {MOST} numbers above 0 and at most 1, such as 0.2, 0.4, 0.6, 0.8")
    return times


def lacking(model, rows: list[Row]) -> str | None:
    """What the model has not learnt, in one line; None where nothing is missing."""
    name = title(model)
    if rows[0].fake is None:
        return (
            f"this {name} is a plain model, or its time conditioning is off: it knows neither negative times nor a target "
            "time, so only the noised picture and what its one field sees are drawn. Load a TwinFlow model"
        )
    if all(row.fake is not None and torch.equal(row.real, row.fake) for row in rows):
        return (
            f"this {name} answers the same at t and at -t, so its fake field is its real one: its file was trained without the "
            "sign of the time"
        )
    return None


def pictures(model, vae):
    """What makes a picture (H, W, 3), in [0, 1] but not clamped, of a latent of the model."""
    form = model.latent_format
    factors, bias = getattr(form, "latent_rgb_factors", None), getattr(form, "latent_rgb_factors_bias", None)
    reshape = getattr(form, "latent_rgb_factors_reshape", None) or (lambda x: x)
    exact = getattr(form, "pixels", None)
    if vae is None and exact is None and factors is None:
        raise ValueError(f"the latents of {title(model)} have no colours of their own: connect its VAE")

    def picture(latent: Tensor) -> Tensor:
        if not latent.isfinite().all():
            raise ValueError(f"{title(model)} answers with values that are not numbers: its file or the latent is damaged")
        if vae is not None:
            decoded = vae.decode(model.process_latent_out(latent))
            return decoded.reshape(-1, *decoded.shape[-3:])[0].float().cpu()
        frame = latent if exact is not None else reshape(latent)
        frame = frame[0, :, 0] if frame.ndim == 5 else frame[0]
        if exact is not None:
            return exact(frame).movedim(0, -1)
        colours = frame.movedim(0, -1) @ torch.tensor(factors)
        return (colours + (0 if bias is None else torch.tensor(bias))) / 2 + 0.5

    return picture


def drawn(rows: list[Row], cell: int) -> Image.Image:
    """The pictures (H, W, 3) of every row, side by side, with the difference of the velocities between."""
    apart = [None if row.fake is None else (row.real - row.fake) / row.t for row in rows]
    gain = 0.5 / max([1e-3, *(typical(d) for d in apart if d is not None)])
    height = max(1, round(cell * rows[0].point.shape[0] / rows[0].point.shape[1]))
    left, top, gap = round(cell * 0.75), round(cell * 0.5), max(2, cell // 20)
    width, tall = left + 5 * (cell + gap) + gap, top + len(rows) * (height + gap) + gap
    check_room(f"the picture, {width}x{tall} pixels,", PIXEL_BYTES * width * tall)
    image = Image.new("RGB", (width, tall), BACKGROUND)
    canvas, large, small = ImageDraw.Draw(image), letters(cell * 0.16), letters(cell * 0.13)
    for column, (name, formula) in enumerate(COLUMNS):
        middle = left + column * (cell + gap) + cell / 2
        canvas.text((middle, top * 0.3), name, INK, large, anchor="mm")
        canvas.text((middle, top * 0.72), formula.format(gain=gain), DIM, small, anchor="mm")
    for i, (row, difference) in enumerate(zip(rows, apart)):
        y = top + i * (height + gap)
        canvas.text((left / 2, y + height / 2), f"t = {row.t:g}", INK, large, anchor="mm")
        between = None if difference is None else 0.5 + gain * difference
        for column, values in enumerate((row.point, row.real, row.fake, between, row.jump)):
            x = left + column * (cell + gap)
            if values is None:
                canvas.rectangle([x, y, x + cell - 1, y + height - 1], outline=GRID)
                canvas.text((x + cell / 2, y + height / 2), "not in\nthis model", DIM, small, anchor="mm", align="center")
            else:
                image.paste(scaled(values, cell, height), (x, y))
    return image


def typical(difference: Tensor) -> float:
    """The size that few values exceed, from at most a million of them."""
    values = difference.abs().flatten()
    return float(values[:: 1 + len(values) // 1_000_000].quantile(0.99))


def scaled(values: Tensor, width: int, height: int) -> Image.Image:
    """Pixels stay squares where there are few of them."""
    picture = Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    small = width >= picture.width and width % picture.width == 0
    return picture.resize((width, height), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
