"""Pictures in folders: all of them, with texts beside them, in WebDataset's tars, or a folder for each kind."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from minichat.data.example import Member, Problem, StoredPicture, Turn, Where, decoded, parse, read_text
from minichat.data.formats import chat, pairs
from minichat.data.formats.base import Asking, Entry, Shelf, empty, words
from minichat.data.formats.tables import PICTURE, SET, TEXT, Columns
from minichat.errors import POINTER, UNFETCHED, DataError, listing, shown
from minichat.fileio import open_file
from minichat.images import HEAD, MAX_BYTES, SPELLED, SUFFIXES, format_of, other_format

# --- The pictures in folders: all that look like one, also of formats that are not opened, so that each is told of.


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


# --- What stands beside a picture under its name, in a folder or in a tar: texts, and a record in JSON.


TEXTS = (".txt", ".caption")
NOTES = ".json"
# Files of a record that say nothing to learn: a class, a hash, a place.
_SILENT = re.compile(r"(cls|id|index|key|url|sha256|license)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:\d+\.)?(?:txt|caption)", re.IGNORECASE)


def is_text(ending: str) -> bool:
    """Whether a file holds a text by its name's ending, without the dot: `txt`, `caption`, one of several `0.txt`."""
    return _NUMBERED.fullmatch(ending) is not None


def is_silent(ending: str) -> bool:
    """Whether a file may be passed over by its name's ending, without the dot."""
    return _SILENT.fullmatch(ending) is not None


def samples(
    name: str,
    pictures: list[StoredPicture],
    texts: list[str],
    notes: Any,
    columns: Columns,
    shelf: Shelf,
    asking: Asking,
) -> Iterator[list[Turn]]:
    """The turns of a picture's texts, or of the record `notes` (None: there is none), with what it asks.

    The record is read as one of a file is; the pictures are those that stand there, whatever it calls them.

    Raises `DataError` for what is not understood.
    """
    if notes is None:
        for own, text in asking.chosen(name, texts):
            yield asking.turns(own, pictures, text)
        return
    read = notes if isinstance(notes, dict) else {}
    rest = {key: value for key, value in read.items() if key.strip().casefold() not in PICTURE}
    if texts:
        # A text is often there twice, as img2dataset writes it.
        same = [key for key, value in rest.items() if value in (texts, texts[0]) or _stripped(value) == texts]
        rest = {key: value for key, value in rest.items() if key not in same}
        if not empty(rest.pop("caption", None)):
            shelf.unread.append("'caption' of a .json beside another text")
        rest["caption"] = texts
    talks = next((key for key in ("messages", "conversations") if not empty(rest.get(key))), None)
    if talks is not None:
        record = {**rest, "images": pictures}
        yield chat.sharegpt_turns(record, shelf)
        return
    if columns.text is None and not any(key.strip().casefold() in TEXT for key in rest):
        raise DataError(f"the .json of {name!r} has no text: it must be an object with a 'caption'.")
    yield from pairs.pair_samples({**rest, "images": pictures}, shelf, columns, asking, name)


def _lines(text: str) -> str:
    """A text file's words, its lines ended as everywhere else: a carriage return would be learned."""
    return text.replace("\r\n", "\n").strip()


