"""OpenUni: InternVL3's language model reads the prompt for SANA.  The velocity is SANA's own.

Learnt queries follow the prompt through the language model; a connector and a projection make of their states what SANA
attends to.  The released TwinFlow code freezes all four and trains SANA alone.  So do we; hence a prompt's embeds are the
projection's output, cached like any other, and InternVL and the connector never lie in memory beside the transformer.

A source is an OpenUni checkpoint (.pth), or a local folder with one; internvl/, vae/ (DC-AE) and transformer/ (SANA)
beside it are used, and what is not there is fetched as published.  Any source of a SANA will do, too: all that it lacks
is then the published one.
Sources: OpenUni (arXiv 2505.23661, wusize/OpenUni); the released TwinFlow code.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderDC
from torch import Tensor, nn
from transformers import (
    Qwen2Config,
    Qwen2Model,
    Qwen2TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  made when it is asked for
    SiglipVisionConfig,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from twinflow.backbones import openuni as known
from twinflow.layouts import blocks
from twinflow.plain_json import loads
from twinflow.prompts import Prompt
from twinflow.weights import load, read_header

from .. import TrainerError
from . import sources
from .diffusers_model import PipelineEncoder, load_part
from .images import ImageCodec
from .sana import Sana
from .sizes import DC, Size

PUBLISHED = {  # part: repository, and what of it is needed
    "transformer": ("Efficient-Large-Model/Sana_1600M_512px_diffusers", ("transformer",)),
    "internvl": ("OpenGVLab/InternVL3-2B", ("*.json", "*.txt", "*.safetensors")),
    "vae": ("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", ("*.json", "*.safetensors")),
}
QUERIES = "meta_queries"  # (queries, width of the language model): in every OpenUni checkpoint
READING = (QUERIES, "connector.", "projector.")  # its tensors beside SANA's
HEAD = 64  # width of the connector's heads: in no tensor, but the same in all published sizes
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<img>"
LANGUAGE = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(.+)")  # InternVL's own names, and those of transformers


class Reader(nn.Module):
    """From the tokens of a prompt to what SANA attends to.  All but text_encoder bear the names of the checkpoint.

    The connector is SigLIP's encoder: layers with the norm first, no mask, no norm at the end.
    """

    def __init__(self, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tokenizer: Any):
        super().__init__()
        self.tokenizer = tokenizer
        self.text_encoder = Qwen2Model(Qwen2Config(**{**settings, "attn_implementation": "sdpa"}))
        width = shapes[QUERIES][1]
        config = SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=shapes["connector.layers.0.mlp.fc1.bias"][0],
            num_hidden_layers=blocks(shapes, "connector.layers.{}.mlp.fc1.bias"),
            num_attention_heads=width // HEAD,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]  of every configuration, by keyword only
        )
        self.connector = SiglipEncoder(config)  # pyright: ignore[reportArgumentType]  the vision half's settings are enough
        self.projector = nn.Linear(width, shapes["projector.bias"][0])
        self.meta_queries = nn.Parameter(torch.empty(shapes[QUERIES]))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens without padding to (B, queries, D), float32."""
        prompt = self.text_encoder.get_input_embeddings()(tokens)
        queries = self.meta_queries.to(prompt.dtype).expand(len(prompt), -1, -1)
        out = self.text_encoder(inputs_embeds=torch.cat([prompt, queries], dim=1), use_cache=False)
        states = out.last_hidden_state[:, -len(self.meta_queries) :].float()
        return self.projector(self.connector(inputs_embeds=states).last_hidden_state)


