"""Prompts without a text encoder: a learnt token for every known word.

One safetensors file: `words` (N, D), and its metadata key `twinflow.words`, the list of the N words.  The first one is "",
the empty prompt.
"""

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .plain_json import loads
from .prompts import Prompt
from .weights import WeightsError, load, read_header, save

WORD = re.compile(r"[a-z0-9]+|[#*]")


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, without accents, apostrophes and punctuation."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return WORD.findall(re.sub("['’]", "", plain))


@dataclass
class Words:
    """words: "" and the known ones.  vectors: their tokens (N, D)."""

    words: Sequence[str]
    vectors: Tensor

    def __post_init__(self):
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def numbers_of(self, text: str) -> list[int]:
        """The rows of a prompt's words; of the empty prompt where it has none.  Raises ValueError for unknown words."""
        words = words_of(text) or [""]
        if unknown := [word for word in words if word not in self.numbers]:
            near = difflib.get_close_matches(unknown[0], self.words, 3, 0.5)
            known = f"near ones are {', '.join(near)}" if near else f"known are {len(self.words) - 1} words of names of emoji"
            raise ValueError(f"the word {unknown[0]!r} of {text!r} is not known; {known}")
        return [self.numbers[word] for word in words]

    def encode(self, text: str) -> Prompt:
        """The prompt's tokens (L, D).  Raises ValueError for unknown words."""
        return Prompt(text, self.vectors[self.numbers_of(text)])


def save_words(path: str | os.PathLike, words: Words, metadata: dict[str, str] | None = None) -> None:
    save({"words": words.vectors}, path, {"twinflow.words": json.dumps(list(words.words)), **(metadata or {})})


def load_words(path: str | os.PathLike) -> Words:
    """Raises WeightsError for a file that holds none."""
    try:
        names = loads(read_header(path).metadata["twinflow.words"])
        vectors = load(path)["words"]
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("the words are no texts")
        if len(names) != len(vectors) or names[0] != "":
            raise ValueError("the words do not fit their tokens")
    except WeightsError:
        raise
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{path}: holds no word tokens ({error}); expected the words.safetensors that belongs to a base"
        ) from None
    return Words(names, vectors.float())
