"""batch_at: shapes, buckets, captions and dropout, all from (seed, index) alone."""

from collections import Counter

import pytest
import torch
from PIL import Image

from trainer import TrainerError
from trainer.data import Cache

from .conftest import draw, write_jsonl


def same(a, b):
    return torch.equal(a[0], b[0]) and all(torch.equal(c, d) for i in (1, 2) for c, d in zip(a[i], b[i], strict=True))


def test_shapes_and_padding(prepared, folder):
    data, _ = prepared(folder)
    assert len(data) == 6
    for i in range(6):
        x, cond, uncond = data.batch_at(i, 3, seed=0)
        assert x.shape in ((3, 4, 4, 4), (3, 4, 5, 3)) and x.dtype == torch.float32
        (embeds, mask), (null, null_mask) = cond, uncond
        assert embeds.shape == null.shape and mask.shape == null_mask.shape == embeds.shape[:2]
        assert null_mask.sum(1).tolist() == [1, 1, 1] and (mask.sum(1) >= 4).all()
        assert (embeds[~mask] == 0).all()


def test_rows_and_captions_belong_together(prepared, folder):
    data, _ = prepared(folder)
    by_latents = {tuple(data.cache.latents(row.target).flatten().tolist()): row for row in data.rows}
    for i in range(12):
        x, (embeds, mask), _ = data.batch_at(i, 2, seed=5)
        for latents, e, m in zip(x, embeds, mask):
            row = by_latents[tuple(latents.flatten().tolist())]
            assert any(torch.equal(e[m], data.cache.prompt(c).embeds) for c in row.captions)


def test_exact_resumption(prepared, folder):
    data, _ = prepared(folder, caption_dropout=0.3)
    straight = [data.batch_at(i, 2, seed=7) for i in range(10)]
    again, _ = prepared(folder, caption_dropout=0.3)
    assert all(same(again.batch_at(i, 2, seed=7), straight[i]) for i in reversed(range(10)))
    assert not all(same(again.batch_at(i, 2, seed=8), straight[i]) for i in range(10))


def test_captions_take_turns(prepared, folder):
    data, _ = prepared(folder, captions="lines")
    drawn = Counter(data.caption(epoch, 0, seed=0).text for epoch in range(600))
    assert set(drawn) == {"one", "two", "three"} and min(drawn.values()) > 150
    assert [data.caption(e, 0, 0) for e in range(20)] == [data.caption(e, 0, 0) for e in range(20)]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_caption_dropout(prepared, folder, share):
    data, _ = prepared(folder, caption_dropout=share, null_prompt="blurry")
    drawn = [data.caption(epoch, row, seed=1).text == "blurry" for epoch in range(200) for row in range(6)]
    assert abs(sum(drawn) / len(drawn) - share) < 0.05
    assert share not in (0.0, 1.0) or sum(drawn) / len(drawn) == share


def test_null_prompt_is_the_unconditional_one(prepared, folder):
    data, _ = prepared(folder, null_prompt="bad art")
    _, _, (embeds, mask) = data.batch_at(0, 2, seed=0)
    assert mask.sum(1).tolist() == [8, 8]
    assert torch.equal(embeds[0][mask[0]], data.cache.prompt(data.rows[0].null).embeds)


def test_the_null_prompt_is_read_once(prepared, folder, monkeypatch):
    read, plain = [], Cache.prompt
    monkeypatch.setattr(Cache, "prompt", lambda cache, caption: read.append(caption.text) or plain(cache, caption))
    data, _ = prepared(folder, null_prompt="bad art", caption_dropout=0.5)
    for i in range(10):
        data.batch_at(i, 3, seed=0)
    assert read.count("bad art") == 1 and len(read) > 5


def test_repeats(prepared, folder):
    data, report = prepared(f"{folder}*3", captions="lines")
    assert len(data) == report.used == 18 and sum(report.buckets.values()) == 18
    captions = {tuple(data.caption(epoch, row, 0).text for epoch in range(30)) for row in range(3)}
    assert len(captions) == 3  # each repeat draws its own


def test_small_bucket_and_large_batch(prepared, folder):
    draw(folder / "wide.png", 16, 32).with_suffix(".txt").write_text("wide")
    data, _ = prepared(folder)
    shapes = Counter(data.batch_at(i, 4, seed=0)[0].shape[2:] for i in range(28))
    assert shapes == {(4, 4): 12, (5, 3): 12, (3, 5): 4}  # 3 : 3 : 1 rows


