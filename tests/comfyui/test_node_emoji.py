"""The shipped base of emoji in ComfyUI: found by the registered class, in pixels for latents, with the trainer's velocity."""

from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
FILES = ROOT / "twinflow" / "models" / "emoji"
NUMBERS = ROOT / "tests" / "emoji" / "velocity.safetensors"


def load():
    import comfy.sd

    options = {"dtype": torch.float32}
    return comfy.sd.load_diffusion_model(str(FILES / "base.safetensors"), model_options=options)


def test_the_shipped_base_is_found_and_gives_the_trainer_s_velocity(comfy):
    model, recorded = load().model, load_file(NUMBERS)
    with torch.no_grad():
        x, t = recorded["x"].unsqueeze(2), recorded["t"]
        made = model.diffusion_model(x, t, recorded["embeds"])
    assert torch.allclose(made.squeeze(2), recorded["velocity"], atol=1e-4)


def test_its_latents_are_squares_of_pixels(comfy):
    form = load().model.latent_format
    assert form.latent_channels == 12 and form.spacial_downscale_ratio == 2 and form.latent_dimensions == 3
    x = torch.randn(1, 12, 1, 4, 4)
    assert torch.equal(form.process_in(x), x) and torch.equal(form.process_out(x), x)
    red = torch.nn.functional.pixel_unshuffle(torch.tensor([1.0, -1, -1]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2), 2)
    assert torch.allclose(red.reshape(12) @ torch.tensor(form.latent_rgb_factors), torch.tensor([1.0, -1, -1]))
