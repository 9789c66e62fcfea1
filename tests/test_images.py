"""`minichat.images`: whatever a person hands in becomes an upright RGB picture, or one clear sentence."""

from __future__ import annotations

import gc
import io
import os
import random
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy
import pillow_heif
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from minichat import images
from minichat.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")


def picture(width: int = 120, height: int = 80) -> Image.Image:
    """Neither symmetric nor plain, so that a turn or a shift shows."""
    x, y = numpy.meshgrid(numpy.linspace(0, 255, width), numpy.linspace(0, 255, height))
    return Image.fromarray(numpy.stack([x, y, (x * 7) % 256], -1).astype("uint8"), "RGB")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(file, **options)
    else:
        image.save(file, kind, **options)
    return file.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG file with any header (PNG specification, 5.3 and 11.2.2)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# --- sources


@pytest.mark.parametrize("kind", FORMATS)
def test_path_bytes_and_pil_image_give_the_same_picture(kind, tmp_path):
    data = encoded(picture(), kind)
    path = tmp_path / "a file with any ending.txt"
    path.write_bytes(data)
    from_bytes = images.load(data)
    assert from_bytes.mode == "RGB" and from_bytes.size == (120, 80)
    assert from_bytes.info == {}
    pil = pillow_heif.HeifImageFile(path) if kind == "HEIF" else Image.open(path)
    for source in (path, str(path), bytearray(data), memoryview(data), pil):
        assert same(images.load(source), from_bytes)
    if kind in ("PNG", "BMP", "TIFF"):
        assert same(from_bytes, picture())


def test_a_pil_image_is_copied_and_left_as_it_was():
    original = picture()
    before = original.tobytes()
    loaded = images.load(original)
    loaded.putpixel((0, 0), (1, 2, 3))
    assert original.tobytes() == before


