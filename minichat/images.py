"""Pictures in: a path, bytes or a PIL image becomes a safe upright sRGB picture, and pictures become pixels."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image, ImageChops, features
from PIL.JpegImagePlugin import JpegImageFile

from minichat.errors import POINTER, UNFETCHED, ImageError

if TYPE_CHECKING:
    import torch


# --- What kind of picture a file is, told from its bytes; nothing is decoded here.
#
# Formats have Pillow's names. Only those of `READ` are opened: decoders of rarely used formats are where image
# libraries have their holes (Pillow's EPS even runs Ghostscript).


HEAD = 1024  # bytes of a file's beginning that are enough for `format_of` and `other_format`

#: The formats that are opened, and the endings that their files usually have; the first is the common one.
READ = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".heics", ".heifs", ".hif"),
}
SPELLED = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
SUFFIXES = tuple(ending for endings in READ.values() for ending in endings)

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)
_OTHER_STARTS = (
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"II\xbc", "a JPEG XR picture"),
    (b"gimp xcf", "a GIMP file"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "a QOI picture"),
    (b"icns", "an icon"),
    (b"BPG\xfb", "a BPG picture"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"IIRO", "a camera's raw file"),
    (b"IIRS", "a camera's raw file"),
    (b"MMOR", "a camera's raw file"),
    (b"IIU\0", "a camera's raw file"),
    (b"FOVb", "a camera's raw file"),
)
_SVG = re.compile(rb"\s*(<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE svg[^>]*>|\s)*<svg[\s>]", re.DOTALL)
_NETPBM = re.compile(rb"P[1-7][ \t\r\n]+[\d#W]")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes, in bytes: OS/2's and Windows' versions
_HEVC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))


def format_of(data: bytes) -> str | None:
    """The format of a file that begins so, one of `READ`; None for any other."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIF" if brands & _HEVC else None
    if data[:2] == b"BM":  # words may begin so, too
        return "BMP" if int.from_bytes(data[14:18], "little") in _BMP_HEADERS else None
    return next((name for start, name in _STARTS if data.startswith(start)), None)


