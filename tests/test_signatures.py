"""What a file is, told from its bytes alone (`minichat.images`)."""

from __future__ import annotations

import io
import struct
import warnings

import numpy
import pytest
from PIL import Image

from minichat import images
from minichat.data.formats.folder import OTHER_SUFFIXES
from minichat.errors import ImageError
from tests.test_images import encoded, picture, same


def tiff(
    pixels: numpy.ndarray, photometric: int, bits: int = 16, order: str = "<", more: dict[int, int] | None = None
) -> bytes:
    """An uncompressed TIFF of one strip (TIFF 6.0, section 2); 12 bits are packed, two values in three bytes."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    if bits == 12:
        pairs = pixels.reshape(-1, 2).astype(int)
        data = bytes(b for x, y in pairs for b in (x >> 4, (x & 15) << 4 | y >> 8, y & 255))
    else:
        data = pixels.astype(f"{order}u{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: samples, 278: height}
    tags |= {279: len(data), **(more or {})}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    last = 8 + len(data) + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in sorted(tags.items()):
        if tag == 258 and samples > 2:
            entries += struct.pack(order + "HHII", tag, 3, samples, last)
        else:
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
    return (
        head + data + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4
        + struct.pack(f"{order}{samples}H", *([bits] * samples))
    )  # fmt: skip


# --- JPEG


def jpeg(**options: object) -> bytes:
    return encoded(picture(), "JPEG", **options)


def test_scans_are_counted_up_to_the_end_marker():
    assert images.jpeg_scans(jpeg()) == 1
    assert images.jpeg_scans(jpeg(restart_marker_blocks=1)) == 1
    assert images.jpeg_scans(jpeg(progressive=True)) > 1
    assert images.jpeg_scans(jpeg()[:-2]) == 1  # cut off
    assert images.jpeg_scans(b"\xff\xd8") == 0


def test_what_lies_behind_the_end_is_not_the_pictures():
    """A phone's motion photo: an MP4 of some megabytes after the JPEG, in which any bytes occur."""
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x08film" * 500_000
    assert same(images.load(jpeg() + film), images.load(jpeg()))
    assert same(images.load(jpeg(progressive=True) + film), images.load(jpeg(progressive=True)))


def test_a_thumbnail_is_not_the_picture():
    """It lies in an APP1 segment, with scans and an end marker of its own."""
    thumbnail = jpeg(progressive=True)[:60_000]
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) * 3 + 8) + b"Exif\0\0" + thumbnail * 3
    data = jpeg()
    assert images.jpeg_scans(data[:2] + segment + data[2:]) == 1
    many = b"\xff\xe1\xff\xff" + (b"\xff\xda" * 33_000)[: 0xFFFF - 2]
    assert same(images.load(data[:2] + many + data[2:]), images.load(data))
    bomb = jpeg(progressive=True)
    scan = bomb.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):  # one that hides its scans behind a thumbnail
        images.load(bomb[:2] + segment + bomb[2:scan] + bomb[scan:-2] * 200 + b"\xff\xd9")


def test_a_jpeg_of_segments_without_end_is_refused_at_once():
    with pytest.raises(ImageError, match="scans"):
        images.load(b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000)


def test_a_stereo_pair_is_its_first_picture():
    first, second = picture(), picture().rotate(180)
    pair = encoded(first, "MPO", save_all=True, append_images=[second])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(images.load(pair), images.load(jpeg()))
        broken = pair.replace(b"MPF\0II", b"MPF\0XX", 1)  # the list of its pictures
        assert broken != pair and same(images.load(broken), images.load(jpeg()))


# --- TIFF


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_of_sixteen_bits(order):
    pixels = numpy.array([[0, 255, 256, 32768, 65535]])
    loaded = numpy.asarray(images.load(tiff(pixels, 1, order=order)))
    assert loaded[0].tolist() == [[value] * 3 for value in (0, 0, 1, 128, 255)]


def test_grey_in_which_zero_is_white_and_grey_of_twelve_bits():
    assert numpy.asarray(images.load(tiff(numpy.array([[0, 65535, 32768]]), 0)))[0, :, 0].tolist() == [255, 0, 127]
    twelve = numpy.array([[0, 4095, 2048, 16]])
    assert numpy.asarray(images.load(tiff(twelve, 1, bits=12)))[0, :, 0].tolist() == [0, 255, 128, 1]


def test_colour_of_sixteen_bits_and_inks():
    pixels = numpy.array([[[0, 32768, 65535], [65535, 0, 256]]])
    assert numpy.asarray(images.load(tiff(pixels, 2)))[0].tolist() == [[0, 128, 255], [255, 0, 1]]
    inks = numpy.array([[[0, 255, 255, 0], [0, 0, 0, 0], [0, 0, 0, 255]]])  # red, white and black
    loaded = numpy.asarray(images.load(tiff(inks, 5, bits=8)))
    assert loaded[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_the_first_page_is_read(compression):
    pages = [picture(), picture().rotate(90), picture().rotate(180)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression=compression)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert same(images.load(data), pages[0])


def test_floating_point_has_no_known_range():
    with pytest.raises(ImageError, match="convert it to RGB first"):
        images.load(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_preview_is_not_the_photograph(order):
    """Cameras' raw files are TIFF, and their first page is a thumbnail."""
    pixels = numpy.zeros((8, 8, 3), int)
    for marked in (tiff(pixels, 2, 8, order, {254: 1}), tiff(pixels, 2, 8, order, {50706: 0x01040000})):
        with pytest.raises(ImageError, match=r"is a camera's raw file, which is not opened: save it as JPEG or PNG\."):
            images.load(marked)
    assert images.load(tiff(pixels, 2, 8, order, {254: 2})).size == (8, 8)  # a page of several
    assert images.is_raw(b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 40)
    assert not images.is_raw(b"II*\0")


# --- any


def test_the_endings_do_not_meet():
    assert not set(images.SUFFIXES) & set(OTHER_SUFFIXES)
    assert all(ending == ending.lower() and ending[0] == "." for ending in images.SUFFIXES)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"avif\0\0\0\0mif1miaf", "AVIF"), (b"mif1\0\0\0\0avifmiaf", "AVIF"), (b"avis\0\0\0\0msf1", "AVIF"),
        (b"heic\0\0\0\0mif1", "HEIF"), (b"mif1\0\0\0\0heic", "HEIF"), (b"msf1\0\0\0\0hevc", "HEIF"),
        (b"isom\0\0\0\0mp41", None), (b"crx \0\0\0\1crx isom", None), (b"qt  \0\0\0\0", None),
    ],
)  # fmt: skip
def test_brands_of_a_media_file(brands, kind):
    data = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands
    assert images.format_of(data) == kind
    assert (images.other_format(data) == "a camera's raw file") == (brands[:4] == b"crx ")


@pytest.mark.parametrize(
    "text",
    [b"BMW is a maker of cars.\n" * 9, b"P1 is a plan", b"<html><svg></svg></html>", b"II. The second part", b""],
)
def test_words_are_no_picture(text):
    assert images.format_of(text) is None
    assert images.other_format(text) is None


@pytest.mark.parametrize(
    "data",
    [
        b"8BPS\0\1", b"%!PS-Adobe", b"P6 8 8 255\n", b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x">',
        b"\xef\xbb\xbf<svg>", b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n", b"SIMPLE  =   T",
    ],
)  # fmt: skip
def test_other_pictures_are_known(data):
    assert images.other_format(data)
    assert images.format_of(data) is None