def test_loading_needs_no_torch():
    code = (
        "import sys; from minichat import images; images.load(sys.stdin.buffer.read()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=encoded(picture(), "PNG"), capture_output=True)
    assert done.stdout.split() == [b"False"]


@pytest.mark.parametrize("source", [None, 3, 1.5, object(), ["a.png"], ("a.png",), {"path": "a.png"}])
def test_other_types_are_refused(source):
    with pytest.raises(ImageError, match="path, bytes, a binary file or a PIL image"):
        images.load(source)


# --- unusual pictures (each has an answer)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "HEIF"])  # whose encoder makes no such picture
def test_extreme_shapes(kind, size):
    loaded = images.load(encoded(Image.new("RGB", size, (0, 0, 0)), kind))
    assert loaded.size == size
    assert images.to_pixels([loaded], 28).shape == (1, 3, 28, 28)


def test_transparent_parts_are_white():
    rgba = Image.new("RGBA", (4, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    rgba.putpixel((2, 0), (255, 0, 0, 128))
    for kind in ("PNG", "WEBP"):
        loaded = images.load(encoded(rgba, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert [loaded.getpixel((x, 0)) for x in range(4)] == [
            (255, 0, 0),
            (255, 255, 255),
            (255, 127, 127),
            (255, 0, 0),
        ]


def test_transparent_palette_grey_and_colour_key():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        loaded = images.load(encoded(palette, kind, transparency=0))
        assert [loaded.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (40, 50, 60)]
    grey_alpha = Image.new("LA", (2, 1), (9, 255))
    grey_alpha.putpixel((1, 0), (9, 0))
    loaded = images.load(encoded(grey_alpha, "PNG"))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(9, 9, 9), (255, 255, 255)]
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    assert images.load(encoded(keyed, "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_brightness():
    values = numpy.array([[0, 255, 256, 32768, 65535]], dtype=">u2")
    grey = png(5, 1, depth=16, colour=0, data=b"\x00" + values.tobytes())
    assert [images.load(grey).getpixel((x, 0))[0] for x in range(5)] == [0, 0, 1, 128, 255]
    colour = png(5, 1, depth=16, colour=2, data=b"\x00" + values.repeat(3, 1).tobytes())
    assert same(images.load(colour), images.load(grey))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA", "HSV", "LAB", "I;16", "RGBX", "PA"])
def test_every_mode_of_a_pil_image_is_answered(mode):
    source = picture().convert("L").convert("I").convert("I;16") if mode == "I;16" else None
    source = source or (picture().convert("LA" if mode == "PA" else "RGB").convert(mode))
    assert images.load(source).mode == "RGB"
    assert images.load(source).size == (120, 80)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_without_a_range_is_refused(mode):
    with pytest.raises(ImageError, match="convert it to RGB"):
        images.load(Image.new(mode, (2, 2)))


def test_a_cmyk_jpeg_keeps_its_colours():
    red = images.load(encoded(Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK"), "JPEG")).getpixel((4, 4))
    assert red[0] > 240 and max(red[1:]) < 15


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    animated = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(animated)).n_frames == 3
    assert same(images.load(animated), frames[0])


# --- EXIF


def oriented(upright: Image.Image, orientation: int, kind: str) -> bytes:
    """A file that shows `upright` once it is turned as its tag says: stored the inverse way."""
    turn = images._UPRIGHT.get(orientation)
    inverse = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    stored = upright if turn is None else upright.transpose(inverse.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(stored, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_eight_orientations_give_the_same_pixels(orientation, kind):
    assert same(images.load(oriented(picture(), orientation, kind)), picture())


# What EXIF 2.32 (4.6.5, table "Orientation") says about the stored picture's first row and first column.
@pytest.mark.parametrize(
    ("orientation", "row", "column"),
    [
        (1, "top", "left"), (2, "top", "right"), (3, "bottom", "right"), (4, "bottom", "left"),
        (5, "left", "top"), (6, "right", "top"), (7, "right", "bottom"), (8, "left", "bottom"),
    ],
)  # fmt: skip
def test_orientations_mean_what_exif_says(orientation, row, column):
    stored = Image.new("RGB", (3, 2), (0, 0, 0))
    for x in range(3):
        stored.putpixel((x, 0), (255, 0, 0))  # the first row is red,
    for y in range(2):
        stored.putpixel((0, y), (255, 0, 255 if y == 0 else 128))  # the first column has blue
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = numpy.asarray(images.load(encoded(stored, "PNG", exif=exif)))
    sides = {"top": shown[0], "bottom": shown[-1], "left": shown[:, 0], "right": shown[:, -1]}
    assert (sides[row][:, 0] == 255).all()
    assert (sides[column][:, 2] >= 128).all()


def test_a_jpeg_of_a_turned_camera_stands_upright():
    upright = Image.new("RGB", (64, 128), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 64, 64))
    loaded = images.load(oriented(upright, 6, "JPEG"))
    assert loaded.size == (64, 128)
    assert loaded.getpixel((32, 20))[0] > 200 and loaded.getpixel((32, 110))[2] > 200


@pytest.mark.parametrize(
    "exif",
    [
        b"", b"Exif\0\0", b"Exif\0\0MM\0*", b"Exif\0\0" + b"\xff" * 40, b"garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f",
        # one entry: orientation 99, orientation as text, as 0/0
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x1a\0\0\0\0\0\0\0" + b"\0" * 8,
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(kind, exif):
    options = {"lossless": True} if kind == "WEBP" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = images.load(encoded(picture(), kind, exif=exif, **options))
    assert same(loaded, images.load(encoded(picture(), kind, **options)))


# --- refusals

OTHERS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n%%EOF",
    "psd": b"8BPS\0\x01" + b"\0" * 6 + b"\0\x03" + struct.pack(">II", 8, 8) + b"\0\x08\0\x03" + b"\0" * 400,
    "fits": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + b" " * 2720,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
    "pdf": b"%PDF-1.7\n",
    "html": b"<!doctype html><title>Not found</title>",
    "dib": b"",  # filled in below, as the next ones
    "ico": b"",
    "ppm": b"",
    "tga": b"",
}  # fmt: skip
for _kind in ("DIB", "ICO", "PPM", "TGA"):
    OTHERS[_kind.lower()] = encoded(picture(32, 32), _kind)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_not_opened(kind, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(OTHERS[kind])
    said = (
        r"is (not a picture that can be opened: save it as JPEG, PNG, |.*, which is not opened: save it as JPEG or PNG)"
    )
    with pytest.raises(ImageError, match=r"“photo\.jpg” " + said):
        images.load(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_off_files_are_refused(kind):
    data = encoded(picture(), kind)
    for length in [0, 1, 8, 20, len(data) // 4, len(data) // 2, len(data) * 3 // 4]:
        with pytest.raises(ImageError) as caught:
            images.load(data[:length])
        assert re.fullmatch(r"The picture is .{5,}: [^:]+\.", str(caught.value)), length
    with pytest.raises(ImageError, match="damaged or cut off"):
        images.load(data[: len(data) * 3 // 4])


@pytest.mark.parametrize(
    "error", [OSError, SyntaxError, ValueError, IndexError, struct.error, zlib.error, RuntimeError]
)
def test_whatever_a_decoder_raises_is_one_sentence(error, monkeypatch):
    def fail(self):
        raise error("bad state at 0x7f00 in /usr/lib/decoder.so")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"^The picture is damaged or cut off and cannot be decoded: [a-z ]+\.$"):
        images.load(encoded(picture(), "JPEG"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ImageError, match="memory"):
        images.load(encoded(picture(), "JPEG"))


def huge_headers() -> dict[str, bytes]:
    side = 20_000
    gif = bytearray(encoded(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    lossy, lossless = bytearray(encoded(picture(), "WEBP")), bytearray(encoded(picture(), "WEBP", lossless=True))
    extended = bytearray(encoded(picture().convert("RGBA"), "WEBP", exif=Image.Exif(), save_all=True))
    assert (lossy[12:16], lossless[12:16]) == (b"VP8 ", b"VP8L")
    tiff, avif, heif = (bytearray(encoded(picture(), kind)) for kind in ("TIFF", "AVIF", "HEIF"))
    for place in [at for at in range(len(tiff)) if tiff[at : at + 4] in (b"\0\1\4\0", b"\1\1\4\0")]:  # width, length
        tiff[place + 8 : place + 12] = struct.pack("<I", side)
    for data, told in ((avif, 16_000), (heif, side)):  # libavif itself refuses more
        for found in re.finditer(b"ispe", bytes(data)):
            data[found.end() + 4 : found.end() + 12] = struct.pack(">II", told, told)
    lossy[26:30] = struct.pack("<HH", 16_383, 16_383)
    lossless[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    extended = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4
    extended += struct.pack("<I", side - 1)[:3] * 2
    return {
        "png": png(side, side), "gif": bytes(gif), "bmp": bytes(bmp), "jpeg": bytes(jpeg),
        "tiff": bytes(tiff), "avif": bytes(avif), "heic": bytes(heif), "webp": bytes(lossy),
        "webp lossless": bytes(lossless), "webp extended": extended,
        "just over": png(8001, 8000), "between Pillow's two limits": png(10_000, 10_000), "wide": png(2**31 - 1, 1),
    }  # fmt: skip


@pytest.mark.parametrize("name", huge_headers())
def test_a_huge_header_is_refused_before_decoding(name, monkeypatch):
    def decoded(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    data = huge_headers()[name]
    before = psutil.Process().memory_info().rss
    started = time.thread_time()
    with warnings.catch_warnings(), pytest.raises(ImageError, match="too large"):
        warnings.simplefilter("ignore")
        images.load(data)
    assert time.thread_time() - started < 0.5
    assert psutil.Process().memory_info().rss - before < 10 * 2**20


def test_the_limit_itself_is_allowed_and_can_be_set():
    assert images.load(png(10, 10, data=(b"\0" + b"\x07" * 30) * 10), max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match=r"10 × 10, at most 99 pixels"):
        images.load(png(10, 10), max_pixels=99)
    with pytest.raises(ImageError, match="too large"):
        images.load(Image.new("L", (10, 10)), max_pixels=99)


def test_too_many_bytes_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(images.MAX_BYTES + 1)  # sparse
    with pytest.raises(ImageError, match=r"“long\.png” is larger than 64 MiB"):
        images.load(path)
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="larger than"):
        images.load(b"\0" * 101)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "TIFF"])
def test_what_says_how_to_stand_in_other_containers(kind):
    """The turn of the container counts once, and an EXIF block that is broken is passed over."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), kind, exif=exif.tobytes())
    assert images.load(data).size == (80, 120)
    if kind != "TIFF":  # whose tags are no block of their own
        block = max(data.find(b"MM\0*", 30), data.find(b"II*\0", 30))
        assert images.load(data[:block] + b"XX\xff\xff" + data[block + 4 :]).size == (80, 120)


def test_heic_needs_its_package(monkeypatch):
    data = encoded(picture(), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC picture, and pillow-heif is not .*`heic`\): pip install pillow-heif\."):
        images.load(data)


def test_a_jpeg_of_very_many_scans_is_refused():
    data = encoded(picture(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    bomb = data[:scan] + data[scan:-2] * 200 + data[-2:]
    with pytest.raises(ImageError, match="scans"):
        images.load(bomb)


def test_pillows_own_settings_are_left_alone(tmp_path):
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    images.load(encoded(picture(), "PNG"))
    with pytest.raises(ImageError):
        images.load(png(20_000, 20_000))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


# --- what the sentences show


def broken_paths(folder: Path) -> dict[str, object]:
    (folder / "secret").mkdir(exist_ok=True)
    (folder / "secret" / "bad.jpg").write_bytes(b"no picture")
    (folder / "secret" / "empty.png").write_bytes(b"")
    (folder / "secret" / "two\nlines\x1b[31m.png").write_bytes(b"no picture")
    pipe = folder / "secret" / "pipe.png"
    if not pipe.exists():
        os.mkfifo(pipe)
    names = [
        "bad.jpg",
        "empty.png",
        "two\nlines\x1b[31m.png",
        "pipe.png",
        "absent.png",
        "bad.jpg/x.png",
        "n" * 300,
        "a\0b",
    ]
    return {name: folder / "secret" / name for name in names} | {
        "folder": folder / "secret",
        "str": str(folder / "secret"),
    }


def path_name(path: str | Path) -> str:
    return os.path.basename(os.fspath(path))


@pytest.mark.parametrize("case", range(10))
def test_errors_are_one_sentence_with_the_name_and_without_the_folder(case, tmp_path):
    path = list(broken_paths(tmp_path).values())[case]
    handled = sys.exc_info()[1]  # a test that interrupts others may have left one behind
    with pytest.raises(ImageError) as caught:
        images.load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(tmp_path) not in message and "object at 0x" not in message
    assert "".join(c if c.isprintable() else "?" for c in path_name(path))[-50:] in message
    assert re.fullmatch(r"“.*” .+: .+\.", message)
    context = caught.value.__context__
    assert caught.value.__cause__ is None and (context in (None, handled) or caught.value.__suppress_context__)


@pytest.mark.parametrize("scheme", ["https://example.org/", "file:///", "data:image/png;base64,"])
def test_an_address_is_not_fetched(scheme):
    with pytest.raises(ImageError, match="addresses are not fetched"):
        images.load(scheme + "cat.png")


def test_an_open_file_is_the_picture_that_it_holds(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(), "PNG"))
    with open(path, "rb") as file:
        assert same(images.load(file), images.load(path))
    with open(path, encoding="latin-1") as file, pytest.raises(ImageError, match="not a file opened for text"):
        images.load(file)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(picture(), "PNG"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"^“locked\.png” may not be read: check its permissions\.$"):
        images.load(path)


# --- mutants


def mutant_seeds() -> list[bytes]:
    one, other = picture(), picture().rotate(90)
    return [
        *(encoded(one, kind) for kind in FORMATS),
        *(encoded(one.convert("P"), kind) for kind in ("PNG", "GIF", "BMP")),
        *(encoded(one, kind, save_all=True, append_images=[other]) for kind in ("GIF", "WEBP", "PNG")),
        encoded(one, "JPEG", progressive=True),
        encoded(one.convert("CMYK"), "JPEG"),
        oriented(one, 6, "JPEG"),
        encoded(one, "PNG", compress_level=0),
        encoded(one, "WEBP", lossless=True),
    ]


def mended_png(data: bytes) -> bytes:
    """Checksums made right again, so that a mutant gets past them to the decoder."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        length = int.from_bytes(out[at : at + 4], "big")
        if at + 12 + length > len(out):
            break
        out[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(out[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(out)


def mutant(seed: bytes, rng: random.Random) -> bytes:
    data = bytearray(seed)
    how = rng.choice(["cut", "header", "anywhere", "moved", "repeated"])
    if how == "cut":
        return bytes(data[: rng.randrange(len(data))])
    if how in ("header", "anywhere"):
        for _ in range(rng.choice([1, 2, 4, 16])):
            at = rng.randrange(min(64, len(data)) if how == "header" else len(data))
            data[at] = rng.choice([0, 1, 127, 128, 254, 255, rng.randrange(256)])
    else:
        start, length, to = rng.randrange(len(data)), rng.randrange(1, 200), rng.randrange(len(data))
        piece = data[start : start + length]
        if how == "moved":
            del data[start : start + length]
        data[to:to] = piece
    return mended_png(bytes(data)) if seed.startswith(b"\x89PNG") and rng.random() < 0.8 else bytes(data)


def survive(count: int, seed: int) -> None:
    seeds, rng = mutant_seeds(), random.Random(seed)
    for data in seeds:
        images.load(data)
    gc.collect()
    before = psutil.Process().memory_info().rss
    opened = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(count):
            data = mutant(rng.choice(seeds), rng)
            started = time.thread_time()  # of this thread: a busy machine is no slow decoder
            try:
                loaded = images.load(data)
            except ImageError as error:
                assert re.fullmatch(r"The picture [^\n]{5,300}: [^:\n]+\.", str(error)), (data, error)
            else:
                assert loaded.mode == "RGB"
                opened += 1
            assert time.thread_time() - started < 1, data
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 50 * 2**20
    assert count / 10 < opened < count  # mutants are of both kinds, or they test nothing


def test_a_thousand_mutants():
    survive(1000, seed=0)


@pytest.mark.long
def test_fifty_thousand_mutants():
    survive(50_000, seed=1)


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF"])
)
def test_any_bytes_are_a_picture_or_an_image_error(data, start):
    try:
        images.load(start + data)
    except ImageError:
        pass


# --- pixels


def test_pixels_are_resized_and_normalised_by_channel():
    red = Image.new("RGB", (30, 20), (255, 0, 51))
    pixels = images.to_pixels([red, red.resize((7, 7))], 14)
    assert pixels.shape == (2, 3, 14, 14) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(images.CLIP_MEAN)) / torch.tensor(images.CLIP_STD)
    torch.testing.assert_close(pixels, expected.view(1, 3, 1, 1).expand(2, 3, 14, 14))
    own = images.to_pixels([red], 14, mean=(0, 0, 0), std=(1, 2, 1))
    torch.testing.assert_close(own[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_pixels_are_in_row_and_column_order():
    small = Image.new("RGB", (2, 2))
    small.putpixel((1, 0), (255, 255, 255))  # right, above
    pixels = images.to_pixels([small], 2, mean=(0, 0, 0), std=(1, 1, 1))
    assert pixels[0, 0].tolist() == [[0, 1], [0, 0]]


def test_no_pictures_are_no_pixels():
    assert images.to_pixels([], 14).shape == (0, 3, 14, 14)


def test_to_pixels_takes_other_modes_as_load_does():
    clear = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    assert torch.equal(images.to_pixels([clear], 8), images.to_pixels([images.load(clear)], 8))


@pytest.mark.parametrize("case", ["minigpt4-vicuna0", "minigpt4-llama2-noqformer"])
def test_pixels_are_the_originals(case, reference):
    from safetensors.torch import load_file

    folder = reference / case
    if not folder.is_dir():
        pytest.skip(f"the reference case {case} is not here")
    expected = load_file(folder / "expected.safetensors")["pixel_values"]
    pictures = [images.load(file) for file in sorted((folder / "images").iterdir())]
    pixels = images.to_pixels(pictures, expected.shape[-1])
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


# --- identity


def test_identity_tells_shape_mode_and_pixels():
    wide, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert images.identity(wide) == images.identity(wide.copy())
    assert images.identity(wide) != images.identity(tall)
    assert images.identity(Image.new("L", (3, 1))) != images.identity(Image.new("RGB", (1, 1)))
    assert images.identity(Image.new("L", (12, 1))) != images.identity(Image.new("CMYK", (3, 1)))
    changed = wide.copy()
    changed.putpixel((3, 1), (0, 0, 1))
    assert images.identity(changed) != images.identity(wide)


def test_identity_tells_palettes_apart():
    one, other = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    one.putpalette([1, 2, 3])
    other.putpalette([3, 2, 1])
    assert images.identity(one) != images.identity(other)


@pytest.mark.parametrize("fit", [images.Fit(32), images.Fit(32, shortest_edge=40)])
def test_a_picture_that_is_made_small_as_it_is_opened_is_the_one_that_is_opened_first(fit):
    """Whatever it takes to open it: turned, with transparency, grey, or nothing."""
    picture = Image.effect_noise((120, 70), 90).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = picture.copy()
    clear.putalpha(picture.convert("L"))
    files = [
        encoded(picture, "PNG"),
        encoded(picture, "JPEG", exif=turned),
        encoded(clear, "PNG"),
        encoded(picture.convert("L"), "JPEG"),
    ]
    for source in (*files, picture):
        small = images.load(source, fit=fit)
        assert type(small) is Image.Image and small.tobytes() == fit.small(images.load(source)).tobytes()