def other_format(data: bytes) -> str | None:
    """What a file is that begins so, for a sentence, if it is a picture of a format that is not opened."""
    head = data[:HEAD]
    if head[4:8] == b"ftyp" and head[8:12] == b"crx ":
        return "a camera's raw file"
    if _SVG.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "a drawing in SVG"
    if _NETPBM.match(head):
        return "a Netpbm picture"
    return next((name for start, name in _OTHER_STARTS if head.startswith(start)), None)


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file: its own, and those it is compatible with (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(data[:4], "big"), len(data), HEAD)
    return {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
MAX_SEGMENTS = 10_000  # of one JPEG: a large one has some hundred


def jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG has, up to its end marker; what lies behind that, such as a phone's film, is not its own.

    The thumbnails within its segments are passed over with them. More than `MAX_SEGMENTS` count as so many scans.
    The form: ITU-T T.81, B.1 (a marker is 0xFF and a code; in a scan's data, 0xFF is followed by 0 or a restart).
    """
    scans, place = 0, 2
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(data, place)
        if marker is None or marker[0] == b"\xff\xd9":
            return scans
        place = marker.end()
        if marker[0] not in (b"\xff\x01", b"\xff\xd8"):  # all others have a length
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
        scans += marker[0] == b"\xff\xda"
    return MAX_SEGMENTS


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas of a WebP file, whose decoder would allocate it twice just to be opened.

    https://developers.google.com/speed/webp/docs/riff_container; None if it is no WebP or its header is cut off.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_ENTRY = 12  # bytes


def is_raw(data: bytes) -> bool:
    """Whether a TIFF file is a camera's raw file (DNG, NEF, CR2, ARW, ...): its first page is only a preview.

    Told by the marks of CR2 and of Phase One, by DNG's version, and by a first page that says that it is a reduced
    form of another (TIFF 6.0, NewSubfileType).
    """
    if data[8:10] == b"CR" or data[8:12] in (b"IIII", b"MMMM"):
        return True
    if b"*" not in data[2:4]:  # BigTIFF
        return False
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    first = number(4, 4)
    for start in range(first + 2, first + 2 + _ENTRY * number(first, 2), _ENTRY):
        tag = number(start, 2)
        if tag == _DNG_VERSION or (tag == _NEW_SUBFILE_TYPE and number(start + 8, 4) & 1):
            return True
        if start > len(data):
            break
    return False


# --- Colours in sRGB, which is what models have seen: a picture that brings a profile of other colours is converted.


try:
    from PIL import ImageCms
except ImportError:  # a Pillow that was built without Little CMS
    ImageCms = None  # type: ignore[assignment]

_ALIKE = 2  # of 255: profiles that differ from sRGB by no more are sRGB, rounded otherwise
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the profile's colour space
_OF_MODE = {
    "RGB": ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"),
    "L": ("1", "L", "LA", "La"),
    "CMYK": ("CMYK",),
}


def to_srgb(picture: Image.Image, profile: object) -> Image.Image:
    """The picture in sRGB, in RGB or RGBA; as it is where the profile is none, sRGB, broken, or not of its mode."""
    transform = _transform(profile) if isinstance(profile, bytes) and profile else None
    if transform is None or picture.mode not in _OF_MODE[transform.input_mode]:
        return picture
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    converted: Image.Image = transform.apply(picture.convert(transform.input_mode))
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> Any:
    """The conversion from a profile to sRGB; None where there is nothing to convert."""
    if ImageCms is None:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform
        sample = _sample().convert(mode)
        change = ImageChops.difference(transform.apply(sample), sample.convert("RGB")).tobytes()
    except (OSError, KeyError, ValueError, TypeError, ImageCms.PyCMSError):  # a broken profile says nothing
        return None
    return transform if max(change) > _ALIKE else None


def _sample() -> Image.Image:
    """Colours of all parts of the cube."""
    levels = range(0, 256, 17)
    colours = bytes(value for red in levels for green in levels for blue in levels for value in (red, green, blue))
    return Image.frombytes("RGB", (len(levels) ** 2, len(levels)), colours)


# --- Pictures in: a path, bytes or a PIL image becomes a safe upright RGB picture, and pictures become pixels.
#
# Whatever the source, a picture ends as the same thing: 8-bit sRGB, turned upright by its EXIF orientation, its first
# frame or page, on a white background. The format is told from the content, never from the name.


Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image

MAX_PIXELS = 64_000_000  # of one picture, as its header states them
MAX_BYTES = 64 * 1024 * 1024  # of one encoded picture
_STRIP = 16  # times as long as wide: of what is longer the middle is looked at
MAX_SCANS = 100  # of one progressive JPEG, which has about ten: each scan passes over the whole picture again
BACKGROUND = (255, 255, 255)
READING = "sRGB"  # how a file becomes a picture: it changes when the same file gives other pixels than before

# Mean and standard deviation of CLIP's training pictures (openai/CLIP, clip/clip.py), which EVA-CLIP uses too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_ORIENTATION = 0x0112
_META = 4096  # bytes: an AVIF file begins with the list of its parts
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF 6.0
# EXIF 2.32, 4.6.5: what the stored picture needs to stand upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load(
    source: Source, *, max_pixels: int = MAX_PIXELS, name: str | None = None, fit: Fit | None = None
) -> Image.Image:
    """Open `source` as a new, upright, 8-bit RGB picture.

    Args:
        source: a path, the bytes of a file in one of the formats `READ`, such a file opened in binary mode, or a PIL
            image (its current frame). HEIC needs the package pillow-heif.
        max_pixels: largest width × height; the header is checked before anything is decoded.
        name: the file's that the bytes are of, for errors.
        fit: make it as small as `fit.small` does, without a copy of full size where the file needs none.

    Raises:
        ImageError: with the file's name (never its folder), what is wrong, and what to do.
    """
    if isinstance(source, Image.Image):
        return _finish(source, "The picture", max_pixels, fit)
    reads = None if isinstance(source, str | os.PathLike) else getattr(source, "read", None)
    source = source if reads is None else reads(MAX_BYTES + 1)
    if isinstance(source, bytes | bytearray | memoryview):
        called, data = "The picture" if name is None else _shown_name(name), bytes(source)
        if len(data) > MAX_BYTES:
            raise _too_many_bytes(called)
    elif isinstance(source, str | os.PathLike) and reads is None:
        called, data = _shown_name(source), read(source)
    else:
        what = "a file opened for text" if reads is not None else type(source).__name__
        raise ImageError(f"A picture must be a path, bytes, a binary file or a PIL image, not {what}.")
    _check_size(webp_size(data), called, max_pixels)
    return _finish(_open(data, called), called, max_pixels, fit)


@dataclass(frozen=True)
class Fit:
    """How a picture becomes the square that a model sees.

    `side`: S, in pixels. `resample`: the number of Pillow's filter. `shortest_edge`: how long the shorter side is made,
    of which the middle is seen, as CLIP does it; None: the whole picture is stretched.
    """

    side: int
    resample: int = Image.Resampling.BICUBIC
    shortest_edge: int | None = None

    def __str__(self) -> str:
        """As records of what was computed name it: by the side alone where nothing else was chosen."""
        return str(self.side) if self == Fit(self.side) else repr(self)

    def small(self, picture: Image.Image) -> Image.Image:
        """As small as what the model sees of it allows; the square of it is that of the picture."""
        if self.shortest_edge is None:
            return picture.resize((self.side, self.side), Image.Resampling(self.resample))
        short = min(picture.size)
        # The middle is seen, and a strip that is made as wide may be longer than memory.
        picture = _middle(picture, min(picture.width, _STRIP * short), min(picture.height, _STRIP * short))
        width, height = (int(self.shortest_edge * length / short) for length in picture.size)
        return picture.resize((width, height), Image.Resampling(self.resample))

    def square(self, picture: Image.Image) -> Image.Image:
        """S × S pixels."""
        return _middle(self.small(picture), self.side, self.side)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    if picture.size == (width, height):
        return picture
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def to_pixels(
    pictures: Sequence[Image.Image],
    fit: Fit | int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> torch.Tensor:
    """Make a square of each picture and normalise it: (I, 3, S, S) float32.

    The same numbers as the originals' `torchvision` transform on PIL pictures (LAVIS, `blip_processors.py`).

    Args:
        pictures: I pictures as `load` gives them; I may be 0.
        fit: how, or S alone: stretched by Pillow's bicubic filter.
        mean, std: per channel, of values between 0 and 1.
    """
    import numpy
    import torch

    fit = Fit(fit) if isinstance(fit, int) else fit
    pixels = numpy.empty((len(pictures), fit.side, fit.side, 3), dtype=numpy.uint8)
    for row, picture in enumerate(pictures):
        rgb = picture if picture.mode == "RGB" else load(picture)
        pixels[row] = numpy.asarray(fit.square(rgb))
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255  # (I, S, S, 3) -> (I, 3, S, S)
    scale = torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1)
    return ((values - torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)) / scale).contiguous()


def identity(picture: Image.Image) -> str:
    """A digest of the picture's mode, size and pixels: equal exactly when the pictures are."""
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode())
    if picture.palette is not None:
        digest.update(picture.palette.mode.encode() + bytes(picture.getpalette(None) or ()))
    digest.update(picture.tobytes())
    return digest.hexdigest()


def _shown_name(source: str | os.PathLike[str]) -> str:
    """The file's name without its folder, which is nobody's business, and without what would break a line."""
    name = Path(os.fspath(source)).name
    return "“" + "".join(c if c.isprintable() else "?" for c in name)[-100:] + "”"


def read(source: str | os.PathLike[str]) -> bytes:
    """A picture's file; of one that is no picture its beginning alone. Raises `ImageError` as `load` does."""
    name = _shown_name(source)
    text = os.fspath(source)
    if isinstance(text, str) and text.startswith(("http://", "https://", "file://", "data:")):
        name = "The picture" if text.startswith("data:") else name
        raise ImageError(f"{name} is an address, and addresses are not fetched: save the picture and give its path.")
    try:
        # Asked before opening: to open a named pipe would wait for ever.
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise ImageError(f"{name} is not a file: give the path of a picture.")
        with open(source, "rb") as file:
            data = file.read(HEAD)
            if format_of(data) is not None:  # of what is refused no more is read
                data += file.read(MAX_BYTES + 1 - len(data))
    except FileNotFoundError:
        raise ImageError(f"{name} was not found: check the path.") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read: check its permissions.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise ImageError(f"{name} cannot be read ({reason}): check the path.") from None
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(name)
    return data


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header, nothing more."""
    if not data:
        raise ImageError(f"{name} is empty: save or download it again.")
    if data.startswith(POINTER):
        raise ImageError(f"{name} {UNFETCHED}.")
    kind = format_of(data)
    other = "a camera's raw file" if kind == "TIFF" and is_raw(data) else other_format(data)
    if other is not None:
        raise ImageError(f"{name} is {other}, which is not opened: save it as JPEG or PNG.")
    if kind is None:
        raise ImageError(
            f"{name} is not a picture that can be opened: save it as {SPELLED} (the content counts, not the ending)."
        )
    if kind == "JPEG" and jpeg_scans(data) > MAX_SCANS:
        raise ImageError(f"{name} is a JPEG of more than {MAX_SCANS} scans: save it again as an ordinary one.")
    if kind == "AVIF" and not features.check("avif"):
        raise ImageError(f"{name} is an AVIF picture, which this Pillow does not open: save it as JPEG or PNG.")
    try:
        if kind == "HEIF":
            return _heic(name)(io.BytesIO(data))  # not registered with Pillow, which is everyone's
        if kind == "JPEG":  # not by Image.open, which looks for a stereo pair's second picture, and warns
            return JpegImageFile(io.BytesIO(data))
        return _avif(data) if kind == "AVIF" else Image.open(io.BytesIO(data), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(name) from None
    except ImageError:
        raise
    except Exception:  # a decoder's answer to damaged bytes can be any exception
        raise _damaged(name) from None


def _avif(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("AVIF",))
    except Exception:
        # A broken EXIF block makes libavif refuse the whole file: under another name it is passed over.
        data = data[:_META].replace(b"Exif", b"free") + data[_META:]
        return Image.open(io.BytesIO(data), formats=("AVIF",))


def _heic(name: str) -> Any:
    """What opens HEIC, an extra."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            f"{name} is a HEIC picture, and pillow-heif is not installed (the extra `heic`): pip install pillow-heif."
        ) from None
    return HeifImageFile


