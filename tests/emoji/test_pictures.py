"""The pictures: their names, what is held out, and the batches."""

import re

import pytest
import torch
from sklearn.model_selection import train_test_split

from trainer.data import emoji
from trainer.data.emoji import NumberedEmoji, caption_of, pictures, sayable, split, vocabulary
from twinflow.words import Words, words_of


@pytest.fixture(scope="module")
def train():
    return split()[0]


@pytest.fixture(scope="module")
def words():
    listed = vocabulary()
    return Words(listed, torch.zeros(len(listed), 1))


def test_pictures_and_names():
    every = pictures()
    assert len(every.captions) == len(set(every.captions)) == len(every.pixels) > 3900
    assert every.pixels.shape[1:] == (3, 32, 32) and every.pixels.dtype == torch.uint8
    assert (every.pixels[:, :, 0, 0] == 255).all(1).float().mean() > 0.9, "over white"
    heart = every.pixels[every.captions.index("red heart")].float()
    assert heart[0, 16, 16] > 150 and heart[1, 16, 16] < 80
    assert {"flag of Japan", "flag of Scotland", "grinning face", "pirate flag"} <= set(every.captions)


@pytest.mark.parametrize(
    ("emoji_", "name", "caption"),
    [
        ("\U0001f44b\U0001f3fd", ":waving_hand_medium_skin_tone:", "waving hand medium skin tone"),
        ("\U0001f1ef\U0001f1f5", ":Japan:", "flag of Japan"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", ":Scotland:", "flag of Scotland"),
        ("\U0001f355", ":pizza:", "pizza"),
    ],
)
def test_captions(emoji_, name, caption):
    assert caption_of(emoji_, name) == caption


def test_a_fifth_of_the_names_is_held_out_with_their_skin_tones(train):
    names = sorted(set(pictures().names))
    assert not any(re.search("(light|dark|medium) skin tone", name) for name in names if name[-9:] != "skin tone")
    _, held_out = train_test_split(names, test_size=0.2, random_state=0)
    assert set(split()[1].names) == set(held_out) and not set(train.names) & set(held_out)
    assert len(held_out) == -(-len(names) // 5)


def test_no_picture_that_is_held_out_is_trained_on_under_another_name(train):
    seen = {x.numpy().tobytes() for x in train.pixels}
    assert not any(x.numpy().tobytes() in seen for x in split()[1].pixels)


def test_the_words_are_those_that_are_trained_on(train):
    listed = vocabulary()
    assert listed[0] == "" and listed == ["", *sorted(set(listed[1:]))]
    assert set(listed[1:]) == {word for caption in train.captions for word in words_of(caption)}
    unseen = split()[1].captions
    some = sayable(unseen, listed)
    assert 0 < len(some) < len(unseen) and all(set(words_of(unseen[i])) <= set(listed) for i in some)


def test_batches_are_functions_of_their_number(train, words):
    a, b = (NumberedEmoji(train, words).batch_at(3, 16, 0) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1][0], b[1][0])
    other = NumberedEmoji(train, words).batch_at(4, 16, 0)
    assert not torch.equal(a[0], other[0])
    assert a[0].shape == (16, 3, 32, 32) and a[0].min() >= -1 and a[0].max() <= 1
    assert (a[2][0] == torch.tensor([0] + [-1] * (a[2][0].shape[1] - 1))).all()


def test_prompts_are_left_out_and_thinned_as_often_as_said(train, words):
    rows, n = NumberedEmoji(train, words), 4000
    _, (numbers,), _ = rows.batch_at(0, n, 0)
    full = {tuple(p) for p in rows.prompts}
    prompts = [tuple(w for w in row if w >= 0) for row in numbers.tolist()]
    empty = sum(p == (0,) for p in prompts) / n
    assert abs(empty - emoji.UNNAMED) < 0.02
    assert 0.03 < sum(p not in full and p != (0,) for p in prompts) / n < emoji.THINNED + 0.02
    plain = NumberedEmoji(train, words, varied=False)
    assert len(plain) == len(train.captions)
    _, (numbers,), _ = plain.batch_at(0, 500, 0)
    assert {tuple(w for w in row if w >= 0) for row in numbers.tolist()} <= full


def test_lonely_pictures_are_shown_more_often(train, words):
    rows = NumberedEmoji(train, words).rows
    pizza, thumb = train.captions.index("pizza"), train.captions.index("thumbs up dark skin tone")
    assert rows.count(pizza) == emoji.ALONE and rows.count(thumb) == 1
