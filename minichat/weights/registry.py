"""Names that can be loaded: what there is, and a known model → its folder, fetched and converted once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from minichat.device.memory import CONTEXT, estimate, gib
from minichat.device.placement import QUANTIZED
from minichat.errors import ModelError
from minichat.fileio import locked
from minichat.model import MiniChatConfig
from minichat.prompt.template import OWN
from minichat.weights import hub
from minichat.weights.check_config import WITH_EYES
from minichat.weights.hub import HUB_ID, HubFile, files_folder, from_hub, gigabytes, home, shown, tell
from minichat.weights.known_models import (
    JOINED,
    KNOWN,
    KNOWN_LLMS,
    WHOLE,
    Joined,
    KnownModel,
    PackagedLlm,
    PublishedFile,
    Repository,
    WholeModel,
    fetch_llm,
    llm_is_here,
    packaged_folder,
)

# --- A known model → its folder: fetched and converted once, offline afterwards.
#
# Everything that only a person can get is found out and asked for in one message before anything large is fetched.
# What comes from the hub stays in the hub's cache; the converted model refers to its LLM there.


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
    return _made(model_folder(model), lambda folder: _make(model, folder, say or tell), say or tell)


def join(model: Joined, vision: Path, say: Callable[[str], None] | None = None) -> Path:
    """The folder of a vision side before a packaged LLM; put together first where that was not done yet.

    `vision`: the folder of `model.vision`.

    Nothing is downloaded. Raises `ModelError`, which says the command that fetches it, where the LLM is not here.
    """
    say = say or tell
    packaged_folder(KNOWN_LLMS[model.llm], say)

    def make(folder: Path) -> None:
        from minichat.weights.convert import convert

        convert(folder, blip2=str(vision), llm=model.llm, tidy=True)

    return _made(model_folder(model), make, say)


def taken_in(name: str, folder: Path, say: Callable[[str], None] | None = None) -> Path:
    """A model's folder of a whole BLIP-2 or InstructBLIP of transformers', which `name` is and `folder` holds; made
    once for each, and anew when its files change. It refers to that folder for its LLM."""
    say = say or tell
    key = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape"))
    for file in sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors")):
        facts = file.stat()
        key.update(f"\0{file.name}\0{facts.st_size}\0{facts.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    stem = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name.rpartition("/")[2]

    def make(out: Path) -> None:
        from minichat.weights.convert import convert

        say(f"{stem}: taking in its vision side, once ...")
        convert(out, blip2=name)

    return _made(home() / f"{stem}-{key.hexdigest()[:12]}", make, say)


def _made(folder: Path, make: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    lock = folder.parent / f".{folder.name}.lock"
    if (folder / "config.json").is_file():
        return folder
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ModelError(
            f"{folder.name!r} cannot be kept in {shown(home())} ({error.strerror}): set MINICHAT_HOME to another "
            "folder."
        ) from None
    with locked(lock, lambda: say(f"Another process is making {folder.name}: waiting for it ...")):
        if not (folder / "config.json").is_file():
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
        plan.arguments["bridge"] = "patch_merge" if model.qformer is None else None
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
    from minichat.weights.vision import CONFIGS, vision_files

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


# --- Names that can be loaded: the built-in models, known published models, folders, hub ids.


AUTO, SMALL, TINY = "auto", "minichat-small", "minichat-tiny"
BUILT_IN = (TINY, SMALL)
_PACKAGED = {SMALL: KNOWN_LLMS["smollm2-135m-instruct"]}  # of a built-in model, the LLM that comes from a package
BUILT_IN_STAGE1 = ("minichat-tiny-stage1",)  # a Q-Former with its text branch: it finds pictures, and does not chat
ASSETS = Path(str(resources.files("minichat"))) / "assets"
_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")  # of a repository; nothing that could run


def find(name: str | os.PathLike[str]) -> Path:
    """The folder of a model; a known one is fetched and converted first where that was not done yet.

    Raises `ModelError`, which says what is known and where was looked, or what is missing.
    """
    text = os.fspath(name)
    if text == AUTO:
        text = default_model()
    if text in JOINED:
        return join(JOINED[text], find(JOINED[text].vision))
    if text in BUILT_IN or text in BUILT_IN_STAGE1:
        folder = ASSETS / text
        if not folder.is_dir():
            raise ModelError(f"The built-in model {text!r} is not in this installation: install minichat anew.")
        return folder
    if text in KNOWN:
        return fetch(KNOWN[text])
    if text in KNOWN_LLMS:
        raise ModelError(f"{text!r} is an LLM without eyes: build on it with `minichat convert --llm {text}`.")
    text = WHOLE[text].repository.id if text in WHOLE else text
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        if folder.name in ("", os.pardir):  # "." and ".." are no names to be called by
            folder = Path(os.path.abspath(folder))
        return taken_in(text, folder) if _is_whole(folder) else folder
    if folder.is_file():
        raise ModelError(f"{text!r} is a file: give the folder that holds config.json and the weights.")
    nowhere = f"There is no model {text!r}: it is no known name ({_close_to(text)}), no folder that exists,"
    if HUB_ID.fullmatch(text):
        folder = from_hub(text, _FILES, nowhere)
        return taken_in(text, folder) if _is_whole(folder) else folder
    raise ModelError(f"{nowhere} and no hub id of the form owner/name.")


def _is_whole(folder: Path) -> bool:
    """Whether it holds a BLIP-2 or InstructBLIP of transformers' with its LLM."""
    stored = hub.read_json(folder, "config.json") if (folder / "config.json").is_file() else {}
    return stored.get("model_type") in WITH_EYES and "Blip2ForImageTextRetrieval" not in (
        stored.get("architectures") or ()
    )