def _finish(picture: Image.Image, name: str, max_pixels: int, fit: Fit | None) -> Image.Image:
    """Decode, turn upright and convert; the result shares nothing with `picture`."""
    _check_size(picture.size, name, max_pixels)
    try:
        picture.load()
        tags = getattr(picture, "tag_v2", {})
        picture = _upright(picture)  # each step lets go of what the one before has made: a photograph is large
        picture = _to_eight_bits(picture, tags)
        picture = _to_rgb(picture, fit)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name} does not fit into the memory that is free: make it smaller.") from None
    except Exception:  # a decoder's answer to damaged bytes can be any exception
        raise _damaged(name) from None
    picture.info = {}  # EXIF, colour profiles and comments have done their work
    return picture


def _check_size(size: tuple[int, int] | None, name: str, max_pixels: int) -> None:
    if size is None:
        return
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} × {height}): use another picture.")
    if width * height > max_pixels:
        raise _too_many_pixels(name, f" ({width:,} × {height:,}, at most {max_pixels:,} pixels)")


def _too_many_pixels(name: str, detail: str = "") -> ImageError:
    return ImageError(f"{name} is too large{detail}: make it smaller.")


def _too_many_bytes(name: str) -> ImageError:
    return ImageError(f"{name} is larger than {MAX_BYTES // 2**20} MiB: make it smaller.")


