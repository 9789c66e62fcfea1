"""A known model → its folder: fetched and converted once, offline afterwards.

Everything that only a person can get is found out and asked for in one message before anything large is fetched. What
comes from the hub stays in the hub's cache; the converted model refers to its LLM there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minichat.disk import locked
from minichat.errors import ModelError
from minichat.weights import hub
from minichat.weights.hub import HubFile
from minichat.weights.known import KNOWN_LLMS, Joined, KnownModel, PublishedFile, Repository
from minichat.weights.packaged import packaged_folder
from minichat.weights.places import files_folder, gigabytes, home, shown, tell

_SPARE = 64 * 1024**2  # bytes: configurations, tokenizers, the index of a file system


def model_folder(model: KnownModel | Joined) -> Path:
    return home() / model.name


def is_here(model: KnownModel | Joined) -> bool:
    """Whether the model is converted already. Its folder was written whole or not at all."""
    return (model_folder(model) / "config.json").is_file()


def fetch(model: KnownModel, say: Callable[[str], None] | None = None) -> Path:
    """The model's folder; fetched and converted first where it is not there yet, by one process at a time.

    `say` is told what is being done; by default it is written to stderr. Raises `ModelError` where a person must get
    something first, where the disk is too small, or where a file is not what it should be.
    """
    return _made(model, lambda folder: _make(model, folder, say or tell), say or tell)


def join(model: Joined, vision: Path, say: Callable[[str], None] | None = None) -> Path:
    """The folder of a vision side before a packaged LLM; put together first where that was not done yet.

    `vision`: the folder of `model.vision`.

    Nothing is downloaded. Raises `ModelError`, which says the command that fetches it, where the LLM is not here.
    """
    say = say or tell
    packaged_folder(KNOWN_LLMS[model.llm], say)

    def make(folder: Path) -> None:
        from minichat.weights.convert import convert

        convert(folder, blip2=str(vision), llm=model.llm)

    return _made(model, make, say)


def _made(model: KnownModel | Joined, make: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    folder, lock = model_folder(model), home() / f".{model.name}.lock"
    if is_here(model):
        return folder
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ModelError(
            f"{model.name!r} cannot be kept in {shown(home())} ({error.strerror}): set MINICHAT_HOME to another folder."
        ) from None
    with locked(lock, lambda: say(f"Another process is making {model.name}: waiting for it ...")):
        if not is_here(model):
            make(folder)
    return folder


@dataclass
class _Plan:
    """What a model is made of here, and what is missing."""

    arguments: dict[str, Any] = field(default_factory=dict)  # of `convert`
    single: dict[str, tuple[PublishedFile, HubFile]] = field(default_factory=dict)  # of those, what is to be fetched
    asked: list[str] = field(default_factory=list)  # of the person
    size: int = 0  # bytes to be fetched


def _make(model: KnownModel, folder: Path, say: Callable[[str], None]) -> None:
    from minichat.weights.convert import convert

    plan = _plan(model)
    if plan.asked:
        raise ModelError(
            f"{model.name!r} needs what cannot be fetched for you; nothing was downloaded yet. "
            f"{' '.join(f'({number}) {what}' for number, what in enumerate(plan.asked, start=1))}"
        )
    _check_space(model, plan)
    if plan.size:
        say(f"{model.name}: fetching {gigabytes(plan.size)}, once (licence: {model.licence}) ...")
    for argument, (file, source) in plan.single.items():
        plan.arguments[argument] = _fetched(file, source)
    given = {**plan.arguments, **model.options}
    convert(folder, template=model.template, progress=lambda step: say(f"{step} ..."), **given)
    say(f"{model.name} is in {shown(folder)}.")


def _plan(model: KnownModel) -> _Plan:
    plan = _Plan()
    _take(plan, "projection", model.projection)
    vit = files_folder() / model.vit.name
    if vit.is_file():
        _take(plan, "vit", model.vit)
        if model.qformer is not None:
            _take(plan, "qformer", model.qformer)
    else:
        plan.arguments["blip2"] = _place(plan, model.blip2, _blip2_size(model))
        plan.arguments["no_qformer"] = model.qformer is None
    plan.arguments["llm"] = _place(plan, model.llm, _llm_size)
    return plan


def _take(plan: _Plan, argument: str, file: PublishedFile) -> None:
    """A single file: the one that the person put there, else the hub's, else it is asked for."""
    put = files_folder() / file.name
    if put.is_file():
        _check(put, file)
        plan.arguments[argument] = put
        return
    size = "" if file.size is None else f" ({gigabytes(file.size)})"
    ask = f"Download {file.name}{size} from {file.page} and put it into {shown(files_folder())}."
    if file.hub is None:
        plan.asked.append(ask)
        return
    plan.single[argument] = file, file.hub
    if hub.file_is_here(file.hub):
        return
    try:
        plan.size += hub.look_at_file(file.hub).size
    except hub.Unreachable:
        plan.asked.append(f"The hub cannot be reached: go online once, or: {ask}")
    except (hub.Absent, hub.Gated):
        plan.asked.append(ask)


