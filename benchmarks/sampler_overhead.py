"""What a TwinFlow step costs beside a core `euler` step on the same model, inside a real ComfyUI.

    COMFYUI_PATH=... python benchmarks/sampler_overhead.py        (with an interpreter that has ComfyUI's requirements)

Both sample the same small but deep model with as many model calls, turn by turn in one process; the fastest run of each
counts, since everything else a computer does only ever adds time.  The ratio is printed last; above the limit the exit
status is 1.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from row import end, of_fastest  # noqa: E402

REPOSITORY = Path(__file__).parents[1]
LIMIT = 1.02


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI"), type=Path)
    parser.add_argument("--steps", default=8, type=int)
    parser.add_argument("--turns", default=9, type=int)
    parser.add_argument("--layers", default=16, type=int)
    parser.add_argument("--width", default=256, type=int)
    parser.add_argument("--side", default=24, type=int, help="of the latent; the model sees a quarter of its square as tokens")
    return parser.parse_args()


def start(comfyui: Path):
    """ComfyUI's nodes, with the pack loaded by its own loader."""
    if not (comfyui / "comfyui_version.py").is_file():
        sys.exit(f"error: no ComfyUI at {comfyui}; set COMFYUI_PATH to a checkout")
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(comfyui))
    import torch
    from comfy.cli_args import args

    args.cpu, args.base_directory = not torch.cuda.is_available(), tempfile.mkdtemp()
    import nodes

    asyncio.run(nodes.load_custom_node(str(comfyui / "comfy_extras" / "nodes_custom_sampler.py"), module_parent="comfy_extras"))
    assert asyncio.run(nodes.load_custom_node(str(REPOSITORY))), "ComfyUI refused the pack"
    return nodes.NODE_CLASS_MAPPINGS


def call(nodes: dict, node_id: str, **inputs):
    """A node's first output, of either node API."""
    node = nodes[node_id]
    return node.execute(**inputs).args[0] if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)(**inputs)[0]


def build(nodes: dict, options: argparse.Namespace):
    import folder_paths

    sys.path.append(str(REPOSITORY / "tests" / "comfyui"))
    import tiny

    weights = tiny.digits(width=options.width, layers=options.layers)
    folder = Path(folder_paths.models_dir, "diffusion_models")
    folder.mkdir(parents=True)
    file = tiny.save(weights | tiny.second_embedder(weights), folder / "deep.safetensors")
    return call(nodes, "TwinFlowModelLoader", model_name=file, weight_dtype="float32")


def main() -> int:
    options = arguments()
    nodes = start(options.comfyui)
    import torch

    torch.set_num_threads(1)
    model = build(nodes, options)
    schedule = dict(
        preset="custom", steps=options.steps, start_gap=0.001, end_gap=0.1, warp_a=1.0, warp_b=1.0, warp_c=1.0, denoise=1.0
    )
    sigmas = call(nodes, "TwinFlowSchedule", **schedule)
    samplers = {
        "euler": call(nodes, "KSamplerSelect", sampler_name="euler"),
        "TwinFlow": call(
            nodes, "TwinFlowUnifiedSampler", style="few", order="1", noise="constant", stochasticity=1.0, extrapolation=0.0
        ),
    }
    prompt = [[torch.zeros(1, 8, 64), {}]]
    latent = {"samples": torch.zeros(1, 3, 1, options.side, options.side)}
    times: dict[str, list[float]] = {name: [] for name in samplers}
    weights = sum(p.numel() for p in model.model.parameters())
    for turn in range(options.turns + 1):
        for name, sampler in samplers.items():
            begin = time.perf_counter()
            inputs = dict(
                model=model, add_noise=True, noise_seed=turn, cfg=1.0, positive=prompt, negative=prompt, latent_image=latent
            )
            call(nodes, "SamplerCustom", sampler=sampler, sigmas=sigmas, **inputs)
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - begin) / options.steps)
    assert weights == sum(p.numel() for p in model.model.parameters()), "sampling added weights to the model"
    for name, seconds in times.items():
        print(f"{name:>9}: {1000 * min(seconds):.2f} ms a step (fastest of {options.turns}; slowest {1000 * max(seconds):.2f})")
    return end([of_fastest("sampling step, time, beside core's euler", LIMIT, times["TwinFlow"], times["euler"])])


if __name__ == "__main__":
    sys.exit(main())
