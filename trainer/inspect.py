"""What a file is, and what each program will make of it:  python -m trainer.inspect FILE   (see --help)"""

import sys

from twinflow.inspection import inspect

from .console import Parser, guarded, utf8


def main(argv: list[str] | None = None) -> int:
    if argv is None:
        utf8()
    return guarded(lambda: show(argv))


def parser() -> Parser:
    p = Parser(
        prog="python -m trainer.inspect",
        description="Say what files are: family, layout, second time embedder, LoRA, number formats, metadata, and what "
        "ComfyUI's own loaders, the TwinFlow nodes and diffusers will make of them, with the keys that each drops. Headers "
        "only: as quick for 40 GB as for one.",
        epilog="try: python -m trainer.inspect twinflow_qwen_image.safetensors runs/qwen-image-lora",
    )
    p.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="safetensors or GGUF (a shard stands for all), a diffusers folder, a run's folder",
    )
    return p


def show(argv: list[str] | None) -> None:
    for i, path in enumerate(parser().parse_args(argv).files):
        print("\n" * bool(i) + inspect(path).text())


if __name__ == "__main__":
    sys.exit(main())
