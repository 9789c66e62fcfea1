"""Files of weights: folders, this machine's cache, and the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from minichat.errors import POINTER, UNFETCHED, ModelError, sentence

# --- Where things are kept on this machine, and how they are told to a person.


def home() -> Path:
    """Where converted models are, and what a person puts there: `MINICHAT_HOME`, or `minichat` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MINICHAT_HOME") or f"{cache}/minichat").expanduser().absolute()


def files_folder() -> Path:
    """Where a person puts published files that cannot be fetched, or that are to be taken instead."""
    return home() / "files"


def shown(path: Path) -> str:
    """A path for a person, who knows the own home folder."""
    try:
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    except (ValueError, RuntimeError):
        return str(path)


def gigabytes(size: float) -> str:
    """Bytes as the hub's pages show them."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def tell(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


# --- Files of the Hugging Face hub: what there is, whether it may be had, and whether what came is what was published.
#
# Everything goes through `huggingface_hub`: its cache, its resuming of a connection that broke, its tokens and its
# progress bars. Its variables hold here too (`HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, …).


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


# --- Folders of weights: where they are, what is in them, and errors that name the file.


GGUF_MAGIC = b"GGUF"
FACTS = "minichat.json"  # of a projection's folder
ADAPTER = "adapter"  # the folder of a trained adapter, beside a projection or in a model's folder
QFORMER_ADAPTER = "adapter_qformer"  # one of its Q-Former, in the same place
ADAPTERS = "adapters"  # in a model's folder: others that were trained on it, each with its projection, by its name
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_projection(folder: Path) -> bool:
    """A projection's folder, not a whole model's."""
    return (folder / FACTS).is_file() and not (folder / "config.json").exists()


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is one."""
    try:
        with path.open("rb") as opened:
            return opened.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def trained_adapter(*folders: Path, kind: str = ADAPTER) -> Path | None:
    """The adapter that was trained with a projection, or of the model that it stands on: the first of these folders
    that has one. `kind`: of the LLM, or `QFORMER_ADAPTER`."""
    return next((folder / kind for folder in folders if has_adapter(folder / kind)), None)


def has_trained(*folders: Path) -> bool:
    """Whether an adapter was trained of any part, as `trained_adapter` finds them."""
    return any(trained_adapter(*folders, kind=kind) is not None for kind in (ADAPTER, QFORMER_ADAPTER))


def adapters_of(folder: Path) -> list[Path]:
    """The adapters by name beside the model in this folder."""
    inside = folder / ADAPTERS
    return [place for place in inside.iterdir() if is_projection(place)] if inside.is_dir() else []


def has_adapter(folder: Path) -> bool:
    """Whether a PEFT adapter lies in this folder."""
    return (folder / ADAPTER_CONFIG).is_file() or any((folder / name).is_file() for name in ADAPTER_WEIGHTS)


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WEIGHTS = "model.safetensors"


def find_folder(name: str, what: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """A folder, or a hub id's files that match `patterns`. Raises `ModelError`; `what` says what was looked for."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{what} {name!r} is a file: give the folder that holds its config.json and weights.")
    nowhere = f"{what} {name!r} is not there: it is no folder that exists"
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{nowhere}, and no hub id of the form owner/name.")
    return from_hub(name, patterns, nowhere + ",", revision)


def from_hub(name: str, patterns: Sequence[str], nowhere: str, revision: str | None = None) -> Path:
    """The local copy of a repository's files; from the cache where there is no network. `nowhere` begins the error."""
    try:
        return snapshot(name, patterns, revision)
    except Absent:
        raise ModelError(f"{nowhere} and the hub has no such repository, or it is private.") from None
    except Unreachable:
        raise ModelError(
            f"{nowhere} and as a hub id it is not in the local cache and the hub cannot be reached: go online once."
        ) from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a folder. Raises `ModelError` where it is missing or is none."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"The folder {folder.name!r} has no {name}: it is not a model, or not a whole one.") from None
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"{name} in {folder.name!r} cannot be read as JSON: download or convert it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{name} in {folder.name!r} is not a JSON object: download or convert it again.")
    return content


def weight_files(folder: Path, base: str = WEIGHTS) -> list[str]:
    """The names of a folder's weight files, by its index where it has one. They may be missing.

    Raises `ModelError` for an index that names none, or points out of its folder.
    """
    index = f"{base}.index.json"
    if not (folder / index).is_file():
        return [base]
    return sorted(set(weight_map(folder, index).values()))


def weight_map(folder: Path, index: str) -> dict[str, str]:
    """Tensor → file, as an index says. Raises `ModelError` as `weight_files` does."""
    listed = read_json(folder, index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{index} in {folder.name!r} names no weights: download or convert the model again.")
    files = {str(tensor): str(file) for tensor, file in listed.items()}
    for file in files.values():
        if Path(file).name != file:
            raise ModelError(f"The weights of {folder.name!r} point out of their folder, to {file!r}: that is refused.")
    return files


def is_pointer(file: Path) -> bool:
    """Whether Git left this in the place of a large file. Raises `OSError`."""
    with file.open("rb") as opened:
        return opened.read(len(POINTER)) == POINTER


def check_header(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """A file's tensors: name → shape. Raises `ModelError`, naming it, unless it is a whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        if is_pointer(folder / name):
            raise ModelError(f"{name} in {folder.name!r} {UNFETCHED}.")
        with safe_open(folder / name, framework="pt") as file:
            return {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"The folder {folder.name!r} has no {name}: some of the weights are missing.") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name} in {folder.name!r} is damaged or cut off ({sentence(error)}): download or convert it again."
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing its own report: what is wrong is raised, and a small model needs no progress."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
