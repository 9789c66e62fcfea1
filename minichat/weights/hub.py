"""Files of the Hugging Face hub: what there is, whether it may be had, and whether what came is what was published.

Everything goes through `huggingface_hub`: its cache, its resuming of a connection that broke, its tokens and its
progress bars. Its variables hold here too (`HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, …).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from minichat.errors import ModelError, sentence

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS = 3  # at a connection that breaks, beyond those that huggingface_hub makes itself
_NOT_HERE = "{!r} is not in the local cache and the hub cannot be reached: go online once."


class Gated(ModelError):
    """A repository whose licence must be accepted before its files may be had."""


class Absent(ModelError):
    """No such repository, revision or file, or a private one."""


class Unreachable(ModelError):
    """No network, or no hub behind it, and what is asked for is not in the local cache."""


class BrokenOff(ModelError):
    """The connection broke, or a file came short."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository. `kind` is "model" or "space"; `revision` a commit, so that it never changes."""

    repository: str
    path: str
    revision: str
    kind: str = "model"


@dataclass(frozen=True)
class Listed:
    """What the hub says of a file."""

    path: str
    size: int  # bytes
    here: bool  # in the local cache already


def snapshot(name: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The local copy of a repository's files that match `patterns`; from the cache where there is no network.

    Raises `Gated`, `Absent`, `Unreachable`, or another `ModelError` where fetching broke off.
    """
    from huggingface_hub import snapshot_download

    def ask() -> str:
        return snapshot_download(name, revision=revision, allow_patterns=list(patterns))

    return _patiently(name, "model", ask)


def cached(name: str, revision: str) -> Path | None:
    """The local copy of a model repository at a commit, whole or not; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def fetch_file(file: HubFile) -> Path:
    """The local copy of one file. Raises as `snapshot` does."""
    from huggingface_hub import hf_hub_download

    def ask() -> str:
        return hf_hub_download(file.repository, file.path, revision=file.revision, repo_type=file.kind)

    return _patiently(file.repository, file.kind, ask)


def _patiently(name: str, kind: str, ask: Callable[[], str]) -> Path:
    """Ask again where the connection broke: what came is kept, and the rest is asked for."""
    for _ in range(_ATTEMPTS - 1):
        try:
            with _asking(name, kind):
                return Path(ask())
        except BrokenOff:
            time.sleep(1)
    with _asking(name, kind):
        return Path(ask())


def file_is_here(file: HubFile) -> bool:
    """Whether the local cache holds it; asks nobody."""
    return _here(file.repository, file.path, file.revision, file.kind)


def look_at_file(file: HubFile) -> Listed:
    """Whether it may be had, and how large it is; it is not fetched. Raises as `snapshot` does."""
    from huggingface_hub import HfApi, hf_hub_url

    with _asking(file.repository, file.kind):
        address = hf_hub_url(file.repository, file.path, revision=file.revision, repo_type=file.kind)
        found = HfApi().get_hf_file_metadata(url=address)
    return Listed(file.path, found.size or 0, file_is_here(file))


def look(name: str, config: str = "config.json") -> list[Listed]:
    """A model repository's files. Its configuration alone is fetched, to see whether the files may be had.

    Raises as `snapshot` does.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with _asking(name):
        info = HfApi().model_info(name, files_metadata=True)
        hf_hub_download(name, config, revision=info.sha)
        siblings = info.siblings or []
    return [Listed(f.rfilename, f.size or 0, _here(name, f.rfilename, str(info.sha))) for f in siblings]


def matching(files: Iterable[Listed], patterns: Sequence[str]) -> list[Listed]:
    return [file for file in files if any(fnmatchcase(file.path, pattern) for pattern in patterns)]


def _here(name: str, path: str, revision: str, kind: str = "model") -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, path, revision=revision, repo_type=kind), str)


def verify(folder: Path, names: Iterable[str]) -> None:
    """Hash files of a repository's local copy, as far as the hub keeps their hashes (its large files).

    Raises `ModelError` for the first that is not what was published; it is removed, so that it is fetched anew. Files
    that are not of the hub's cache are left alone.
    """
    for name in names:
        file = folder / name
        # The cache keeps a large file under its hash, and links to it.
        wanted = Path(os.readlink(file)).name if file.is_symlink() else ""
        if _SHA256.fullmatch(wanted) and (found := sha256(file)) != wanted:
            discard(file)
            raise ModelError(
                f"{name} did not come as it was published: its SHA-256 begins with {found[:12]}, not {wanted[:12]}; it "
                "was removed, so fetch it again."
            )


def sha256(file: Path) -> str:
    """Hexadecimal digits. Raises `ModelError` for a file that cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read ({error.strerror}): check it.") from None


def discard(file: Path) -> None:
    """Remove a file from the hub's cache, and what it links to."""
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def page(name: str, kind: str = "model") -> str:
    """A repository's page, for a person."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'spaces/' if kind == 'space' else ''}{name}"


@contextmanager
def _asking(name: str, kind: str = "model") -> Iterator[None]:
    """What the hub, the network and the disk may answer, as our errors."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise Gated(
            f"The hub gives {name!r} to those alone who have accepted its licence: accept it at {page(name, kind)}, "
            "log in with `hf auth login`, and try again."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise Absent(f"The hub has no repository {name!r}, or it is private.") from None
    except (RevisionNotFoundError, RemoteEntryNotFoundError) as error:
        raise Absent(f"The repository {name!r} has no such file or revision ({sentence(error)}).") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise Unreachable(_NOT_HERE.format(name)) from None
    except HfHubHTTPError as error:
        raise ModelError(f"The hub did not give {name!r} ({sentence(error)}): try again later.") from None
    except Exception as error:  # httpx, hf_xet and huggingface_hub each have their own
        if type(error).__name__ in ("ConnectError", "ConnectTimeout"):  # httpx's, or httpx2's
            raise Unreachable(_NOT_HERE.format(name)) from None
        if isinstance(error, OSError) and error.errno:
            raise ModelError(
                f"{name!r} cannot be kept in the hub's cache ({error.strerror}): make room, or set HF_HOME to another "
                "folder."
            ) from None
        raise BrokenOff(
            f"{name!r} did not come whole ({sentence(error)}): run it again; the files that came whole are kept."
        ) from None
