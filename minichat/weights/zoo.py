"""Names that can be loaded: the built-in models, known published models, folders, hub ids."""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from minichat.errors import ModelError
from minichat.prompt.template import OWN
from minichat.weights.fetch import fetch, join
from minichat.weights.files import HUB_ID, from_hub
from minichat.weights.known import JOINED, KNOWN, KNOWN_LLMS, Joined, PackagedLlm
from minichat.weights.packaged import fetch_llm, llm_at_hand

if TYPE_CHECKING:
    from minichat.model import MiniChatConfig

AUTO = "auto"  # the best built-in model that is here whole
TINY, SMALL = "minichat-tiny", "minichat-small"
BUILT_IN = (TINY,)
SMALL_BASE = JOINED["minichat-small-base"]
BUILT_IN_STAGE1 = ("minichat-tiny-stage1",)  # a Q-Former with its text branch: it finds pictures, and does not chat
ASSETS = Path(str(resources.files("minichat"))) / "assets"
_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")  # of a repository on the hub; nothing that could run


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
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{text!r} is a file: give the folder that holds config.json and the weights.")
    nowhere = f"There is no model {text!r}: it is no known name ({_close_to(text)}), no folder that exists,"
    if HUB_ID.fullmatch(text):
        return from_hub(text, _FILES, nowhere)
    raise ModelError(f"{nowhere} and no hub id of the form owner/name.")


def default_model() -> str:
    """minichat-small where its LLM is on this machine, else minichat-tiny, which needs no download."""
    llm = llm_of(SMALL)
    return SMALL if SMALL in BUILT_IN and llm is not None and llm_at_hand(llm) else TINY


def llm_of(name: str) -> PackagedLlm | None:
    """The packaged LLM that a built-in model stands before; None for all other models."""
    return KNOWN_LLMS[SMALL_BASE.llm] if name in (SMALL, SMALL_BASE.name) else None


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
        find(SMALL_BASE.name)
    if name in (*KNOWN, *JOINED, *BUILT_IN, *BUILT_IN_STAGE1):
        return find(name)
    raise ModelError(f"There is no known model {name!r} ({_close_to(name)}); what has another name needs no fetching.")


def _close_to(text: str) -> str:
    """The known names that `text` may stand for, or all of them."""
    names = [*BUILT_IN, *BUILT_IN_STAGE1, *KNOWN_LLMS, *KNOWN]
    asked = text.strip().lower()
    close = [name for name in names if asked and asked in name] or get_close_matches(asked, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ", ".join(names)
