"""What our Model Loader takes beside the loader that people would use else, on the same large file, in a real ComfyUI.

    COMFYUI_PATH=... python benchmarks/load.py        (with an interpreter that has ComfyUI's requirements)

safetensors against core's Load Diffusion Model, GGUF (Q8_0) against ComfyUI-GGUF's Unet Loader, where that pack is installed.
A load ends when every weight has been read once (with a GPU: is there, and was read), for files are mapped and some loaders
read nothing before that; the node's own part is printed as well.  Each load is a process of its own, turn by turn; the fastest
time and the smallest peak of memory count, since everything else a computer does only ever adds.
Above the limit the exit status is 1.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from row import Row, end, of_fastest  # noqa: E402

REPOSITORY = Path(__file__).parents[1]
LIMIT = 1.05
OURS = "TwinFlowModelLoader"
OTHERS = {"model.safetensors": "UNETLoader", "model.gguf": "UnetLoaderGGUF"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", default=os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI"), type=Path)
    parser.add_argument("--layers", default=6, type=int, help="blocks of Qwen-Image's width; 6 are 4.1 GB in bf16")
    parser.add_argument("--turns", default=7, type=int)
    parser.add_argument("--load", nargs=3, metavar=("FOLDER", "FILE", "NODE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def load_once(comfyui: Path, folder: str, file: str, node_id: str) -> None:
    """In a process of its own: load the file and print the seconds and the peak of memory in GB."""
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(comfyui))
    import torch
    from comfy.cli_args import args

    args.cpu, args.base_directory = not torch.cuda.is_available(), folder
    import nodes

    for pack in (REPOSITORY, comfyui / "custom_nodes" / "ComfyUI-GGUF"):
        if pack.is_dir():
            assert asyncio.run(nodes.load_custom_node(str(pack)))
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    start = time.perf_counter()
    if node_id == OURS:
        model = node.execute(model_name=file).args[0]
    else:
        model = getattr(node(), node.FUNCTION)(file, **({"weight_dtype": "default"} if node_id == "UNETLoader" else {}))[0]
    by_the_node = time.perf_counter() - start
    if not args.cpu:
        from comfy.model_management import load_models_gpu

        load_models_gpu([model])
        torch.cuda.synchronize()
    for weight in model.model.diffusion_model.parameters():
        weight.data.as_subclass(torch.Tensor).view(torch.uint8).flatten()[::512].sum()  # of every page
    print(json.dumps([time.perf_counter() - start, peak_memory(), by_the_node]))


def peak_memory() -> float:
    """Of this process, in GB.  Linux hands the parent's ru_maxrss on to a child, so the kernel's own count is read."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise OSError("no VmHWM in /proc/self/status; expected Linux")


def write_models(folder: Path, layers: int, with_gguf: bool) -> None:
    """A random Qwen-Image of the published width with a second time embedder, in both storage types."""
    import torch
    from safetensors.torch import save_file

    sys.path.append(str(REPOSITORY / "tests" / "comfyui"))
    import tiny

    plain = tiny.digits(width=3072, head=128, layers=layers, text=3584)
    weights = {key: tensor.bfloat16() for key, tensor in (plain | tiny.second_embedder(plain)).items()}
    save_file(weights, folder / "model.safetensors")
    if not with_gguf:
        return
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen_image")
    for key, tensor in weights.items():
        values = tensor.float()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            blocks = values.reshape(-1, 32)
            scale = (blocks.abs().amax(1, keepdim=True) / 127).half()
            whole = (blocks / scale.float().clamp(min=1e-8)).round().to(torch.int8)
            packed = torch.cat([scale.view(torch.uint8), whole.view(torch.uint8)], 1).reshape(len(values), -1)
            writer.add_tensor(key, packed.numpy(), raw_dtype=kind)
        else:
            writer.add_tensor(key, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    options = arguments()
    if options.load:
        load_once(options.comfyui, *options.load)
        return 0
    with_gguf = (options.comfyui / "custom_nodes" / "ComfyUI-GGUF").is_dir()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models", "diffusion_models")
        models.mkdir(parents=True)
        write_models(models, options.layers, with_gguf)
        for file, other in OTHERS.items():
            path = models / file
            if not path.is_file():
                print(f"{file}: no ComfyUI-GGUF in {options.comfyui}, not measured")
                continue
            runs: dict[str, list[list[float]]] = {OURS: [], other: []}
            for _ in range(options.turns):
                for node_id, own in runs.items():
                    command = [sys.executable, __file__, "--comfyui", options.comfyui, "--load", folder, file, node_id]
                    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    own.append(json.loads(out.splitlines()[-1]))
            (seconds, memory, node), (others, other_memory, other_node) = (list(zip(*own)) for own in runs.values())
            print(
                f"{file} ({path.stat().st_size / 1e9:.1f} GB), beside {other}: {min(seconds):.2f} s and {min(others):.2f} s, "
                f"of the nodes {min(node):.2f} s and {min(other_node):.2f} s; "
                f"{min(memory):.2f} GB and {min(other_memory):.2f} GB"
            )
            rows.append(of_fastest(f"loading {file}, time, beside {other}", LIMIT, seconds, others))
            rows.append(of_fastest(f"loading {file}, peak of memory, beside {other}", LIMIT, memory, other_memory))
    return end(rows)


if __name__ == "__main__":
    sys.exit(main())