def _stripped(value: Any) -> list[str]:
    """The texts of a value, as a file of them is read."""
    return [_lines(text) for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


# --- A folder of pictures with texts beside them: `a.png` and `a.txt`, `a.png.txt` or `a.caption`, also in folders
# below it.
#
# A `.json` of the same name, as img2dataset writes it, is read as in a WebDataset (see `beside`).


_LOWER = (*TEXTS, NOTES)  # of these the ending's case does not matter
_LISTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xlsx", ".xls", ".ods")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of the library datasets: ImageFolder


def folder_entries(folder: Path, shown: str) -> Iterator[Entry | Problem]:
    """An entry for each text, sorted by path; a `Problem` for a picture or a text that stands alone."""
    found, closed = False, list[Skipped]()
    for stem, files in _stems(folder, closed):
        found = True
        pictures = _pictures(files)
        for name in (name for ending, name in files.items() if ending not in _LOWER and name not in pictures):
            other = next(
                (own for ending, own in files.items() if ending in _LOWER and own.lower() == name.lower()), None
            )
            what = "this looks like a picture, but " if other is None else ""
            yield Problem(
                Where(os.path.join(shown, name)),
                f"{what}beside {other or pictures[0]!r} it is not read: remove it from the folder.",
            )
        text = next((files[ending] for ending in TEXTS if ending in files), None)
        where = Where(os.path.join(shown, text or next(iter(files.values()))), 1)
        read = {ending: _text(folder, files[ending], shown) for ending in _LOWER if text and ending in files}
        texts = {ending: item for ending, item in read.items() if isinstance(item, str)}
        wrong = next((item for item in read.values() if isinstance(item, Problem)), None)
        yield wrong or Entry(where, folder, partial(_samples, folder, stem, files, texts))
    for each in closed:
        yield Problem(Where(os.path.join(shown, os.path.relpath(each.path, folder))), each.error)
    if not found and not closed:
        yield Problem(Where(shown), "the folder is empty: it must hold pictures, and .txt files of the same names.")


def has_pairs(folder: Path) -> bool:
    """Whether a text lies beside a picture somewhere."""
    return any(any(text in files for text in TEXTS) and _pictures(files) for _, files in _stems(folder, []))


def _text(folder: Path, name: str, shown: str) -> str | Problem:
    where = Where(os.path.join(shown, name), 1)
    try:
        return read_text(folder / name, where)
    except OSError as error:
        return Problem(where, f"the text cannot be read ({error.strerror}): check it.")


def _samples(
    folder: Path, stem: str, files: dict[str, str], read: dict[str, str], shelf: Shelf, asking: Asking
) -> Iterator[list[Turn]]:
    pictures = _pictures(files)
    texts = [words(_lines(read[ending]), "the text") for ending in TEXTS if ending in read]
    if not texts:
        raise DataError(f"the picture has no text: write {stem + TEXTS[0]!r}.")
    if len(pictures) != 1:
        several = f"{len(pictures)} pictures ({', '.join(map(repr, pictures))})" if pictures else "no picture"
        raise DataError(f"the text has {several} of its name beside it: it needs one.")
    if len(texts) > 1:
        both = " and ".join(repr(files[ending]) for ending in TEXTS)
        raise DataError(f"the picture has two texts, {both}: keep one of them.")
    record = parse(read[NOTES], Where(stem, 1)) if NOTES in read else None
    if isinstance(record, Problem):
        raise DataError(f"{files[NOTES]!r}: {record.text}")
    picture = StoredPicture(pictures[0], folder / pictures[0])
    yield from samples(stem, [picture], texts, record, Columns(), shelf, asking)


def _pictures(files: dict[str, str]) -> list[str]:
    """Those of formats that are opened, if there are any; others are opened in vain, which says why."""
    found = [name for name in files.values() if not name.lower().endswith(_LOWER)]
    return [name for name in found if name.lower().endswith(SUFFIXES)] or found


def _stems(folder: Path, closed: list[Skipped]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each name without its ending, and its files by their ending; relative to `folder`, sorted."""
    for parent, files in walk(folder, closed):
        stems: dict[str, dict[str, str]] = {}
        # What has a text under its whole name (`a.png.txt` of `a.png`) goes by that name.
        whole = {name[: -len(ending)] for name in files for ending in TEXTS if name.lower().endswith(ending)}
        for name in files:
            ending = Path(name).suffix
            if ending.lower() in _LOWER or looks_like_picture(parent / name):
                path = os.path.relpath(parent / name, folder)
                key = ending.lower() if ending.lower() in _LOWER else ending
                found = stems.setdefault(path if name in whole else path.removesuffix(ending), {})
                found[path if key in found else key] = path  # a.txt beside a.TXT
        # A note that stands alone, such as img2dataset's figures of a shard, is of no picture.
        yield from ((stem, found) for stem, found in stems.items() if set(found) != {NOTES})


# --- A folder for each kind: `cup/1.jpg`, `cup/2.jpg`, `tea_pot/1.jpg`. The folder's name is what its pictures show.
#
# This is torchvision's ImageFolder, which the library datasets reads, too. Sets of it (`train/cup/1.jpg`) are read as
# one, and `_` is a space. A number before all names (`10_cup`, `5_tea_pot`) is kohya's, of how often each is seen, and
# shows nothing; where names would be the same without it, it is part of them.


_REPEATS = re.compile(r"\d+_(?=.)")


def kind_entries(folder: Path, shown: str) -> Iterator[Entry | Problem]:
    """An entry for each picture, sorted by path; a `Problem` for one that is in no kind's folder."""
    closed = list[Skipped]()
    whole = {parent.name for parent, _ in _in_folders(folder, []) if parent != folder}
    short = {_REPEATS.sub("", name) for name in whole}
    numbered = len(short) == len(whole) and all(map(_REPEATS.match, whole))
    for parent, name in _in_folders(folder, closed):
        called = _REPEATS.sub("", parent.name) if numbered else parent.name
        path = os.path.relpath(parent / name, folder)
        where = Where(os.path.join(shown, path))
        if parent == folder:
            yield Problem(where, "the picture is in no folder that is named for what it shows: move it into one.")
        else:
            yield Entry(where, folder, partial(_of_kind, path, called.replace("_", " ").strip()))
    for each in closed:
        yield Problem(Where(os.path.join(shown, os.path.relpath(each.path, folder))), each.error)


def has_kinds(folder: Path) -> bool:
    """Whether pictures lie in two or more folders below it, and none in itself.

    Folders called `train` and `test` (`val2017`) are sets: they do not say what their pictures show.
    """
    parents = {parent for parent, _ in _in_folders(folder, [])}
    return len(parents) > 1 and folder not in parents and not all(SET.fullmatch(parent.name) for parent in parents)


def has_pictures(folder: Path) -> bool:
    """Whether pictures lie in a folder itself."""
    return any(file.suffix.lower() in SUFFIXES for file in folder.iterdir() if not file.name.startswith("."))


def lists_below(folder: Path) -> list[str]:
    """Files that may list pictures with their texts, as seen from the folder; those in itself come first.

    What a program notes of one picture (`a.jpg.json`) is none.
    """
    found = (
        os.path.relpath(parent / name, folder)
        for parent, names in walk(folder, [])
        for name in names
        if not (name.endswith(NOTES) and name.removesuffix(NOTES) in names)
    )
    return sorted(
        (path for path in found if path.lower().endswith(_LISTS)), key=lambda path: (path.count(os.sep), path)
    )


def _in_folders(folder: Path, closed: list[Skipped]) -> Iterator[tuple[Path, str]]:
    for parent, files in walk(folder, closed):
        yield from ((parent, name) for name in files if looks_like_picture(parent / name))


def _of_kind(path: str, kind: str, shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
    yield asking.turns(path, [shelf.picture(path)], words(kind, "the folder's name"))


# --- WebDataset's tars: files of one name (`000.jpg`, `000.txt` or `000.json`) that stand together are a record.
#
# Only headers are read to find the records; a text is read when its record's turn comes, a picture when it is opened.
# So a tar of any size costs no memory, and any record of it can be passed over.
#
# Source: WebDataset's own description of its format. A name ends at its first dot; several pictures of one name
# (`000.0.jpg`, `000.1.jpg`) are shown in their order, and several texts (`000.0.txt`, `000.1.txt`) are captions of
# them.


_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")  # gzip, bzip2, xz, zstandard


@dataclass(frozen=True)
class _Record:
    """The files of one name in a tar, by what follows the name's first dot."""

    key: str
    where: Where
    files: tuple[tuple[str, Member], ...]

    def samples(self, columns: Columns, shelf: Shelf, asking: Asking) -> Iterator[list[Turn]]:
        """The picture or pictures with what stands beside them; reads texts and JSON alone."""
        endings = [ending for ending, _ in self.files]
        for ending in endings:
            if endings.count(ending) > 1:
                raise DataError(f"the tar holds {shown(f'{self.key}.{ending}')} twice: it must be there once.")
        pictures, texts, notes = list[StoredPicture](), list[str](), None
        for ending, member in self.files:
            if f".{ending}".endswith(SUFFIXES):
                pictures.append(StoredPicture(f"{self.key}.{ending}", member))
            elif is_text(ending):
                texts.append(words(_lines(self._decoded(member)), f"the text of {shown(self.key)}"))
            elif f".{ending}" == NOTES:
                notes = self._notes(member)
            elif not is_silent(ending):
                shelf.unread.append(f"{'.' + ending!r} of a tar")
        if not pictures:
            known = ", ".join(SUFFIXES)
            raise DataError(f"{shown(self.key)} has no picture ({listing(endings)}): it needs one of {known}.")
        if not texts and notes is None:
            raise DataError(f"{shown(self.key)} has no text: it needs a .txt, or a .json with a caption.")
        yield from samples(self.key, pictures, texts, notes, columns, shelf, asking)

    def _notes(self, member: Member) -> Any:
        value = parse(self._decoded(member), self.where)
        if isinstance(value, Problem):
            raise DataError(f"the .json of {shown(self.key)}: {value.text}")
        return [] if value is None else value

    def _decoded(self, member: Member) -> str:
        if member.size > MAX_BYTES:
            raise DataError(f"the text of {shown(self.key)} has {member.size:,} bytes: at most {MAX_BYTES:,}.")
        data = StoredPicture(self.key, member).read()
        text = decoded(data, self.where)
        if isinstance(text, Problem):
            raise DataError(f"the text of {shown(self.key)}: {text.text}")
        return text


def expand(pattern: str) -> list[str]:
    """The files that a pattern names: `{00000..00012}` counts with leading zeros, `*` and `?` stand for what is there.

    A folder stands for itself. Nothing where no file is of the pattern.
    """
    found: list[str] = []
    for name in ranges(pattern):
        found += sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
    return found


def ranges(pattern: str) -> list[str]:
    """A pattern with each number of `{00000..00012}` in its place."""
    names = [pattern]
    while any(_RANGE.search(name) for name in names):
        names = [spelled for name in names for spelled in _counted(name)]
    return names


def tars(pattern: str) -> list[str]:
    """The tars that a pattern names; a folder stands for those in it. Raises `DataError` where that is none."""
    found: list[str] = []
    for name in expand(pattern):
        found += sorted(glob.glob(os.path.join(glob.escape(name), "*.tar"))) if os.path.isdir(name) else [name]
    if not found:
        raise DataError(f"There is no tar at {pattern!r}: check the path.")
    return found


def _counted(name: str) -> list[str]:
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = found[1], found[2]
    if int(last) < int(first):
        raise DataError(f"The range {found[0]} in {shown(name)} counts down: write the smaller number first.")
    width = len(first) if first.startswith("0") else 0
    return [
        f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}" for number in range(int(first), int(last) + 1)
    ]


def tar_entries(path: Path, file: str, columns: Columns) -> Iterator[Entry | Problem]:
    """The records of one tar, in order; a `Problem` where it is damaged, or holds what is no file.

    Raises `DataError` for a file that is missing or no tar.
    """
    key, files, count = "", list[tuple[str, Member]](), 0
    seen: set[str] = set()

    def entry() -> Entry | Problem:
        where = Where(file, count)
        if key in seen:
            return Problem(where, f"the name {shown(key)} was there before: the files of a record must stand together.")
        seen.add(key)
        return Entry(where, path.parent, partial(_Record(key, where, tuple(files)).samples, columns))

    for member in members(path, file):
        stem, ending = ("", "") if isinstance(member, Problem) else key_of(member[0])
        if files and stem != key:
            count += 1
            yield entry()
            files = []
        if isinstance(member, Problem):
            count += 1
            yield Problem(Where(file, count), member.text)
            continue
        key = stem
        files.append((ending, member[1]))
    if files:
        count += 1
        yield entry()
    if count == 0:
        yield Problem(Where(file, 1), "the tar is empty: there is no record in it.")


def key_of(name: str) -> tuple[str, str]:
    """A file's key, with its folder, and what follows the first dot of its name, in lower case."""
    folder, base = os.path.split(name)
    stem, _, ending = base.partition(".")
    return os.path.join(folder, stem), ending.lower()


def members(path: Path, file: str) -> Iterator[tuple[str, Member] | Problem]:
    """The files of a tar by their headers, and what is damaged."""
    try:
        with open_file(path) as opened:
            start = opened.read(len(POINTER))
            if start == POINTER:
                raise DataError(f"{file} {UNFETCHED}.")
            if start.startswith(_PACKED):
                raise DataError(f"{file}: the tar is compressed, so that nothing in it can be found: unpack it.")
            opened.seek(0)
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                yield from _headers(tar, opened, path)
    except FileNotFoundError:
        raise DataError(f"{file} was not found: check the path.") from None
    except tarfile.TarError as error:
        yield Problem(_NOWHERE, f"the tar is damaged here ({error}); fetch it again.")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): check it.") from None


def _headers(tar: tarfile.TarFile, opened: IO[bytes], path: Path) -> Iterator[tuple[str, Member] | Problem]:
    whole = path.stat().st_size
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a million files would otherwise be remembered
        name = info.name.removeprefix("./")
        if info.size < 0:
            yield Problem(_NOWHERE, f"the header of {shown(name)} states a negative size: the tar is damaged here.")
            return
        # WebDataset's own notes are named with __; hidden files are macOS's (._000.jpg), and no part of a record.
        if info.isdir() or name.startswith("__") or os.path.basename(name).startswith("."):
            continue
        if not info.isreg() or info.issparse():
            yield Problem(_NOWHERE, f"{shown(name)} is a link or no ordinary file: put the file itself into the tar.")
        elif info.offset_data + info.size > whole:
            yield Problem(_NOWHERE, f"the tar ends within {shown(name)}: it was cut off; fetch it again.")
            return
        else:
            yield name, Member(path, info.offset_data, info.size)
    opened.seek(tar.offset)
    block = opened.read(tarfile.BLOCKSIZE)
    if block != tarfile.NUL * tarfile.BLOCKSIZE:
        what = "ends without its end mark: it was cut off" if len(block) < tarfile.BLOCKSIZE else "is damaged here"
        yield Problem(_NOWHERE, f"the tar {what}; fetch it again.")


_NOWHERE = Where("")  # until it is known how many records came before