def _damaged(name: str) -> ImageError:
    return ImageError(f"{name} is damaged or cut off and cannot be decoded: save or download it again.")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(_ORIENTATION)
        turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    except Exception:  # a broken EXIF block says nothing about the picture
        return picture
    return picture if turn is None else picture.transpose(turn)


def _to_eight_bits(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Grey of 16 bits as grey of 8: the high byte, as Pillow does for RGB; its own conversion would clip at 255.

    Of a TIFF, `tags` say what Pillow leaves as it is stored: how many bits are used, and whether 0 is white.
    """
    if not picture.mode.startswith("I;16"):
        return picture
    bits, white = tags.get(_BITS, (16,))[0], tags.get(_PHOTOMETRIC) == 0
    scale, base = 1 / (1 << bits - 8), 0
    if white:
        scale, base = -scale, 255
    return picture.convert("I").point(lambda value: value * scale + base).convert("L")


def _to_rgb(picture: Image.Image, fit: Fit | None) -> Image.Image:
    """A new picture, made small where that is asked."""
    if picture.mode in ("I", "F"):
        raise ImageError(f"A picture in mode {picture.mode} has no known range of values: convert it to RGB first.")
    picture = to_srgb(picture, picture.info.get("icc_profile"))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        picture = Image.alpha_composite(white, rgba)
    if fit is None:
        return picture.convert("RGB")
    return fit.small(picture if picture.mode == "RGB" else picture.convert("RGB"))
