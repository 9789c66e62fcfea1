"""`--verify`: hashes of all that the weights hold, where a fingerprint is of the first 64 KiB of each tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.errors import ModelError
from minichat.weights.files import read_json, weight_files

if TYPE_CHECKING:
    from minichat.weights.projection import Projection

RECORD = "conversion.json"  # what a converted model was made of, in its folder
RECORDED = "sha256"  # part → hash: in a projection's `minichat.json`, or in a converted model's record
PARTS = ("vision_model", "bridge", "projection", "language_model")


def hashes(folder: Path, model: str | None = None) -> dict[str, str]:
    """The SHA-256 of each part of the model in `folder`: of its names, dtypes, shapes and bytes as they are stored.

    An LLM that is referred to is read, too. `model`: what to call the folder in an error, if not by its name.
    """
    from minichat.weights.fingerprint import fingerprint
    from minichat.weights.llm import referred_llm
    from minichat.weights.reading import read_checkpoint

    held = [read_checkpoint(folder / file) for file in weight_files(folder)]
    tensors = {name: checkpoint.plain(name) for checkpoint in held for name in checkpoint}
    found = {}
    for part in PARTS:
        own = [(name.removeprefix(f"{part}."), t) for name, t in tensors.items() if name.startswith(f"{part}.")]
        if own or part != "language_model":
            found[part] = fingerprint(own, whole=True)
    reference = read_json(folder, "config.json").get("llm")
    if reference:
        found["language_model"] = referred_llm(reference, model or folder.name).fingerprint(whole=True)
    return found


def verify(folder: Path, projection: Projection | None = None) -> None:
    """Hold the model in `folder` against what was recorded of it, or by a projection that was trained on it.

    Raises `ModelError` where nothing was recorded, and with both values for a part that is not what it was.
    """
    by = folder.name if projection is None else projection.folder
    recorded: Any
    if projection is not None:
        recorded = projection.hashes
    else:
        recorded = read_json(folder, RECORD).get(RECORDED) if (folder / RECORD).is_file() else None
    if not isinstance(recorded, dict) or not recorded:
        raise ModelError(
            f"{by!r} records no hashes of all its weights, so there is nothing to verify: make it again with --verify."
        )
    found = hashes(folder)
    for part, wanted in recorded.items():
        if found.get(part) != wanted:
            raise ModelError(
                f"The {part} of {folder.name!r} has the SHA-256 {str(found.get(part))[:12]}, but {by!r} was made with "
                f"{str(wanted)[:12]}: its weights have been changed."
            )
