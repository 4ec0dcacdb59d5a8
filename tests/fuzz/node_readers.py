"""Every reader of the nodes, in a real ComfyUI: what a file in the folders of models can do to a server."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gguf_file
import mutations
import torch
from reader import Reader

REPOSITORY = Path(__file__).parents[2]
sys.path.append(str(REPOSITORY / "tests" / "comfyui"))
import tiny  # noqa: E402

Part = Callable[[str], ModuleType]


def started(comfyui: Path, base: Path) -> Part:
    """The ComfyUI in this process, on the CPU, with the pack; answers with the pack's modules by name."""
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(base)
    import folder_paths

    import nodes

    Path(folder_paths.models_dir, "loras").mkdir(parents=True)
    torch.set_num_threads(1)
    assert asyncio.run(nodes.load_custom_node(str(REPOSITORY)))
    root = str(REPOSITORY).replace(".", "_x_")
    return lambda name: sys.modules[f"{root}.{name}"]


def readers(part: Part) -> dict[str, Reader]:
    weights, files, loading = part("twinflow.weights"), part("nodes.model_files"), part("nodes.loading")
    plain = tiny.digits(width=32, head=16, layers=1, text=32)
    two = plain | tiny.second_embedder(plain)
    parts = tiny.lora(plain, ("attn.to_q", "attn.to_v"))
    lora = {f"diffusion_model.{m}.lora_{h}.weight": t for m, ab in parts.items() for h, t in zip("AB", ab, strict=True)}
    lora |= {f"{key.removesuffix('.lora_A.weight')}.alpha": torch.tensor(2.0) for key in list(lora) if "lora_A" in key}
    sampling = tuple(part("twinflow.presets").SAMPLING.values())
    about = lambda time: weights.Provenance(time, "qwen-image", 4, sampling, 100, "abc").to_metadata()
    prompt = {"a.embeds": torch.zeros(2, 8), "a.pooled": torch.zeros(8)}
    pattern = {"lora_alpha": "4", "alpha_pattern": '{"attn.to_q": 2}', "lora_adapter_metadata": '{"transformer.r": 2}'}
    models = {}

    def model(path: Path, tensors: dict) -> str:
        """A sound file beside the one that is read."""
        if not (own := path.parent / "sound" / f"{len(tensors)}.safetensors").exists():
            own.parent.mkdir(exist_ok=True)
            weights.save(tensors, own)
        return str(own)

    def loaded(path: Path):
        if path.parent not in models:
            models.clear()
            models[path.parent] = loading.load_model(model(path, two), None, 1.0, "default")[0]
        return models[path.parent]

    def saved(tensors: dict, metadata: dict) -> Callable[[Path], object]:
        return lambda path: weights.save(tensors, path, metadata)

    def opened(path: Path) -> None:
        file = files.open_file(str(path))
        _ = file.backbone, file.native, file.second, file.lora, file.provenance, file.dtypes(), file.keys_found()
        file.tensors()

    def prompted(path: Path) -> None:
        node = part("nodes.cached_prompt")
        node.model_files.path_of = lambda name, *folders: str(path)
        node.CachedPrompt.execute(file=path.name)

    def remembered(path: Path) -> None:
        """The metadata, as core's own loaders hand them over."""
        import comfy.model_detection

        header = weights.read_header(path)
        comfy.model_detection.model_config_from_unet(dict(plain), "", metadata=header.metadata)

    def beside(path: Path) -> None:
        """A file of the same size in models/loras, which is looked into when core loads another."""
        import folder_paths

        own, stock = Path(folder_paths.models_dir, "loras", "x.safetensors"), part("nodes.stock_lora")
        own.write_bytes(path.read_bytes())
        stock.described({"a.weight": torch.empty(max(0, stock.body(own)), dtype=torch.uint8)})

    def inspected(path: Path) -> None:
        part("nodes.inspector").inspect(str(path)).text()

    safe = mutations.safetensors
    return {
        "nodes open_file": Reader(".safetensors", saved(two, about("two")), opened, safe),
        "nodes open_file gguf": Reader(".gguf", gguf_file.write, opened),
        "nodes open_file lora": Reader(".safetensors", saved(lora, about("fold") | pattern), opened, safe),
        "nodes model_loader": Reader(
            ".safetensors", saved(two, about("two")), lambda p: loading.load_model(str(p), None, 1.0, "default"), safe
        ),
        "nodes adapter": Reader(
            ".safetensors", saved(lora | tiny.second_embedder(plain), about("two")),
            lambda p: loading.load_model(model(p, plain), str(p), 1.0, "default"), safe,
        ),
        "nodes lora_loader": Reader(
            ".safetensors", saved(lora, about("two") | pattern),
            lambda p: part("nodes.lora_loader").apply_file(loaded(p), files.open_file(str(p)), 1.0)[1].text(), safe,
        ),
        "nodes inspector": Reader(".safetensors", saved(lora, about("fold")), inspected, safe),
        "nodes cached_prompt": Reader(
            ".safetensors", saved(prompt, {"twinflow.prompts": '{"a": "b"}'}),
            prompted, safe,
        ),
        "nodes saved": Reader(".safetensors", saved({"a": torch.zeros(2)}, about("two")), remembered, safe),
        "nodes stock_lora": Reader(".safetensors", saved({"a.weight": torch.zeros(2)}, about("fold")), beside, safe),
    }  # fmt: skip
