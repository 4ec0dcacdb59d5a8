"""Encoded once, named by what decides it, filled again where it stopped, and the encoders gone afterwards."""

import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from trainer import TrainerError
from trainer.data import Cache, Encoder
from trainer.data.buckets import Buckets
from trainer.data.cache import Caption, Shot
from trainer.data.digests import Digests
from trainer.data.rows import ImageFile
from twinflow.weights import save

from .conftest import TextEncoder, collate, draw


def files(cache, kind="*"):
    return sorted(cache.folder.glob(f"{kind}/*/*.safetensors"))


def test_files_say_what_the_encoders_say(prepared, cache, folder):
    data, _ = prepared(folder, captions="lines")
    torch.manual_seed(0)
    module = TextEncoder()
    for row in data.rows:
        x = torch.stack([data.cache.latents(row.target)])
        assert x.shape == (1, 4, row.size[0] // 8, row.size[1] // 8)
        for caption in row.captions:
            got, expected = data.cache.prompt(caption), module([caption.text])[0]
            assert got.text == caption.text and torch.equal(got.embeds, expected.embeds)
            assert got.embeds.shape == (len(caption.text) + 1, 16)  # not padded
    assert len(files(cache, "latents")) == 6
    assert len(files(cache, "captions")) == 3 + 5 + 1  # and one null prompt for all rows


def test_second_time_nothing_is_loaded_or_written(prepared, cache, folder, text, image):
    prepared(folder)
    before = {path: path.stat().st_mtime_ns for path in files(cache)}
    prepared(folder)
    assert (text.opened, image.opened) == (1, 1)
    assert {path: path.stat().st_mtime_ns for path in files(cache)} == before


def test_encoders_are_freed_and_never_together(prepared, cache, folder, text, image):
    alone = []

    def open_text():
        alone.append(image.freed)
        return text.open()

    cache.text = Encoder(text.identity, open_text)
    prepared(folder)
    assert alone == [True] and text.freed and image.freed


def test_filling_goes_on_where_it_stopped(prepared, cache, folder, image):
    made = image.module

    def interrupt(module, inputs):
        if len(image.inputs) > 2:
            raise KeyboardInterrupt

    def breaks():
        module = made()
        module.register_forward_pre_hook(interrupt)
        return module

    image.module = breaks
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, encode_batch=1)
    there = {path: path.stat().st_mtime_ns for path in files(cache)}
    assert len(there) == 2
    image.module, image.inputs = made, []
    prepared(folder)
    assert sum(len(x) for (x,) in image.inputs) == 4
    assert len(files(cache, "latents")) == 6
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert not list(cache.folder.rglob("*.tmp"))


def test_everything_that_matters_changes_the_name(tmp_path, cache):
    shot = Shot(ImageFile(tmp_path / "a.png"), "digest", (32, 32))
    caption = Caption("a", (shot,))
    other = Encoder("other", cache.text.open)
    half = Cache(cache.folder, cache.text, cache.image, torch.bfloat16)
    latents = [
        cache.latents_path(shot),
        cache.latents_path(shot._replace(digest="another")),
        cache.latents_path(shot._replace(size=(32, 40))),
        Cache(cache.folder, cache.text, other, torch.float32).latents_path(shot),
        half.latents_path(shot),
    ]
    assert len(set(latents)) == len(latents)
    assert cache.latents_path(shot._replace(image=ImageFile(tmp_path / "moved.png"))) == latents[0]
    captions = [
        cache.caption_path(caption),
        cache.caption_path(Caption("b", (shot,))),
        cache.caption_path(Caption("a")),
        cache.caption_path(Caption("a", (shot._replace(digest="another"),))),
        Cache(cache.folder, other, cache.image, torch.float32).caption_path(caption),
        half.caption_path(caption),
    ]
    assert len(set(captions)) == len(captions)


def test_changed_image_is_encoded_anew(prepared, cache, folder, image):
    prepared(folder)
    draw(folder / "2.png", 40, 40, seed=99)
    prepared(folder)
    assert [len(x) for (x,) in image.inputs][-1] == 1 and len(files(cache, "latents")) == 7


