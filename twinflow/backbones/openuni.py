"""OpenUni: SANA behind a language model; its velocity is SANA's own."""

from dataclasses import replace

from . import sana

BACKBONE = replace(
    sana.BACKBONE,
    name="openuni",
    title="OpenUni",
    models={"openuni": "wusize/openuni/openuni_l_internvl3_2b_sana_1_6b_512_hf_blip3o60k.pth"},
    variant=True,
    pipelines="",
)