def default_model() -> str:
    """The built-in model that "auto" means."""
    return TINY


def llm_of(name: str) -> PackagedLlm | None:
    """The packaged LLM that a named vision side stands before; None for all other models."""
    return KNOWN_LLMS[JOINED[name].llm] if name in JOINED else _PACKAGED.get(name)


def joined_config(model: Joined) -> MiniChatConfig:
    """The configuration of a vision side before a packaged LLM, known without the LLM's file: its sizes are enough."""
    from minichat.model import MiniChatConfig

    seeing = MiniChatConfig.from_pretrained(find(model.vision), local_files_only=True)
    return MiniChatConfig(
        vision_config=seeing.vision_config.to_dict(),
        bridge_config=seeing.bridge_config.to_dict(),
        text_config=dict(KNOWN_LLMS[model.llm].text),
        template=OWN,
    )


def fetch_named(name: str) -> Path:
    """Fetch what a known name stands for, a model or an LLM to build on; its folder. Nothing is done twice.

    Raises `ModelError` for a name that is not known, and as `fetch` and `fetch_llm` do.
    """
    if name in KNOWN_LLMS:
        return fetch_llm(KNOWN_LLMS[name])
    if (llm := llm_of(name)) is not None:
        fetch_llm(llm)
    if name in (*KNOWN, *WHOLE, *JOINED, *BUILT_IN, *BUILT_IN_STAGE1):
        return find(name)
    raise ModelError(f"There is no known model {name!r} ({_close_to(name)}); what has another name needs no fetching.")


