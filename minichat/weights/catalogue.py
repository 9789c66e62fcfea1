"""`minichat models`: what can be loaded by name, with sources, licences, sizes, and whether it is here already."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from minichat.hardware.memory import CONTEXT, QUANTIZED, estimate, gib
from minichat.model import MiniChatConfig
from minichat.weights.fetch import is_here
from minichat.weights.known import KNOWN, KNOWN_LLMS, KnownModel, PackagedLlm, PublishedFile, Repository
from minichat.weights.packaged import llm_at_hand, llm_is_here
from minichat.weights.places import files_folder, gigabytes, shown
from minichat.weights.zoo import ASSETS, BUILT_IN, BUILT_IN_STAGE1, SMALL_BASE, find, joined_config, llm_of

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
        *map(_known, KNOWN.values()),
    ]


def hint() -> str:
    """Where a person puts files, for the end of the list."""
    return (
        "A model is fetched and converted when it is first loaded, or with `minichat models fetch NAME`; an LLM to "
        f"build on with that alone. Files that you have, or that only you can get, go into {shown(files_folder())}."
    )


def _built_in(name: str) -> Entry:
    folder = find(name)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if (llm := llm_of(name)) is None:
        config = MiniChatConfig.from_pretrained(folder, local_files_only=True)
        return Entry(name, True, config.template, _OWN_LICENCE, (), 0, size, _memory(config))
    config = joined_config(SMALL_BASE)
    licence = f"{_OWN_LICENCE}; the LLM {llm.licence}"
    parts = (_part(llm),)
    return Entry(name, llm_at_hand(llm), config.template, licence, parts, llm.size, size + llm.folder, _memory(config))


def _finder(name: str) -> Entry:
    size = sum(file.stat().st_size for file in find(name).iterdir())
    return Entry(name, True, "", _OWN_LICENCE, (), 0, size, {}, "finds pictures: minichat search")


def _part(llm: PackagedLlm) -> Part:
    return Part("LLM", f"{llm.gguf} in {llm.wheel}", llm.licence, llm.size)


def _llm(llm: PackagedLlm) -> Entry:
    use = f"an LLM to build on: minichat convert --llm {llm.name}"
    return Entry(llm.name, llm_is_here(llm), "", llm.licence, (_part(llm),), llm.size, llm.folder, {}, use)


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