def test_image_free(prepared, tmp_path, image):
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(20)))
    shape = lambda height, width: (16, height // 8, width // 8)
    data, report = prepared(tmp_path / "prompts.txt", image_free=True, aspects="1:1,2:1", latents=shape)
    assert len(data) == 20 and not image.opened
    assert set(report.buckets) == {"32x32", "40x24"}
    shapes = set()
    for i in range(10):
        x, (embeds, mask), _ = data.batch_at(i, 2, seed=0)
        assert not x.any()
        shapes.add(tuple(x.shape[1:]))
    assert len(shapes) == 2 and all(s[0] == 16 for s in shapes)


def test_image_free_uses_the_captions_of_a_folder(prepared, folder, image):
    data, _ = prepared(folder, image_free=True, latents=lambda height, width: (4, height // 8, width // 8))
    assert len(data) == 6 and not image.opened and data.batch_at(0, 2, 0)[0].shape == (2, 4, 4, 4)


def test_edit(prepared, tmp_path, text):
    for i in range(4):
        draw(tmp_path / f"target{i}.png", 40, 40, seed=i)
        draw(tmp_path / f"source{i}.png", 32, 64, seed=10 + i)
    lines = [
        {"source": f"source{i}.png", "target": f"target{i}.png", "instruction": ["make it red", "redden"]} for i in range(3)
    ] + [{"source": ["source0.png", "target1.png"], "target": "target3.png", "instruction": "merge"}]
    data, _ = prepared(write_jsonl(tmp_path / "rows.jsonl", lines), edit=True)
    single = double = 0
    for i in range(8):
        x, cond, uncond = data.batch_at(i, 1, seed=0)
        assert x.shape == (1, 4, 4, 4) and cond[2].shape == (1, 4, 3, 5)
        assert all(torch.equal(c, u) for c, u in zip(cond[2:], uncond[2:], strict=True))
        single, double = single + (len(cond) == 3), double + (len(cond) == 4)
    assert single == 6 and double == 2  # batches never mix numbers of references
    first, second = (data.cache.prompt(data.rows[i].captions[0]).embeds for i in (0, 1))
    assert first.shape == second.shape and not torch.equal(first, second)  # the text encoder saw the sources
    nulls = {data.cache.caption_path(row.null) for row in data.rows}
    assert len(nulls) == 4
    assert all(len(texts) == len(seen) for texts, seen in text.inputs)


def test_edit_with_a_broken_source(prepared, tmp_path):
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png", 40, 40)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    lines = [{"source": s, "target": "b.png", "instruction": "x"} for s in ("a.png", "half.png", "absent.png")]
    data, report = prepared(write_jsonl(tmp_path / "rows.jsonl", lines), edit=True)
    assert len(data) == 1
    assert {why: len(names) for why, names in report.skipped.items()} == {"broken image": 1, "image cannot be read": 1}


def test_missing_cache_file_is_named(prepared, folder):
    data, _ = prepared(folder)
    path = data.cache.caption_path(data.rows[0].null)
    path.unlink()
    with pytest.raises(TrainerError, match=str(path)):
        data.batch_at(0, 2, 0)


@pytest.mark.parametrize("height, width, noted", [(8, 8, True), (32, 32, False), (15, 32, True), (400, 40, False)])
def test_enlarged_images_are_noted(prepared, tmp_path, height, width, noted):
    draw(tmp_path / "a" / "a.png", height, width).with_suffix(".txt").write_text("a")
    _, report = prepared(tmp_path / "a", upscale_limit=1.5)
    assert report.used == 1 and ("image enlarged more than 1.5 times" in report.noted) == noted


@pytest.mark.parametrize("height, width, noted", [(100, 4000, True), (4000, 100, True), (64, 64, False), (64, 160, False)])
def test_heavily_cut_images_are_noted(prepared, tmp_path, height, width, noted):
    draw(tmp_path / "a" / "a.png", height, width).with_suffix(".txt").write_text("a")
    _, report = prepared(tmp_path / "a")
    assert report.used == 1 and ("image of which more than 50% is cut off" in report.noted) == noted


def test_images_of_one_content_are_named(prepared, folder):
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "copy.txt").write_text("the same")
    _, report = prepared(f"{folder}*2,{folder}")  # a folder that is asked for twice has no copies
    assert report.noted["image with the same content as another"] == [f"{folder / 'copy.png'} (as {folder / '1.png'})"] * 2


def test_remarks_on_images_are_repeated_in_each_run(prepared, tmp_path):
    path = draw(tmp_path / "a" / "a.png", 40, 40).with_suffix(".gif")
    one, other = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40))
    one.save(path, save_all=True, append_images=[other])
    path.with_suffix(".txt").write_text("a")
    for _ in range(2):
        _, report = prepared(tmp_path / "a")
        assert report.noted["image of several frames or pages, of which the first is used"] == [str(path)]
