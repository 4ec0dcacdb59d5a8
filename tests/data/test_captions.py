"""Triggers and orders of tags: what is trained of a caption."""

from collections import Counter

import pytest

from trainer import TrainerError
from trainer.config.resolving import resolve
from trainer.data.captions import made, orders
from trainer.data.sources import Source

from .conftest import draw


@pytest.mark.parametrize(
    "text, trigger, trained",
    [
        ("a cat", "sks", "sks a cat"),
        ("a cat", "sks,", "sks, a cat"),
        ("a cat", "a b*", "a b* a cat"),
        ("a sks cat", "sks", "a sks cat"),
        ("sks", "sks", "sks"),
        ("asks a cat", "sks", "sks asks a cat"),
        ("猫", "名", "名 猫"),
        ("a cat", "", "a cat"),
        ("a cat", "  ", "a cat"),
    ],
)
def test_a_trigger_stands_before_each_caption_once(text, trigger, trained):
    assert made((text, text), Source(trigger=trigger)) == (trained, trained)


def test_a_trigger_stands_alone_where_there_is_no_caption():
    assert made((), Source(trigger="sks")) == ("sks",)
    assert made((), Source(trigger="sks", caption="a photo")) == ("sks a photo",)
    assert made((), Source()) == ()


def test_orders_of_tags():
    text = "hat,  red cat, mat, 1girl, , sky"
    found = orders(text, 9, 1)
    assert found == orders(text, 9, 1) and len(found) == 9 and found[0] == text
    for order in found[1:]:
        tags = order.split(", ")
        assert tags[0] == "hat" and Counter(tags) == {"hat": 1, "red cat": 1, "mat": 1, "1girl": 1, "sky": 1}
    assert len(set(found)) > 4 and orders(text, 3, 1) == found[:3]
    assert orders(text, 1, 0) == [text] and orders(text, 4, 4) == [text] * 4 and orders("a cat", 3, 0) == ["a cat"] * 3


def test_a_trigger_stays_before_shuffled_tags():
    trained = made(("a, b, c, d", "one text"), Source(trigger="sks,", orders=6))
    assert len(trained) == 12 and all(text.startswith("sks, ") for text in trained)
    assert trained[6:] == ("sks, one text",) * 6  # captions of a row are drawn equally often, whatever their tags


def test_each_epoch_draws_an_order(prepared, tmp_path, text):
    for name in "xy":
        draw(tmp_path / "a" / f"{name}.png", 32, 32, seed=ord(name)).with_suffix(".txt").write_text("a, b, c, d, e")
    data, _ = prepared(tmp_path / "a", shuffle_tags=5, keep_tags=1)
    drawn = [[data.caption(epoch, row, seed=3).text for epoch in range(40)] for row in range(2)]
    assert len(set(drawn[0])) == len(set(drawn[1])) == 5 and drawn[0] != drawn[1]
    again, _ = prepared(tmp_path / "a", shuffle_tags=5, keep_tags=1)
    assert drawn == [[again.caption(epoch, row, seed=3).text for epoch in range(40)] for row in range(2)]
    assert sum(len(texts) for texts, *_ in text.inputs) == 5 + 1  # each order once, and the null prompt


def test_tags_that_are_kept_of_none_that_are_shuffled():
    with pytest.raises(TrainerError, match="--keep-tags is 2, and no tags are shuffled"):
        resolve("lora", {"model": "sana", "keep_tags": 2}, notify=lambda line: None)


def test_rows_whose_caption_is_not_their_own_are_named(prepared, tmp_path):
    for name, caption in {"none": None, "empty": "\n", "own": "a cat"}.items():
        path = draw(tmp_path / "a" / f"{name}.png", 32, 32, seed=len(name))
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)
    for given, trained in ((dict(trigger="sks"), "sks"), (dict(caption="a photo"), "a photo")):
        data, report = prepared(tmp_path / "a", **given)
        assert [row.captions[0].text for row in data.rows][:2] == [trained] * 2
        assert report.noted["no caption of its own"] == [str(tmp_path / "a" / f"{name}.png") for name in ("empty", "none")]
