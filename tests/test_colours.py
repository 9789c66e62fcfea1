"""`minichat.images`: a picture that brings a colour profile is shown in sRGB; sRGB itself is left alone."""

from __future__ import annotations

import struct

import numpy
import pytest
from PIL import Image, ImageCms

from minichat import images
from tests.test_images import encoded, picture, same

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Primaries as XYZ (D50), columns red, green, blue: SMPTE EG 432-1 (Display P3), Adobe RGB (1998), IEC 61966-2-1.
P3 = numpy.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE = numpy.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
BT709 = numpy.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """An ICC profile of version 2 (ICC.1:2001-04, sections 6.1 and 6.2)."""
    body, table, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    white = struct.pack(">iii", 63190, 65536, 54061)
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"\0" * 4, 0x02400000, kind, space, pcs)
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + white
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(values: numpy.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def of_primaries(matrix: numpy.ndarray, curve: float) -> bytes:
    tags = {name: xyz(matrix[:, column]) for column, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(curve)) | {b"wtpt": xyz(numpy.array([0.9642, 1, 0.8249]))}
    return profile(b"RGB ", tags)


def of_inks() -> bytes:
    """Inks that take away their share of the light, each its own: white paper, and darker with each ink."""
    grid = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    light = bytes(v for *cmy, k in grid for v in (0 if k else 255 - 60 * sum(cmy), 128, 128))  # L*, a*, b*
    line = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + line * 4 + light + line * 3
    return profile(b"CMYK", {b"A2B0": table, b"wtpt": xyz(numpy.array([0.9642, 1, 0.8249]))}, b"Lab ", b"prtr")


def shown(rgb: tuple[int, int, int], matrix: numpy.ndarray, curve: float) -> numpy.ndarray:
    """What sRGB calls a colour of other primaries (IEC 61966-2-1)."""
    linear = numpy.linalg.solve(BT709, matrix @ (numpy.array(rgb) / 255) ** curve).clip(0, 1)
    return numpy.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


COLOURS = [(200, 60, 50), (40, 160, 70), (20, 40, 210), (128, 128, 128), (255, 255, 255), (0, 0, 0), (230, 200, 40)]


def coloured() -> Image.Image:
    return Image.fromarray(numpy.array([COLOURS], numpy.uint8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF", "HEIF"])
@pytest.mark.parametrize("matrix", [P3, ADOBE], ids=["P3", "Adobe"])
def test_other_primaries_become_srgb(matrix, kind):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {"quality": 100})
    large = coloured().resize((len(COLOURS) * 16, 16), Image.Resampling.NEAREST)
    loaded = images.load(encoded(large, kind, icc_profile=of_primaries(matrix, 2.2), **options))
    for number, colour in enumerate(COLOURS):
        expected = shown(colour, matrix, 2.2)
        numpy.testing.assert_allclose(loaded.getpixel((number * 16 + 8, 8)), expected, atol=3 if kind != "HEIF" else 8)


def test_it_makes_a_difference_and_the_profile_has_done_its_work():
    green = images.load(encoded(Image.new("RGB", (8, 8), (60, 200, 60)), "PNG", icc_profile=of_primaries(P3, 2.2)))
    assert green.info == {}
    assert green.getpixel((4, 4))[0] < 20  # sRGB's red is lower where the green is P3's


def test_srgb_and_no_profile_are_left_as_they_are():
    plain = images.load(encoded(picture(), "PNG"))
    assert same(plain, images.load(encoded(picture(), "PNG", icc_profile=SRGB)))
    assert same(plain, picture())
    assert same(
        images.load(encoded(picture().convert("L"), "PNG", icc_profile=SRGB)), picture().convert("L").convert("RGB")
    )


@pytest.mark.parametrize(
    "broken",
    [b"x", b"\0" * 200, SRGB[:100], SRGB[: len(SRGB) // 2], of_inks(), profile(b"RGB ", {}), profile(b"9CLR", {})],
    ids=["a letter", "zeros", "a beginning", "a half", "of inks", "empty", "of nine colours"],  # bytes hold the time
)
def test_a_broken_profile_or_one_of_another_mode_is_ignored(broken):
    assert same(images.load(encoded(picture(), "PNG", icc_profile=broken)), picture())


def test_transparency_is_kept():
    clear = Image.new("RGBA", (2, 1), (200, 60, 50, 255))
    clear.putpixel((1, 0), (200, 60, 50, 0))
    loaded = images.load(encoded(clear, "PNG", icc_profile=of_primaries(P3, 2.2)))
    numpy.testing.assert_allclose(loaded.getpixel((0, 0)), shown((200, 60, 50), P3, 2.2), atol=3)
    assert loaded.getpixel((1, 0)) == (255, 255, 255)
    grey = Image.new("LA", (1, 1), (100, 0))
    assert images.load(encoded(grey, "PNG", icc_profile=of_grey(1.0))).getpixel((0, 0)) == (255, 255, 255)


def of_grey(curve: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": gamma(curve), b"wtpt": xyz(numpy.array([0.9642, 1, 0.8249]))})


def test_grey_of_another_curve():
    linear = images.load(encoded(Image.new("L", (4, 4), 55), "PNG", icc_profile=of_grey(1.0)))
    red, green, blue = linear.getpixel((1, 1))
    assert abs(red - 128) <= 2 and red == green == blue  # 0.2158 of the light is sRGB's 128
    assert same(images.load(encoded(picture(), "PNG", icc_profile=of_grey(1.0))), picture())  # of no use to colours


def test_inks_by_their_profile():
    """Without it they are converted by a rule of thumb."""
    inks = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        options = {"quality": 100} if kind == "JPEG" else {}
        by_profile = images.load(encoded(inks, kind, icc_profile=of_inks(), **options)).getpixel((4, 4))
        assert min(by_profile) > 120 and max(by_profile) - min(by_profile) < 12, kind  # a light grey, as of_inks says
        assert images.load(encoded(inks, kind, **options)).getpixel((4, 4))[0] < 20


def test_a_pil_image_brings_its_profile():
    with_profile = coloured()
    with_profile.info["icc_profile"] = of_primaries(ADOBE, 2.2)
    assert same(
        images.load(with_profile), images.load(encoded(coloured(), "PNG", icc_profile=of_primaries(ADOBE, 2.2)))
    )
    assert not same(images.load(with_profile), coloured())
