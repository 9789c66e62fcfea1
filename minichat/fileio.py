"""Files: written whole or not at all, and which of those in a folder are pictures."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal

from minichat.errors import DataError, MiniChatError

# --- Files and folders that are written whole or not at all.


locks: ModuleType | None
try:
    import fcntl as locks
except ImportError:  # Windows
    locks = None

_UNFINISHED = ".unfinished"


@contextmanager
def new_folder(out: Path, error: type[MiniChatError]) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end, and is removed if anything fails before.

    What a killed process left there of its own attempt is removed first. Raises `error` if `out` is there already and
    not an empty folder, or cannot be written.
    """
    out = out.expanduser().absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise error(f"{out.name!r} exists already: remove it, or name another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(out)
        made, held = _make_unfinished(out)
    except OSError as failure:
        raise error(f"{out.name!r} cannot be made ({failure.strerror}): check the folder it is to be in.") from None
    try:
        yield made
        open_to_others(made)
        if os.name == "nt" and out.is_dir():  # elsewhere an empty folder gives way
            out.rmdir()
        os.replace(made, out)
    except OSError as failure:
        reason = failure.strerror or failure
        raise error(f"{out.name!r} cannot be written ({reason}): nothing was left behind.") from failure
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if held is not None:
            os.close(held)


def _make_unfinished(out: Path) -> tuple[Path, int | None]:
    """A new temporary folder, locked for as long as this process is at work in it."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_UNFINISHED, dir=out.parent))
        try:
            return made, _lock(made)
        except (BlockingIOError, FileNotFoundError):  # another process found it before it was locked, and removes it
            continue


def _remove_unfinished(out: Path) -> None:
    """Remove the temporary folders for `out` that no process is at work in."""
    for left in out.parent.iterdir():
        if left.name.startswith(f".{out.name}.") and left.name.endswith(_UNFINISHED):
            try:
                held = _lock(left)
            except OSError:
                continue
            if held is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process; None where the system has none.

    Raises `BlockingIOError` where another process holds it, and `FileNotFoundError` for a folder that is gone.
    """
    if locks is None:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        locks.flock(held, locks.LOCK_EX | locks.LOCK_NB)
        folder.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(held)
        raise
    except OSError:  # a file system without locks
        os.close(held)
        return None
    return held


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let one process at a time into the block; the lock on the file `path` ends with the process, however it ends.

    `waiting` is called once where another process is in it. Raises `OSError` where the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if locks is not None:
            try:
                locks.flock(file, locks.LOCK_EX | locks.LOCK_NB)
            except BlockingIOError:
                waiting()
                locks.flock(file, locks.LOCK_EX)
            except OSError:  # a file system without locks
                pass
        yield


@contextmanager
def new_file(out: Path, error: type[MiniChatError]) -> Iterator[IO[bytes]]:
    """A temporary file beside `out` that becomes `out` at the end, and is removed if anything fails before.

    Raises `error` if `out` is there already, or cannot be written.
    """
    out = out.expanduser().absolute()
    if out.exists():
        raise error(f"{out.name!r} exists already: remove it, or name another file.")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    except OSError as failure:
        raise error(f"{out.name!r} cannot be made ({failure.strerror}): check the folder it is to be in.") from None
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        open_to_others(Path(temporary))
        os.replace(temporary, out)
    except OSError as failure:
        raise error(f"{out.name!r} cannot be written ({failure.strerror}): nothing was left behind.") from failure
    finally:
        Path(temporary).unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, also after a power cut, the old or the new one is there whole."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        open_to_others(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_disk(path: Path) -> None:
    """Past the system's buffers: a file's content, or a folder's list of names where the system lets that be asked."""
    if path.is_dir():
        with suppress(OSError):  # Windows opens no folder, and some file systems sync none
            _sync(path, os.O_RDONLY)
    else:
        _sync(path, os.O_RDWR)  # Windows syncs no file that is opened to be read


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(name: str, error: type[MiniChatError]) -> Iterator[None]:
    """Raise `error`, in a sentence, where the disk does not take the file `name` in the block."""
    try:
        yield
    except OSError as failure:
        raise error(
            f"{name} cannot be written ({failure.strerror or failure}): make room or check the folder, and the same "
            "command goes on."
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, in readable letters of any script."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # of what is no Unicode that is JSON's escape


def json_line(record: Mapping[str, Any]) -> str:
    """A record as one line without its end, in readable letters of any script."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is no Unicode: escaped, it can be read back
        return json.dumps(record)
    return line


def open_to_others(made: Path) -> None:
    """What `tempfile` or safetensors makes is private: give it, and the files in it, the rights that a new one has."""
    mask = os.umask(0)
    os.umask(mask)
    made.chmod((0o777 if made.is_dir() else 0o666) & ~mask)
    for file in made.iterdir() if made.is_dir() else ():
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


def open_file(path: Path) -> IO[bytes]:
    """An ordinary file, opened to be read. A named pipe, which would be waited for without end, a socket and a device
    raise an `OSError` that says so, as all else that cannot be opened does.
    """
    sorts = {"a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK, "a device": stat.S_ISCHR, "a disk": stat.S_ISBLK}
    mode = path.stat().st_mode  # asked before opening: to open a pipe waits for whoever writes to it
    for name, is_it in sorts.items():
        if is_it(mode):
            raise OSError(errno.EINVAL, f"it is {name}, not a file")
    return open(path, "rb")


# --- What kind of picture a file is, told from its bytes or, in a folder, from its name; nothing is decoded here.
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


# --- The pictures in folders: all that look like one, also of formats that are not opened, so that each is told of.


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is left out, and why."""

    path: Path
    error: str


def _refuse(closed: Skipped) -> None:
    raise DataError(closed.error)


def find_pictures(
    inputs: Iterable[str | os.PathLike[str]], leave_out: Callable[[Skipped], None] = _refuse
) -> list[Path]:
    """The pictures named, in order and each once; a folder stands for the pictures below it, sorted by path.

    In a folder `looks_like_picture` decides, and hidden files and folders are left out. Links to folders are followed
    last, but not upwards, and no folder is looked through twice. A file that is named is always taken, even if it is
    missing or no picture. What looks like a picture and is none that can be opened, opening it says.

    Args:
        leave_out: is told of each folder that cannot be read, where others have pictures; default: it is an error.

    Raises:
        DataError: a folder cannot be read or has no pictures, or nothing is named at all.
    """
    found: dict[str, Path] = {}  # by absolute path, so that `a.png ./a.png .` is one picture
    for given in map(Path, inputs):
        closed: list[Skipped] = []
        pictures = list(_below(given, closed)) if given.is_dir() else [given]
        for each in closed:
            (leave_out if pictures else _refuse)(each)
        if not pictures:
            raise DataError(f"No pictures are in the folder {str(given)!r} or below it: {SPELLED} are looked for.")
        for picture in pictures:
            found.setdefault(os.path.abspath(picture), picture)
    if not found:
        raise DataError("There is nothing to caption: name pictures or folders of pictures.")
    return list(found.values())


def looks_like_picture(path: Path) -> bool:
    """Whether a file is a picture by its ending, or, where it has none, by its content."""
    ending = path.suffix.lower()
    if ending:
        return ending in SUFFIXES or ending in OTHER_SUFFIXES
    try:
        if not path.is_file():  # to open a named pipe would wait for ever
            return False
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return (format_of(head) or other_format(head)) is not None


def _holds(link: Path, folder: Path) -> bool:
    """Whether what is linked is the folder itself or above it: everything there was not asked for."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _below(folder: Path, closed: list[Skipped]) -> Iterator[Path]:
    """The pictures; folders that cannot be read are added to `closed`."""
    for parent, names in walk(folder, closed):
        yield from (path for name in names if looks_like_picture(path := parent / name))


def walk(folder: Path, closed: list[Skipped]) -> Iterator[tuple[Path, list[str]]]:
    """The folder and those below it, each with the names of its files, sorted and without hidden ones.

    Links to folders are followed last, but not upwards, and no folder is looked through twice. Folders that cannot be
    read are added to `closed`.
    """

    def note(error: OSError) -> None:
        why = f"The folder {error.filename!r} cannot be read ({error.strerror}): check its permissions."
        closed.append(Skipped(Path(error.filename), why))

    tops, seen = [folder], set[str]()
    for top in tops:  # links that are found are added to them: os.walk itself would follow a circle for ever
        for parent, folders, files in os.walk(top, onerror=note):
            # `folders` is changed in place, so that os.walk heeds it: sorted, and without hidden ones.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            tops += [path for name in folders if (path := Path(parent, name)).is_symlink() and not _holds(path, folder)]
            yield Path(parent), sorted(name for name in files if not name.startswith("."))
