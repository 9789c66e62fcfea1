"""Names that can be loaded: built-in models, folders, hub ids."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from minichat.errors import ModelError
from minichat.weights.files import HUB_ID, from_hub

BUILT_IN = ("minichat-tiny",)
_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]  # of a repository on the hub; nothing that could run


def find(name: str | os.PathLike[str]) -> Path:
    """The folder of a model. Raises `ModelError`, which says what is known and where was looked."""
    text = os.fspath(name)
    if text in BUILT_IN:
        folder = Path(str(resources.files("minichat"))) / "assets" / text
        if not folder.is_dir():
            raise ModelError(f"The built-in model {text!r} is not in this installation: install minichat anew.")
        return folder
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{text!r} is a file: give the folder that holds config.json and the weights.")
    if HUB_ID.fullmatch(text):
        nowhere = f"There is no model {text!r}: it is no built-in name ({', '.join(BUILT_IN)}), no folder that exists,"
        return from_hub(text, _FILES, nowhere)
    raise ModelError(
        f"There is no model {text!r}: it is no built-in name ({', '.join(BUILT_IN)}), no folder that exists, "
        "and no hub id of the form owner/name."
    )