def _place(plan: _Plan, repository: Repository, size: Callable[[Repository], int]) -> str:
    """A repository: the folder of its name that the person put there, else the hub's."""
    put = files_folder() / repository.id.rpartition("/")[2]
    if put.is_dir():
        return str(put)
    try:
        plan.size += size(repository)
    except hub.Unreachable:  # the whole of it may be in the cache; if it is not, the conversion says so
        pass
    except hub.Gated:
        plan.asked.append(
            f"Accept the licence of {repository.id} at {hub.page(repository.id)} and log in with `hf auth login`, or "
            f"put its folder there as {shown(put)}."
        )
    except hub.Absent:
        plan.asked.append(
            f"Get {repository.id}, which the hub does not show any more, and put its folder there as {shown(put)}."
        )
    return repository.id


def _llm_size(llm: Repository) -> int:
    """Bytes that are not in the cache yet. Raises as `hub.look` does."""
    from minichat.weights.llm import FILES, PICKLED

    listed = hub.look(llm.id)
    files = hub.matching(listed, FILES)
    if not any(file.path.endswith(".safetensors") for file in files):
        files += hub.matching(listed, [PICKLED])
    return sum(file.size for file in files if not file.here)


def _blip2_size(model: KnownModel) -> Callable[[Repository], int]:
    from minichat.weights.blip2 import CONFIGS, vision_files

    def size(blip2: Repository) -> int:
        listed = hub.look(blip2.id)
        needed = vision_files(hub.snapshot(blip2.id, CONFIGS), model.qformer is not None)
        return sum(file.size for file in hub.matching(listed, needed) if not file.here)

    return size


def _fetched(file: PublishedFile, source: HubFile) -> Path:
    """A single file from the hub, checked before it is used."""
    path = hub.fetch_file(source)
    try:
        _check(path, file)
    except ModelError:
        hub.discard(path)
        raise
    return path


def _check(path: Path, file: PublishedFile) -> None:
    """Raise `ModelError`, with both values, unless it is the file that was published."""
    wrong = f"{path.name} is not {file.name} as it was published:"
    mend = "download it again, or give another file on purpose to `minichat convert`."
    if file.size is not None and (size := path.stat().st_size) != file.size:
        raise ModelError(f"{wrong} it has {size:,} bytes, not {file.size:,}: {mend}")
    if file.sha256 is not None and (found := hub.sha256(path)) != file.sha256:
        raise ModelError(f"{wrong} its SHA-256 begins with {found[:12]}, not {file.sha256[:12]}: {mend}")


def _check_space(model: KnownModel, plan: _Plan) -> None:
    """Raise `ModelError`, with both sizes, where the disks have no room for what is fetched and what is made of it."""
    from huggingface_hub import constants

    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for place, size in ((home(), model.folder + _SPARE), (Path(constants.HF_HUB_CACHE), plan.size)):
        there = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
        device = there.stat().st_dev
        needed[device] = needed.get(device, 0) + size
        places.setdefault(device, there)
    for device, size in needed.items():
        free = shutil.disk_usage(places[device]).free
        if free < size:
            raise ModelError(
                f"{model.name!r} needs {gigabytes(size)} on the disk of {shown(places[device])}, and {gigabytes(free)} "
                "are free there: make room, or set MINICHAT_HOME (converted models) and HF_HOME (downloads) to folders "
                "on another disk."
            )
