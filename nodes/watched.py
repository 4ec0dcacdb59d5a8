"""TwinFlow models of any loader: they say so when a sampler or a prompt does not go with them."""

import comfy.model_base

from .inputs import check_prompt
from .setups import check_stock_sampler
from .time_conditioning import has_second_embedder
from .times import KEY


class Watched(comfy.model_base.BaseModel):
    """Stands between a stock model and BaseModel."""

    def apply_model(self, x, t, *args, **kwargs):
        if has_second_embedder(self):
            options = kwargs.get("transformer_options") or {}
            check_stock_sampler(self, options.get(KEY), options)
        return super().apply_model(x, t, *args, **kwargs)

    def extra_conds(self, **kwargs):
        check_prompt(self, kwargs.get("prompt_type", "positive"), kwargs.get("cross_attn"), kwargs.get("pooled_output"))
        return super().extra_conds(**kwargs)