def _close_to(text: str) -> str:
    """The known names that `text` may stand for, or all of them."""
    names = [*BUILT_IN, *BUILT_IN_STAGE1, *KNOWN_LLMS, *WHOLE, *KNOWN]
    asked = text.strip().lower()
    close = [name for name in names if asked and asked in name] or get_close_matches(asked, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ", ".join(names)


# --- `minichat models`: what can be loaded by name, with sources, licences, sizes, and whether it is here already.


_OWN_LICENCE = "BSD 3-Clause"


@dataclass(frozen=True)
class Part:
    """Where a part of a model is published."""

    part: str
    source: str
    licence: str
    bytes: int | None
    instead: bool = False  # taken in place of the one before, where a person has put it there


@dataclass(frozen=True)
class Entry:
    """A model that can be loaded by name. Sizes are in bytes."""

    name: str
    here: bool
    template: str  # empty for what does not chat by itself
    licence: str  # in short, of all parts together
    parts: tuple[Part, ...]
    download: int  # what is fetched, once
    disk: int  # what stays: the downloads, and the converted model
    memory: dict[str, int]  # by precision of the LLM: on a GPU, for a conversation of `memory.CONTEXT` tokens
    use: str = ""  # of what does not chat by itself

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        use = ("template", self.template) if self.template else ("use", self.use)
        rows = [use, ("licence", self.licence)]
        label = ""
        for part in self.parts:
            size = "" if part.bytes is None else f", {gigabytes(part.bytes)}"
            label = part.part if not part.instead else "  and" if label == "  or" else "  or"
            rows.append((label, f"{part.source}{size}; {part.licence}"))
        if self.download:
            rows.append(("download", gigabytes(self.download)))
        rows.append(("disk", gigabytes(self.disk)))
        needs = [f"{precision} {gib(size)}" for precision, size in self.memory.items()]
        if needs:
            rows.append(("memory", f"{', '.join(needs)} (on a GPU, {CONTEXT:,} tokens)"))
        head = f"{self.name}: {'here' if self.here else 'not fetched yet'}"
        return "\n".join([head, *(f"  {what:<12}{text}" for what, text in rows)])


def catalogue() -> list[Entry]:
    """The built-in models, the packaged LLMs and the known models. Nothing is fetched."""
    finders = (name for name in BUILT_IN_STAGE1 if (ASSETS / name).is_dir())
    return [
        *map(_built_in, BUILT_IN),
        *map(_finder, finders),
        *map(_llm, KNOWN_LLMS.values()),
        *map(_whole, WHOLE.values()),
        *map(_known, KNOWN.values()),
    ]


def hint() -> str:
    """Where a person puts files, for the end of the list."""
    return (
        "A model is fetched and converted when it is first loaded, or with `minichat models fetch NAME`; an LLM to "
        f"build on with that alone. Files that you have, or that only you can get, go into {shown(files_folder())}."
    )


def _built_in(name: str) -> Entry:
    folder, llm = find(name), llm_of(name)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    config = MiniChatConfig.from_pretrained(folder, local_files_only=True)
    if llm is None:
        return Entry(name, True, config.template, _OWN_LICENCE, (), 0, size, _memory(config))
    licence, disk, parts = f"{_OWN_LICENCE}, {llm.licence}", size + llm.folder, _llm(llm).parts
    return Entry(name, llm_is_here(llm), config.template, licence, parts, llm.size, disk, _memory(config))


def _finder(name: str) -> Entry:
    size = sum(file.stat().st_size for file in find(name).iterdir())
    return Entry(name, True, "", _OWN_LICENCE, (), 0, size, {}, "finds pictures: minichat search")


def _llm(llm: PackagedLlm) -> Entry:
    part = Part("LLM", f"{llm.gguf} in {llm.wheel}", llm.licence, llm.size)
    use = f"an LLM to build on: minichat convert --llm {llm.name}"
    return Entry(llm.name, llm_is_here(llm), "", llm.licence, (part,), llm.size, llm.folder, {}, use)


def _whole(model: WholeModel) -> Entry:
    part, size = _repository("all parts", model.repository), model.repository.size
    here = any(home().glob(f"{model.name}-????????????/config.json"))
    return Entry(
        model.name, here, model.template, model.licence, (part,), size, size + model.folder, _memory(model.config())
    )


def _known(model: KnownModel) -> Entry:
    originals = (file for file in (model.vit, model.qformer) if file is not None)
    parts = (
        _repository("LLM", model.llm),
        _repository("vision", model.blip2),
        *(_file("vision", file, instead=True) for file in originals),
        _file("projection", model.projection),
    )
    download = sum(part.bytes or 0 for part in parts if not part.instead)
    return Entry(
        name=model.name,
        here=is_here(model),
        template=model.template,
        licence=model.licence,
        parts=parts,
        download=download,
        disk=download + model.folder,
        memory=_memory(model.config()),
    )


def _repository(part: str, repository: Repository) -> Part:
    return Part(part, repository.id, repository.licence, repository.size)


def _file(part: str, file: PublishedFile, instead: bool = False) -> Part:
    return Part(part, file.name, file.licence, file.size, instead)


def _memory(config: MiniChatConfig) -> dict[str, int]:
    needs = {"bfloat16": estimate(config, device="cuda")}
    needs |= {quantize: estimate(config, quantize=quantize, device="cuda") for quantize in QUANTIZED}
    return {precision: need.total for precision, need in needs.items()}
