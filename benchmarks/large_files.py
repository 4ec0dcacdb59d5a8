"""The host memory and the time that extract, merge, convert and inspect take, for files of growing size.

    python benchmarks/large_files.py [--sizes 0.5 2] [--folder /tmp]

Pairs of Qwen-Images of the published width (their blocks cut short) with random weights, one the other's base with a change of
low rank, in bf16; each command runs in a process of its own, whose peak of resident memory the kernel counts.  The slope is
bytes of memory by bytes of the two files.  Exit code 1 where it is above the limit, by which a pair of 40 GB would not stay
within 8 GB.  Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from row import Row, end  # noqa: E402

ROOT = Path(__file__).parents[1]
LIMIT = 0.05
WIDTH, HEADS, HEAD, TEXT = 3072, 24, 128, 3584
BLOCK_GB = 0.68  # of one block in bf16


def write_pair(folder: Path, gigabytes: float) -> None:
    import diffusers
    import torch

    sys.path.insert(0, str(ROOT))
    from twinflow.backbones.qwen_image import BACKBONE
    from twinflow.weights import Provenance, file_order, save_streamed

    with torch.device("meta"):
        model = diffusers.QwenImageTransformer2DModel(num_layers=max(1, round(gigabytes / BLOCK_GB)))
        plain = {name: t.bfloat16() for name, t in model.state_dict().items()}
        BACKBONE.time.install(model)
        whole = {name: t.bfloat16() for name, t in model.state_dict().items()}
    for file, tensors, changed in (("base", plain, False), ("full", whole, True)):

        def made(tensors=tensors, changed=changed):
            for name in file_order(tensors):
                g = torch.Generator().manual_seed(abs(hash(name)) % 2**31)
                value = torch.randn(tensors[name].shape, generator=g) * 0.02
                if changed and value.ndim == 2 and name in plain:
                    value += torch.randn(len(value), 8, generator=g) @ torch.randn(8, value.shape[1], generator=g) * 1e-3
                yield value.bfloat16()

        about = Provenance("two", "qwen-image").to_metadata() if changed else {}
        save_streamed(tensors, made(), folder / f"{file}.safetensors", about)


def measured(*command: str) -> tuple[float, float]:
    """Peak of resident memory in GB, seconds."""
    inside = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False)\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", inside, *command], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(out.stdout + out.stderr)
    peak = next(line for line in reversed(out.stdout.splitlines()) if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e9, time.perf_counter() - start


def commands(folder: Path) -> dict[str, list[str]]:
    file = lambda name: str(folder / f"{name}.safetensors")
    return {
        "inspect": ["trainer.inspect", file("full")],
        "extract": ["trainer.extract", file("full"), "--base", file("base"), "--rank", "16", "--output", file("lora")],
        "merge": ["trainer.merge", file("base"), "--lora", file("lora"), "--output", file("merged")],
        "convert": ["trainer.convert", file("full"), "--dtype", "fp8", "--output", file("fp8")],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", type=float, default=[0.7, 2.0], metavar="GB", help="of each file of a pair, about"
    )
    parser.add_argument("--folder", help="where the pairs are written (default: the temporary folder)")
    args = parser.parse_args()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    print("GB of the two files, peak GB of memory, seconds")
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            folder = Path(temporary)
            subprocess.run([sys.executable, __file__, "--write", temporary, str(size)], check=True)
            pair = sum((folder / f"{name}.safetensors").stat().st_size for name in ("base", "full")) / 1e9
            for name, command in commands(folder).items():
                peak, seconds = measured(*command)
                rows.setdefault(name, []).append((pair, peak, seconds))
                print(f"{name:8} {pair:6.2f} {peak:6.2f} {seconds:7.1f}", flush=True)
    slopes = {name: (own[-1][1] - own[0][1]) / (own[-1][0] - own[0][0]) for name, own in rows.items()}
    at = {name: own[-1][1] + slopes[name] * (80 - own[-1][0]) for name, own in rows.items()}
    print("two files of 40 GB, by these slopes, GB:", json.dumps({name: round(peak, 1) for name, peak in at.items()}))
    return end([Row(f"memory of {name}, by the size of its files", LIMIT, slope) for name, slope in slopes.items()])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_pair(Path(sys.argv[2]), float(sys.argv[3]))
        sys.exit()
    sys.exit(main())
