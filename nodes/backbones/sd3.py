"""SD3.5 in ComfyUI: its second time embedder has a part of its own of the pooled prompt (y)."""

import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
import comfy.model_base
import comfy.supported_models

from ...twinflow.backbones.sd3 import BACKBONE
from ...twinflow.time_embedding import Pair, TwoTimeEmbedder
from . import Model, TwoTimes


class WithPooled(TwoTimeEmbedder):
    """E(t) + (t - r) (E_r(r) + P_r(pooled)); the stock forward adds P(pooled) to it."""

    pooled: tuple = ()  # the module P_r, in a tuple: the network holds it under its own name

    def second(self, pair: Pair, args: tuple, kwargs: dict):
        time = super().second(pair, args, kwargs)
        return time if pair.beside is None else time + self.pooled[0](pair.beside)


class SD3(TwoTimes, mmdit.OpenAISignatureMMDITWrapper):
    backbone = BACKBONE
    kind = WithPooled

    def __init__(self, *args, dtype=None, device=None, operations=None, **kwargs):
        build = dict(dtype=dtype, device=device, operations=operations)
        super().__init__(*args, **kwargs, **build)
        self.y_embedder_2 = mmdit.VectorEmbedder(kwargs["adm_in_channels"], self.hidden_size, **build)
        self.t_embedder.pooled = (self.y_embedder_2,)

    def beside(self, arguments):
        return arguments.get("y")


class Heads(int):
    """MMDiT's `depth`: the number of heads, and 64 times it the width.  This one answers with the width it was given."""

    width: int

    def __new__(cls, heads: int, width: int):
        self = super().__new__(cls, heads)
        self.width = width
        return self

    def __mul__(self, other):
        return self.width if other == 64 else int(self) * other

    __rmul__ = __mul__


def settings(widths: dict, shapes) -> dict:
    if widths["head"] == 64:  # of every published size, and of those without norms, which do not tell
        return {}
    return dict(depth=Heads(widths["heads"], widths["width"]), num_blocks=widths["layers"])


MODEL = Model(comfy.supported_models.SD3, comfy.model_base.SD3, SD3, settings)