class OpenUni(Sana):
    core = known.BACKBONE
    text_parts = ("internvl",)
    # the text encoders are the language model and, in fp32, the connector
    limits = {}  # nothing is cut
    sizes = {"openuni": Size(dict(), channels=32, text=3.7, vae=DC)}

    def recipe(self, mode: str) -> dict[str, Any]:
        """With the guidance of the released configuration (a ratio of .8), at the size of the published model."""
        return dict(guidance=5.0, resolution=512)

    def read(self, source: str, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], Path | None]:
        file = checkpoint(source)
        if file is None:
            return super().read(source, dtype)
        tensors = read_checkpoint(file)
        if not any(name.startswith("transformer.") for name in tensors):  # of the pretraining: SANA as it was
            return sources.transformer_tensors(self.part(source, "transformer"), source)
        beside = file.parent / "transformer"
        return tensors, beside if (beside / "config.json").is_file() else None

    def part(self, source: str, name: str) -> Path:
        """The folder of one part: of the source where it has one, else the published one.  Raises TrainerError."""
        if source and not source.endswith((".safetensors", ".sft")):
            file = checkpoint(source)
            root = file.parent if file else sources.fetch(source, (name,))
            if (root / name).is_dir():
                return root / name
        repository, wanted = PUBLISHED[name]
        root = sources.fetch(repository, wanted)
        return root / name if wanted == (name,) else root

    def check_encoders(self, asked: str) -> None:
        if not asked.endswith(".pth"):
            super().check_encoders(asked)

    def text_encoder(self, source: str = "", *, dtype: torch.dtype = torch.bfloat16, device: Any = "cpu") -> PipelineEncoder:
        """The language model in dtype and the connector in float32, of a source or as published.  Raises TrainerError."""
        folder = self.part(source, "internvl")
        file = lambda: self.checkpoint(source)
        reader = load_part(lambda: read_reader(folder, file, dtype), folder.parent, (folder.name,))
        return PipelineEncoder(reader, self.encode_prompt).to(device)

    def encode_prompt(self, pipeline: Reader, text: str, device: torch.device) -> Prompt:
        """The learnt queries' states: as many tokens for every prompt."""
        request = f"Generate an image: {text.strip()}" if text.strip() else "Generate an image."
        tokens = pipeline.tokenizer(TURN.format(request), return_tensors="pt").input_ids
        return Prompt(text, pipeline(tokens.to(device))[0])

    def checkpoint(self, source: str) -> Path:
        """The .pth of a source, or the published one.  Raises TrainerError."""
        file = checkpoint(source) or checkpoint(self.repository)
        assert file is not None  # the published one names a file
        return file

    def text_files(self, source: str) -> list[Path]:
        folder, file = self.part(source, "internvl"), self.checkpoint(source)
        return [*folder.glob("*"), file]

    def image_files(self, source: str) -> list[Path]:
        return list(self.part(source, "vae").glob("*"))

    def image_codec(self, source: str = "", *, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> ImageCodec:
        folder = self.part(source, "vae")
        load_vae = lambda: AutoencoderDC.from_pretrained(folder, torch_dtype=dtype)
        return ImageCodec(load_part(load_vae, folder.parent, (folder.name,)).to(device))

    def from_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Also of a whole OpenUni checkpoint, whose other parts are left out."""
        whole = QUERIES in tensors
        return super().from_file({n: t for n, t in tensors.items() if n.startswith("transformer.") or not whole})


def checkpoint(source: str) -> Path | None:
    """The .pth that a source is or, a local folder, holds; None where there is none.  Raises TrainerError."""
    if source.endswith(".pth"):
        return sources.fetch(source, (), file=".pth")
    found = sorted(Path(source).expanduser().glob("*.pth")) if source else []
    if len(found) > 1:
        raise TrainerError(f"model source {source!r}: holds {len(found)} .pth files; expected one, or the name of one of them")
    return found[0] if found else None


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of an OpenUni checkpoint, left on disk until they are used; no other object is ever unpickled.

    Raises TrainerError.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError:
        raise TrainerError(
            f"{file}: holds other objects than tensors, and to read those can run anybody's code; "
            "expected an OpenUni checkpoint of tensors alone, as wusize/openuni has them"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise TrainerError(f"{file}: cannot be read as a .pth ({str(error).splitlines()[0]}); fetch it again") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if QUERIES not in state:
        raise TrainerError(f"{file}: has no {QUERIES!r}; expected an OpenUni checkpoint")
    return {name: t for name, t in state.items() if isinstance(t, Tensor)}


def read_reader(folder: Path, find: Callable[[], Path], dtype: torch.dtype) -> Reader:
    """From InternVL's folder and the checkpoint that find() names, which is fetched only if InternVL is sound."""
    config = loads((folder / "config.json").read_text("utf-8"))
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
    language = read_language(folder)
    file = find()
    tensors = {name: t.float() for name, t in read_checkpoint(file).items() if name.startswith(READING)}
    with init_empty_weights():  # the rotary tables are real: only the parameters wait for the files
        reader = Reader(config.get("llm_config") or config["text_config"], {n: t.shape for n, t in tensors.items()}, tokenizer)
    tensors |= {f"text_encoder.{name}": sources.cast(t, dtype) for name, t in language.items()}
    tensors = {name: tensors[name] for name in reader.state_dict() if name in tensors}
    sources.check_fits({name: ("", tuple(t.shape)) for name, t in tensors.items()}, reader, f"{file} with {folder}")
    reader.load_state_dict(tensors, assign=True)
    return reader.eval().requires_grad_(False)


def read_language(folder: Path) -> dict[str, Tensor]:
    """The language model of an InternVL under Qwen2Model's names; the part for images is not read."""
    tensors: dict[str, Tensor] = {}
    for file in sources.weight_files(folder):
        names = {name: match[1] for name in read_header(file).tensors if (match := LANGUAGE.fullmatch(name))}
        tensors |= {names[name]: t for name, t in load(file, names).items()}
    return tensors


BACKBONES = {name: OpenUni(name) for name in known.BACKBONE.models}
