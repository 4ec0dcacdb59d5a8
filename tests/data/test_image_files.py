"""Pixels: upright, opaque, centred; damage is named."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from trainer.data.image_files import Broken, pixels, remarks, size


def encoded(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(height, width):
    """Black on the left, white on the right."""
    array = np.zeros((height, width, 3), np.uint8)
    array[:, width // 2 :] = 255
    return Image.fromarray(array)


def test_values_and_layout():
    x = pixels(encoded(halves(16, 32)), (16, 32))
    assert x.shape == (3, 16, 32) and x.dtype == torch.float32
    assert (x[:, :, :16] == -1).all() and (x[:, :, 16:] == 1).all()


def test_crop_is_centred_and_keeps_the_aspect():
    array = np.zeros((16, 48, 3), np.uint8)
    array[:, 16:32] = 255  # the middle third is white
    assert (pixels(encoded(Image.fromarray(array)), (16, 16)) == 1).all()
    disc = Image.new("L", (300, 100))
    disc.putdata([255 * ((i % 300 - 150) ** 2 + (i // 300 - 50) ** 2 < 1600) for i in range(30000)])
    x = pixels(encoded(disc), (50, 50))[0] > 0
    assert abs(int(x.any(0).sum()) - int(x.any(1).sum())) <= 1  # still round


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """An image stored turned, with the tag that says so, looks like the upright one."""
    upright = halves(16, 32)
    undo = {
        1: (), 2: (Image.Transpose.FLIP_LEFT_RIGHT,), 3: (Image.Transpose.ROTATE_180,), 4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,), 6: (Image.Transpose.ROTATE_90,), 7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_270,),
    }[orientation]  # fmt: skip
    stored = upright
    for turn in undo:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    assert size(data) == (16, 32)
    assert torch.equal(pixels(data, (16, 32)), pixels(encoded(upright), (16, 32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_lies_over_white(mode):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image = Image.new("P", (8, 8), 0) if mode == "P" else clear.convert(mode)
    data = encoded(image, transparency=0) if mode == "P" else encoded(image)
    assert (pixels(data, (8, 8)) == 1).all()


def test_half_transparent_black_is_grey():
    assert (pixels(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), (8, 8)) - -0.004).abs().max() < 0.01


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16"])
def test_other_modes(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 32768, np.uint16))
        expected = 128 / 127.5 - 1
    else:
        image, expected = Image.new("RGB", (8, 8), "white").convert(mode), 1.0
    x = pixels(encoded(image, "TIFF"), (8, 8))
    assert x.shape == (3, 8, 8) and (x - expected).abs().max() < 0.01


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(halves(64, 64))[:90]])
def test_damage(data):
    with pytest.raises(Broken) as error:
        pixels(data, (8, 8))
    assert str(error.value) and "0x" not in str(error.value)


def test_size_of_no_image():
    with pytest.raises(Broken):
        size(b"<html>404</html>")


@pytest.mark.parametrize("white, values", [(1.0, (0, 0.5, 1)), (255.0, (0, 127.5, 255)), (65535.0, (0, 32767.5, 65535))])
def test_floats_keep_their_range(white, values):
    array = np.repeat(np.array([values], np.float32), 8, axis=0).repeat(8, axis=1)
    x = pixels(encoded(Image.fromarray(array), "TIFF"), (8, 24))
    assert (x[0, 0, [0, 12, 23]] - torch.tensor([-1.0, 0.0, 1.0])).abs().max() < 0.01


def grey(values, bits: int, order: str = "<", sign: bool = False) -> bytes:
    """A TIFF of whole grey values (H, W) with so many bits, written by hand."""
    values = np.asarray(values)
    if bits == 12:  # two values in three bytes
        pairs = values.reshape(-1, 2)
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    else:
        data = values.astype(f"{order}{'i' if sign else 'u'}{bits // 8}").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(data), 339: 1 + sign}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    pack = lambda form, *numbers: struct.pack(order + form, *numbers)
    entries = b"".join(pack("HHII", tag, 4, 1, value) for tag, value in tags.items())
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + pack("I", 8) + pack("H", len(tags)) + entries + pack("I", 0) + data


@pytest.mark.parametrize("bits, order", [(12, "<"), (16, "<"), (16, ">")])
def test_whole_numbers_keep_the_range_of_their_bits(bits, order):
    white = 2**bits - 1
    x = pixels(grey(np.repeat([[0, 0, white // 2, white // 2, white, white]], 6, axis=0), bits, order), (6, 6))
    assert (x[0, 3, [0, 3, 5]] - torch.tensor([-1.0, 0.0, 1.0])).abs().max() < 0.06
    assert (x[0, 3, [0, 5]] - torch.tensor([-1.0, 1.0])).abs().max() < 0.02


@pytest.mark.parametrize("bits, sign, order", [(32, False, "<"), (32, True, "<"), (16, True, "<"), (16, True, ">")])
def test_whole_numbers_whose_white_is_not_told_are_refused(bits, sign, order):
    """By the header, so that the report counts them before anything is encoded."""
    data = grey(np.full((4, 4), 1000), bits, order, sign)
    for call in (size, remarks, lambda data: pixels(data, (4, 4))):
        with pytest.raises(Broken, match="with a sign, or of 32 bits.*save it with 8 or 16 bits"):
            call(data)


def test_floats_that_are_no_numbers_are_black():
    array = np.full((8, 8), 0.5, np.float32)
    array[:, :4] = [np.nan, np.inf, -np.inf, -3]
    x = pixels(encoded(Image.fromarray(array), "TIFF"), (8, 8))
    assert (x[:, :, :4] == -1).all() and (x[:, :, 4:].abs() < 0.01).all()


def test_colours_of_16_bits_keep_their_range():
    """A TIFF of three 16-bit channels, written by hand, for Pillow writes none."""
    tags = {
        256: (3, 8),
        257: (3, 8),
        258: (3, None),
        259: (3, 1),
        262: (3, 2),
        273: (4, None),
        277: (3, 3),
        278: (3, 8),
        279: (4, 384),
    }
    bits, start = 8 + 2 + 12 * len(tags) + 4, 8 + 2 + 12 * len(tags) + 4 + 6
    entries = b""
    for tag, (kind, value) in tags.items():
        count, own = (3, bits) if tag == 258 else (1, start if tag == 273 else value)
        packed = struct.pack("<I", own) if kind == 4 or tag == 258 else struct.pack("<HH", own, 0)
        entries += struct.pack("<HHI", tag, kind, count) + packed
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + struct.pack("<3H", 16, 16, 16)
    data = np.tile(np.array([0, 32768, 65535], "<u2"), (8, 8, 1)).tobytes()
    x = pixels(head + data, (8, 8))
    assert (x.mean((1, 2)) - torch.tensor([-1.0, 0.0, 1.0])).abs().max() < 0.02


def png_header(width, height):
    data = bytearray(encoded(Image.new("L", (8, 8))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_large_images_are_read_and_bombs_are_not(recwarn):
    data = encoded(Image.new("1", (16400, 12300), 1))  # 200 million pixels, as phones take
    assert size(data) == (12300, 16400) and (pixels(data, (8, 8)) == 1).all() and not recwarn
    for wide, high in ((2**31 - 1, 2**31 - 1), (2**15, 2**15)):
        for call in (size, remarks, lambda data: pixels(data, (8, 8))):
            with pytest.raises(Broken, match=f"{wide} x {high} pixels, more than 536 million"):
                call(png_header(wide, high))


@pytest.mark.parametrize(
    "kind, mode, several",
    [("GIF", "P", True), ("PNG", "RGB", True), ("WEBP", "RGB", True), ("TIFF", "RGB", True), ("MPO", "RGB", False)],
)
def test_of_several_frames_the_first_is_used_and_that_is_said(kind, mode, several):
    one, other = (Image.new("RGB", (8, 8), colour).convert(mode) for colour in ("white", "black"))
    data = encoded(one, kind, save_all=True, append_images=[other])
    assert (pixels(data, (8, 8)) > 0.99).all()
    assert bool(remarks(data)) == several and not remarks(encoded(one, "PNG"))


def test_colour_profiles_are_named_where_they_are_not_srgb():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    named = [bool(remarks(encoded(halves(8, 8), icc_profile=profile))) for profile in (srgb, other, b"none")]
    assert named == [False, True, False]


def test_colours_in_other_spaces_and_bits():
    ramp = np.zeros((16, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 2] = np.arange(64) * 4, 200
    image = Image.fromarray(ramp)
    expected = pixels(encoded(image), (16, 64))
    for mode, kind in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("RGBA", "TGA"), ("RGBA", "WEBP")):
        options = dict(quality=98) if kind == "JPEG" else dict(lossless=True) if kind == "WEBP" else {}
        assert (pixels(encoded(image.convert(mode), kind, **options), (16, 64)) - expected).abs().mean() < 0.03, (mode, kind)
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in ramp)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 16, 16, 2, 0, 0, 0))
    deep = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert (pixels(deep, (16, 64)) - expected).abs().max() < 0.01


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9])
def test_cut_files_are_broken_and_nothing_is_printed(kind, share, recwarn):
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    with pytest.raises(Broken):
        pixels(data[: int(len(data) * share)], (8, 8))
    assert not recwarn