def test_copies_share_a_file(prepared, cache, folder):
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "copy.txt").write_text("one")
    data, report = prepared(folder, captions="lines")
    assert report.used == 7 and len(files(cache, "latents")) == 6 and len(files(cache, "captions")) == 9


def test_broken_images_are_skipped_by_name_once(prepared, folder, image):
    whole = (folder / "0.png").read_bytes()
    (folder / "1.png").write_bytes(b"no image")  # seen at once
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])  # seen when decoded
    for _ in range(2):
        data, report = prepared(folder)
        assert len(data) == report.used == 4
        (names,) = report.skipped.values()
        assert list(report.skipped) == ["broken image"] and ["1.png" in names[0], "2.png" in names[1]] == [True, True]
    assert image.opened == 1  # the second run knows


def test_latents_that_are_not_finite_are_skipped(prepared, folder, image):
    made = image.module

    def overflows():
        module = made()
        module.register_forward_hook(lambda m, x, y: y.index_fill(0, torch.tensor([0]), float("nan")))
        return module

    image.module = overflows
    _, report = prepared(folder, encode_batch=100)
    assert report.used == 4 and len(report.skipped["latents are not finite"]) == 2  # the first of either size


def test_none_left(prepared, folder):
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(TrainerError, match="holds no usable row.*6 empty caption"):
        prepared(folder)


def test_report_on_disk(prepared, folder, tmp_path):
    (folder / "1.txt").unlink()
    _, report = prepared(folder)
    report.write(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert '"used": 5' in text and "1.png" in text and '"empty caption"' in text
    assert str(report).startswith("5 rows in 2 buckets; 1 skipped: 1 empty caption (")


def test_processes_share_the_work(prepared, folder, image, text, cache):
    """Process 1 of 2 does its half only; process 0 the rest; together they did each file once."""
    with pytest.raises(TrainerError, match="is missing though its process is done"):
        prepared(folder, share=(1, 2), captions="lines")
    half = len(files(cache))
    data, _ = prepared(folder, share=(0, 2), captions="lines")
    assert half == 3 + 4 and len(files(cache)) == 15 and len(data) == 6
    assert sum(len(x) for (x,) in image.inputs) == 6 and sum(len(x) for (x,) in text.inputs) == 9


@pytest.mark.parametrize("sharing", [True, False])
def test_two_processes_at_once(folder, tmp_path, sharing):
    """Both fill one folder at the same time, half each or all of it, and train on the same numbers."""
    code = f"""
import sys, time, torch
from pathlib import Path
sys.path[:0] = {sys.path!r}
from torch import nn
from trainer.data import Cache, DataRequest, Encoder, prepare
from twinflow.prompts import Prompt
collate = lambda prompts: (nn.utils.rnn.pad_sequence([p.embeds for p in prompts], batch_first=True),)
rank, folder, seen = int(sys.argv[1]), Path({str(tmp_path)!r}), []
def image():
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 8, stride=8)
    return lambda x: seen.append(len(x)) or module(x)
def text():
    return lambda texts: [Prompt(t, torch.full((len(t) + 1, 4), float(len(t)))) for t in texts]
def wait():
    (folder / f"done{{rank}}").touch()
    until = time.monotonic() + 120
    while not (folder / f"done{{1 - rank}}").exists() and time.monotonic() < until:
        time.sleep(0.01)
cache = Cache(folder / "cache", Encoder("t", text), Encoder("i", image))
settings = DataRequest({str(folder)!r}, resolution=32, multiple=8, aspect=2.0, aspects="1:1", encode_batch=1)
data, _ = prepare(settings, cache, collate, share=(rank, 2) if {sharing} else (0, 1), wait=wait)
print(sum(seen))
print([float(data.batch_at(i, 2, 0)[0].sum()) for i in range(6)])
"""
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in (0, 1)]
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    (first, batches), (second, others) = (out.splitlines() for out, _ in said)
    assert batches == others and batches.count(",") == 5
    assert [first, second] == ["3", "3"] if sharing else int(first) + int(second) >= 6


