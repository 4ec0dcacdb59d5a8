"""Templates of emoji, whose models come with the pack."""

from .nodes import load, node, sample
from .template import Template

DISTILLED, BASE = "TwinFlow emoji: distilled", "TwinFlow emoji: base"
EMOJI = node("TwinFlowEmojiPrompt", words="dog face", batch_size=1)


def emoji_in_one_step():
    graph = {"distilled": load(DISTILLED), "base": load(BASE), "prompt": EMOJI, "seed": node("PrimitiveInt", value=42)}
    columns = {}
    for name, sampler in {
        "base 1": plain(1),
        "1": sample("distilled", "1 step, by the file"),
        "2": sample("distilled", "2 steps, by the file"),
        "4": sample("distilled", "4 steps, by the file"),
        "base 32": plain(32),
    }.items():
        sampler["inputs"] |= {"seed": ["seed", 0], "latent_image": ["prompt", 2]}
        graph[f"sample {name}"] = sampler
        graph[f"image {name}"] = node("TwinFlowEmojiImage", latent=[f"sample {name}", 0], scale=8)
        columns[name] = [f"image {name}", f"sample {name}"]  # pictures in a row; a preview grows below
    return Template(
        "Emoji in one step",
        (
            "Press Run: seconds on any CPU, nothing to download. Then type the name of another emoji in the prompt: *red "
            "heart*, *flag of Japan*, *pizza*, *rocket*. The base needs 32 steps and cannot do it in one; the model that "
            "TwinFlow made of it can. All known words are on the prompt's help page. Graphics: Twemoji, CC-BY 4.0.",
            "点击运行：任何 CPU 上几秒钟，无需下载。在提示词里输入别的表情名称（英文）："
            "*red heart*、*flag of Japan*、*pizza*、*rocket*。"
            "底模需要 32 步，一步画不出来；用 TwinFlow 蒸馏后的模型一步就够。"
            "全部可用的词见提示词节点的帮助页。图形来自 Twemoji，CC-BY 4.0。",
        ),
        {
            "1 Model": [["distilled", "base"]],
            "2 Prompt": [["prompt", "seed"]],
            "3 Base, 1 step": [columns["base 1"]],
            "4 TwinFlow, 1, 2 and 4 steps": [columns["1"], columns["2"], columns["4"]],
            "5 Base, 32 steps": [columns["base 32"]],
        },
        graph,
        [("prompt", "words"), ("seed", "value"), ("prompt", "batch_size")],
        below=("2 Prompt",),
    )


def plain(steps: int) -> dict:
    """The base as any model is sampled, with a little guidance."""
    return node(
        "KSampler",
        model=["base", 0],
        positive=["prompt", 0],
        negative=["prompt", 1],
        steps=steps,
        cfg=1.5,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )


def the_twin():
    graph = {
        "model": load(DISTILLED),
        "prompt": EMOJI,
        "fields": node(
            "TwinFlowVelocityFields",
            model=["model", 0],
            positive=["prompt", 0],
            latent_image=["prompt", 2],
            seed=42,
            times="0.2, 0.4, 0.6, 0.8",
            cell=160,
        ),
    }
    plots = [f"plot {preset}" for preset in ("1 step", "2 steps", "4 steps", "8 steps")]
    for name in plots:
        graph[name] = node("TwinFlowSchedulePlot", style="few", width=384, height=384, preset=name.removeprefix("plot "))
    return Template(
        "How TwinFlow works - the twin",
        (
            "At a point x_t between picture (t = 0) and noise (t = 1) the model is asked for a velocity v(x_t, t, r). "
            "**r = t**: the *real* field, where to go now. **r = 0**: the jump to the picture in one step. "
            "**Negative times**: the *fake* field, learnt by the same weights from the model's own samples of one step. "
            "Where the two fields differ, such samples do not look real yet; in training the difference corrects the jump. "
            "On the right the times of 1, 2, 4 and 8 steps (blue), and where each step aims (orange).",
            "在图像（t = 0）与噪声（t = 1）之间的一点 x_t 上，向模型询问速度 v(x_t, t, r)。**r = t**：*真*速度场，当前的方向。"
            "**r = 0**：一步跳到图像。**负时间**：*假*速度场，由同一组权重从模型自己的一步样本学得。"
            "两个场不一致的地方，样本还不像真实图像；训练时用这个差来修正这一跳。"
            "右边是 1、2、4、8 步的时间（蓝色）和每一步的目标（橙色）。",
        ),
        {
            "1 Model": [["model"]],
            "2 Prompt": [["prompt"]],
            "3 Real field, fake field, jump": [["fields"]],
            "4 Steps, and where they aim": [plots[::2], plots[1::2]],
        },
        graph,
        [("prompt", "words"), ("fields", "times"), ("fields", "seed")],
        below=("2 Prompt",),
    )
