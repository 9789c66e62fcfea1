"""What kind of picture a file is, told from its bytes or, in a folder, from its name; nothing is decoded here.

Formats have Pillow's names. Only those of `READ` are opened: decoders of rarely used formats are where image libraries
have their holes (Pillow's EPS even runs Ghostscript).
"""

from __future__ import annotations

import re
from typing import Literal

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

#: Endings of pictures whose formats are not opened: cameras' raw files, drawings, and what programs of their own write.
OTHER_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    ".bpg", ".cin", ".cur", ".dcm", ".dds", ".dpx", ".emf", ".eps", ".exr", ".fit", ".fits", ".flif", ".fts", ".hdp",
    ".hdr", ".icns", ".ico", ".insp", ".j2c", ".j2k", ".jng", ".jp2", ".jpc", ".jpf", ".jpm", ".jps", ".jpx", ".jxl",
    ".jxr", ".jxs", ".kra", ".mng", ".ora", ".pam", ".pbm", ".pct", ".pcx", ".pfm", ".pgm", ".pic", ".pict", ".pnm",
    ".ppm", ".psb", ".psd", ".qoi", ".ras", ".sgi", ".svg", ".svgz", ".tga", ".wbmp", ".wdp", ".wmf", ".xbm", ".xcf",
    ".xpm",
)  # fmt: skip

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