@pytest.mark.parametrize("left", [0, 50, -10])
def test_damaged_files_are_made_anew(prepared, cache, folder, left, capsys, image, text):
    data, _ = prepared(folder)
    row = data.rows[0]
    wanted, paths = (
        data.cache.latents(row.target).clone(),
        (cache.latents_path(row.target), cache.caption_path(row.captions[0])),
    )
    for path in paths:
        content = path.read_bytes()[:left]
        path.unlink()  # what was read may still look into it
        path.write_bytes(content)
    capsys.readouterr()
    data, _ = prepared(folder, encode_batch=1)
    said = capsys.readouterr().out
    assert all(str(path) in said for path in paths) and said.count("is damaged, and is encoded anew") == 2
    assert torch.allclose(data.cache.latents(row.target), wanted) and (image.opened, text.opened) == (2, 2)


@pytest.mark.parametrize("content", [b"", "another"])
def test_a_file_damaged_while_training_is_made_anew_by_the_next_call(prepared, cache, folder, content):
    data, _ = prepared(folder)
    path = cache.latents_path(data.rows[0].target)
    path.unlink()
    path.write_bytes(content) if content == b"" else save({content: torch.zeros(1)}, path)
    with pytest.raises(TrainerError, match=f"{path}.*Run the same command again: it is encoded anew") as error:
        data.cache.latents(data.rows[0].target)
    assert "delete" not in str(error.value)
    data, _ = prepared(folder)
    assert data.cache.latents(data.rows[0].target).isfinite().all()


def test_data_are_known_by_their_content(prepared, folder, tmp_path):
    _, first = prepared(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    _, copied = prepared(tmp_path / "elsewhere")
    assert first.content == copied.content
    first.write(tmp_path / "rows.json")
    assert copied.change(tmp_path / "rows.json") == "" == copied.change(tmp_path / "none.json")
    (folder / "1.txt").write_text("another caption", "utf-8")
    assert prepared(folder)[1].change(tmp_path / "rows.json") == "6 rows, others"
    (folder / "1.txt").unlink()
    assert prepared(folder)[1].change(tmp_path / "rows.json") == "5 rows, were 6"
    contents = {prepared(folder, **changes)[1].content for changes in ({}, {"caption_dropout": 0.5}, {"resolution": 64})}
    assert len(contents) == 3
    (tmp_path / "rows.json").write_text('{"used": 5}', "utf-8")  # of an older version
    assert prepared(folder)[1].change(tmp_path / "rows.json") == ""


def test_folder_that_cannot_be_made(prepared, folder, cache, tmp_path):
    (tmp_path / "file").touch()
    cache.folder = tmp_path / "file" / "cache"
    with pytest.raises(TrainerError, match="cannot be made"):
        prepared(folder)


def test_digests_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    file = ImageFile(draw(tmp_path / "a.png", 8, 16))
    digests = Digests(tmp_path / "digests.json")
    first = digests(file)
    digests.save()
    reads = []
    monkeypatch.setattr(ImageFile, "read", lambda self: reads.append(self) or self.path.read_bytes())
    assert Digests(tmp_path / "digests.json")(file) == first == (first[0], (8, 16)) and not reads
    Image.new("RGB", (16, 16)).save(file.path)
    changed = Digests(tmp_path / "digests.json")(file)
    assert reads and changed[0] != first[0] and changed[1] == (16, 16)
    (tmp_path / "digests.json").write_text("{damaged")
    assert Digests(tmp_path / "digests.json")(file) == changed


def test_files_are_plain_safetensors_in_the_cache_dtype(tmp_path, text, image, folder):
    from trainer.data import DataRequest, prepare

    cache = Cache(tmp_path / "half", Encoder(text.identity, text.open), Encoder(image.identity, image.open))
    prepare(DataRequest(str(folder), resolution=32, multiple=8, aspect=2.0, aspects="1:1", encode_batch=4), cache, collate)
    for path in files(cache):
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}


def test_buckets_are_what_prepare_uses(prepared, folder):
    data, report = prepared(folder, resolution=64, multiple=16)
    sizes = {row.size for row in data.rows}
    assert sizes == {Buckets(64, 16, 2.0).nearest(1, 1), Buckets(64, 16, 2.0).nearest(2, 1)} and len(report.buckets) == 2


def test_settings_are_checked(prepared, folder):
    with pytest.raises(TrainerError, match="caption_dropout is 2"):
        prepared(folder, caption_dropout=2)
