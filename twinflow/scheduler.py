"""The unified sampler as a scheduler of diffusers: a pipeline asks its network, and here it learns at which times, and what
comes next.  See twinflow.diffusers, which puts it into a pipeline."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils import logging
from torch import Tensor

from . import path
from .fresh_noise import FreshNoise, row_seeds
from .presets import SAMPLING, Sampling, near
from .sampler import TARGETS, Mixer, estimate
from .time_embedding import TIME_RULES, fold

SCALE = 1000  # of the times that pipelines count in
logger = logging.get_logger(__name__)


class TwinFlowScheduler(SchedulerMixin, ConfigMixin):
    """sampling: the settings for each number of steps, as Sampling.to_json has them (default: the published ones).

    time: "two", where the transformer has a second time embedder, which has to be connected; "fold", where it is asked at
    t - r / 2.  noise_like: draws the fresh noise of a step, of a shape like its argument (default: noise that follows each
    row's first noise, so that a pipeline's generator decides it all).  num_train_timesteps: what pipelines divide timesteps by,
    always 1000.  Raises ValueError for settings without a meaning here.
    """

    __module__ = f"{__package__}.diffusers"  # where a saved pipeline finds it again
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, sampling: Sequence[dict[str, Any]] | None = None, time: str = "two", num_train_timesteps: int = SCALE):
        if num_train_timesteps != SCALE:
            raise ValueError(f"num_train_timesteps is {num_train_timesteps}; expected {SCALE}")
        if time not in TIME_RULES:
            raise ValueError(f"time is {time!r}; expected one of {', '.join(TIME_RULES)}")
        self.sampling = tuple(map(Sampling.from_json, sampling)) if sampling else tuple(SAMPLING.values())
        if wrong := [s for s in self.sampling if s.order != 1]:
            raise ValueError(f"sampling is of order {wrong[0].order}, which evaluates twice a step; expected order 1")
        self.time = time
        self.noise_like: Callable[[Tensor], Tensor] | None = None
        self.times, self.timesteps, self.sigmas = torch.zeros(0), torch.zeros(0), torch.zeros(0)
        self.used = self.sampling[0]
        self.begin()

    def begin(self, index: int = 0) -> None:
        self.step_index = self.begin_index = index
        self.mixer: Mixer | None = None
        self.noise: Tensor | None = None  # that a picture was mixed with, in image-to-image
        self.kept: Tensor | None = None  # the sample as it was returned, in the widest dtype
        self.asked = 0  # rows that the network was asked for since the last step

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step, as image-to-image does."""
        self.begin(begin_index)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        """The times of the settings for so many steps.  Raises ValueError where there are none.

        sigmas: times from noise to data, without the final 0, in place of those; the even ones that pipelines give where a user
        gives none count as none.  mu: a pipeline's shift by the size of the image, which TwinFlow's times do not have.
        """
        given = None if sigmas is None else torch.as_tensor(sigmas, dtype=torch.float64).cpu()
        steps = int(num_inference_steps or 0) if given is None else len(given)
        if given is not None and torch.allclose(given, torch.linspace(1, 1 / steps, steps, dtype=given.dtype), atol=1e-5):
            given = None
        found = [s for s in self.sampling if s.steps == steps]
        if not found and given is None:
            listed = ", ".join(str(s.steps) for s in self.sampling)
            raise ValueError(
                f"num_inference_steps is {steps}; expected one of {listed}, for which there are settings, sigmas=[...], or "
                "others from twinflow.diffusers.load(pipe, FILE, sampling=[Sampling(...)])"
            )
        self.used = found[0] if found else near(steps, self.sampling)
        self.times = self.used.times() if given is None else torch.cat([given, given.new_zeros(1)])
        if not (self.times.diff() < 0).all() or not 0 < self.times[0] <= 1:
            raise ValueError(f"sigmas are {self.times[:-1].tolist()}; expected decreasing times, at most 1 and above 0")
        t, r = self.pairs()
        self.timesteps = (SCALE * (fold(t, r) if self.time == "fold" else t)).to(device)
        self.sigmas = self.times.float().to(device)
        self.begin()

    def pairs(self) -> tuple[Tensor, Tensor]:
        """t and r of every step, float32."""
        times = self.times.float()
        return times[:-1], TARGETS[self.used.style](times[:-1], times[1:])

    def ask(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """t and r (rows,) of the step that comes next, for the network.  Raises ValueError outside of a pipeline's steps."""
        if self.step_index >= len(self.timesteps):
            raise ValueError(
                "the transformer is asked outside of its scheduler's steps, so it cannot know t and r: another scheduler was "
                "put into the pipeline; expected the one that twinflow.diffusers.load put there"
            )
        self.asked += rows
        return tuple(k[self.step_index].to(device).expand(rows) for k in self.pairs())  # pyright: ignore[reportReturnType]

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample (B, ...) at the next time.  model_output: the velocity at this one.  Raises ValueError."""
        i = self.step_index
        if i >= len(self.timesteps) or self.index_of(timestep) != i:
            raise ValueError(f"timestep is {float(timestep):g}, which is not what comes next; call set_timesteps first")
        if self.time == "two" and not self.asked:
            raise ValueError(
                "the transformer was not told t and r: it has no second time embedder; expected "
                "twinflow.diffusers.load(pipe, FILE), also after from_pretrained"
            )
        if self.asked > len(sample):
            logger.warning("guidance is trained into TwinFlow models: pass guidance_scale=0, or no negative prompt")
        same = self.kept is not None and torch.equal(self.kept.to(sample.dtype), sample)
        x = self.kept if same and self.kept is not None else path.widest(sample)
        if self.mixer is None:
            fresh = self.noise_like or FreshNoise(row_seeds(0, (sample if self.noise is None else self.noise).cpu()))
            self.mixer = Mixer(self.used.stochasticity, self.used.extrapolation, fresh)
        t = self.pairs()[0][i].to(x.device).expand(len(x))
        x = x.to(torch.promote_types(sample.dtype, torch.float32))
        now = estimate(lambda x, t, r: model_output.to(x.dtype), x, t, t)
        _, self.kept = self.mixer.step(self.times[i], self.times[i + 1], now)
        self.step_index, self.asked = i + 1, 0
        made = self.kept.to(sample.dtype)
        return SchedulerOutput(prev_sample=made) if return_dict else (made,)

    def index_of(self, timestep: float | Tensor) -> int:
        at = torch.as_tensor(timestep, dtype=torch.float32).flatten()[0].cpu()
        return int((self.timesteps.cpu() - at).abs().argmin())

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        """The point of the path from the data `sample` to the noise at a timestep, as image-to-image begins."""
        assert noise is not None
        self.noise = noise
        t = self.sigmas[self.index_of(timestep)].to(sample).expand(len(sample))
        return path.interpolate(sample, noise, t)

    def __len__(self) -> int:
        return SCALE
