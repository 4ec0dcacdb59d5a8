"""Prompts of words: how a text is read, what is refused, and the file of tokens."""

import json

import pytest
import torch

from twinflow.weights import WeightsError, save
from twinflow.words import Words, load_words, save_words, words_of

WORDS = Words(["", "cat", "face", "flag", "grinning", "of"], torch.arange(12.0).reshape(6, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Grinning  CAT, face!", ["grinning", "cat", "face"]),
        ("Côte d’Ivoire", ["cote", "divoire"]),
        ("cote d'ivoire", ["cote", "divoire"]),
        ("smiling cat with heart-eyes", ["smiling", "cat", "with", "heart", "eyes"]),
        ("keycap *", ["keycap", "*"]),
        ("St. Martin", ["st", "martin"]),
        (" , ", []),
        ("", []),
        ("猫", []),
    ],
)
def test_words_of_a_text(text, words):
    assert words_of(text) == words


def test_a_prompt_is_its_words_tokens_in_their_order():
    prompt = WORDS.encode("Face, cat")
    assert prompt.text == "Face, cat" and torch.equal(prompt.embeds, WORDS.vectors[[2, 1]])


def test_a_text_without_words_is_the_empty_prompt():
    assert torch.equal(WORDS.encode(" ").embeds, WORDS.vectors[:1])


def test_an_unknown_word_is_refused_with_near_ones():
    with pytest.raises(ValueError, match="'grining' of 'grining cat' is not known; near ones are grinning"):
        WORDS.encode("grining cat")
    with pytest.raises(ValueError, match="known are 5 words"):
        WORDS.encode("xyzzyxyzzy")


def test_the_file_gives_back_what_was_written(tmp_path):
    save_words(tmp_path / "w.safetensors", WORDS, {"licence": "x"})
    read = load_words(tmp_path / "w.safetensors")
    assert list(read.words) == list(WORDS.words) and torch.equal(read.vectors, WORDS.vectors)


@pytest.mark.parametrize("listed", [None, "[", '["", "cat"]', '["cat", "a", "b", "c", "d", "e"]', "3", "{}"])
def test_a_file_that_holds_no_words_is_named(tmp_path, listed):
    path = tmp_path / "w.safetensors"
    save({"words": WORDS.vectors}, path, {} if listed is None else {"twinflow.words": listed})
    with pytest.raises(WeightsError, match=r"w\.safetensors: holds no word tokens"):
        load_words(path)


def test_a_file_without_tokens_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save({"other": WORDS.vectors}, path, {"twinflow.words": json.dumps(WORDS.words)})
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        load_words(path)
