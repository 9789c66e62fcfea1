"""A trained projection on disk: `projection.safetensors` and `minichat.json`, which says what it belongs to.

Its tensors are `weight` (H, D) and `bias` (H). Fingerprints of the frozen parts are of the base model's stored files,
so that precision and quantization do not change them, nor whether the base holds its LLM or refers to it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.errors import ModelError
from minichat.fileio import new_folder, write_json
from minichat.weights.adapter import copy_adapters, read_adapter
from minichat.weights.checkpoint_io import of_facts
from minichat.weights.hub import (
    ADAPTER,
    ADAPTERS,
    FACTS,
    HUB_ID,
    QFORMER_ADAPTER,
    check_header,
    is_projection,
    read_json,
    trained_adapter,
    weight_files,
)
from minichat.weights.known_models import JOINED, KNOWN, WHOLE
from minichat.weights.llm import RECORD, RECORDED, hashes
from minichat.weights.registry import BUILT_IN, find

if TYPE_CHECKING:
    from torch import Tensor

    from minichat.weights.checkpoint_io import Checkpoint

TENSORS = "projection.safetensors"
FROZEN = ("vision_model", "bridge", "language_model")
_FORMAT = "minichat-projection"
_PARCEL = ".projection"
_SUM = "checksum"


@dataclass(frozen=True)
class Projection:
    """A projection's folder, read and found to be sound; not yet whether it belongs to its base."""

    folder: str
    base: dict[str, str]  # {"name"}, {"path"} or {"id"} of the base model
    template: str
    shape: tuple[int, int]  # (H, D)
    fingerprints: dict[str, str]
    checkpoint: Checkpoint
    hashes: dict[str, str] | None = None  # of everything, where it was written with --verify

    def tensors(self) -> dict[str, Tensor]:
        return {name: self.checkpoint[name].float() for name in ("weight", "bias")}

    def base_name(self) -> str:
        """What `find` takes."""
        return next(iter(self.base.values()))

    def base_folder(self) -> Path:
        """The base model's folder. Raises `ModelError` where it is gone, or is a projection itself."""
        name = self.base_name()
        shown = Path(name).name if "path" in self.base else name
        if _is_known(name):  # an error says how to get it
            return find(name)
        try:
            folder = find(name)
        except ModelError:
            raise ModelError(
                f"The projection {self.folder!r} belongs to the base model {shown!r}, which is not there: put it back, "
                f"or correct the base in {FACTS}."
            ) from None
        if is_projection(folder):
            raise ModelError(f"The base of {self.folder!r} is a projection itself, {shown!r}: name a whole model.")
        return folder

    def check(self, folder: Path) -> None:
        """Raise `ModelError`, with both values, unless the base model in `folder` is the one it was trained for."""
        base = read_json(folder, "config.json")
        if base.get("template") != self.template:
            raise ModelError(
                f"The projection {self.folder!r} was trained with the template {self.template!r}, but its base "
                f"{folder.name!r} has {base.get('template')!r}: they do not belong together."
            )
        if (stored := tuple(_stored(folder)["projection.weight"].shape)) != self.shape:
            raise ModelError(
                f"The projection {self.folder!r} has the shape {self.shape}, but its base {folder.name!r} needs "
                f"{stored}: they do not belong together."
            )
        for part, found in fingerprints(folder).items():
            if (trained := self.fingerprints.get(part)) != found:
                raise ModelError(
                    f"The projection {self.folder!r} was trained on a {part} of the fingerprint {str(trained)[:12]}, "
                    f"but that of its base {folder.name!r} is {found[:12]}: they do not belong together."
                )


def _is_known(name: str) -> bool:
    return name in BUILT_IN or name in JOINED or name in KNOWN or name in WHOLE


def vision_source(name: str) -> str:
    """Where the vision side of `name` is: a model of ours that has a name, or that a projection belongs to; else it."""
    folder = find(name) if _is_known(name) else Path(name).expanduser()
    if not folder.is_dir():
        return name
    base = read_projection(folder).base_folder() if is_projection(folder) else folder
    if trained_adapter(folder, base, kind=QFORMER_ADAPTER) is not None:
        raise ModelError(
            f"The Q-Former of {folder.name!r} has an adapter: merge it first, with minichat export --format minichat."
        )
    return str(base)


def read_projection(folder: Path) -> Projection:
    """Read a projection's folder. Raises `ModelError`, naming the file, where it is not one or is damaged."""
    from minichat.weights.checkpoint_io import read_checkpoint

    facts = read_json(folder, FACTS)
    base, shape, prints = facts.get("base"), facts.get("shape"), facts.get("fingerprints")
    if (
        facts.get("format") != _FORMAT
        or not isinstance(base, dict)
        or len(base) != 1
        or not all(key in ("name", "path", "id") and isinstance(value, str) for key, value in base.items())
        or not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(size, int) for size in shape))
        or not isinstance(prints, dict)
        or not isinstance(facts.get("template"), str)
    ):
        raise ModelError(f"{FACTS} in {folder.name!r} does not describe a projection: export it again.")
    if facts.get(_SUM) not in (None, _checksum(facts)):
        raise ModelError(
            f"{FACTS} in {folder.name!r} is damaged: what it holds does not match its checksum. Put back a copy, or "
            "make it anew with the command that made it; only its base may be corrected by hand."
        )
    check_header(folder, TENSORS)
    checkpoint = read_checkpoint(folder / TENSORS)
    held = {name: list(checkpoint.plain(name).shape) for name in checkpoint}
    if held != {"weight": shape, "bias": shape[:1]}:
        raise ModelError(f"{TENSORS} in {folder.name!r} holds {held}, but {FACTS} says {shape}: export it again.")
    place = folder.absolute().parent
    if place.name == ADAPTERS and "path" in base and not Path(base["path"]).is_dir():
        base = {"path": str(place.parent)}  # moved with it; `check` tells whether that is the one
    return Projection(
        folder.name, base, facts["template"], (shape[0], shape[1]), prints, checkpoint, facts.get(RECORDED)
    )


def write_projection(
    out: Path,
    tensors: Mapping[str, Tensor],
    base: str,
    *,
    template: str | None = None,
    facts: Mapping[str, Any] | None = None,
    into: bool = False,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write `weight` and `bias`, trained on the model `base`, to a new folder, whole or not at all.

    Args:
        template: the one it belongs to, where that is not the base's.
        facts: what else is recorded in `minichat.json`.
        into: the folder is there already, and is a projection's once its `minichat.json` is written, which is last.
        beside: puts what else belongs to it into the folder, an adapter.

    Raises `ModelError` where `out` is there against expectation, or the shapes are not the base's.
    """
    from minichat.weights.checkpoint_io import Entry, write_tensors

    folder = find(base)
    wanted = tuple(_stored(folder)["projection.weight"].shape)
    weight = tensors["weight"].detach().float().cpu()
    bias = tensors["bias"].detach().float().cpu()
    if tuple(weight.shape) != wanted or tuple(bias.shape) != wanted[:1]:
        raise ModelError(f"The projection has the shape {tuple(weight.shape)}, but {folder.name!r} needs {wanted}.")
    about: dict[str, Any] = {
        "format": _FORMAT,
        "base": _reference(base, folder),
        "template": template or read_json(folder, "config.json").get("template"),
        "shape": list(weight.shape),
        "fingerprints": fingerprints(folder),
    }
    if into:
        shutil.rmtree(out / _PARCEL, ignore_errors=True)  # left by a run that was killed here
    with new_folder(out / _PARCEL if into else out, ModelError) as made:
        write_tensors(
            made, [Entry("weight", weight.nbytes, lambda: weight), Entry("bias", bias.nbytes, lambda: bias)], TENSORS
        )
        if beside is not None:
            beside(made)
        content = {**(facts or {}), **about}
        write_json(made / FACTS, content | {_SUM: _checksum(content)})
    if into:
        unpack(out / _PARCEL, out, last=FACTS)
    return out


def _checksum(facts: Mapping[str, Any]) -> str:
    """Of all but the base, which may have moved."""
    return of_facts({name: value for name, value in facts.items() if name not in ("base", _SUM)})


def unpack(parcel: Path, out: Path, last: str) -> None:
    """Move a folder's files to `out`; `last`, which tells what they are, after all others."""
    for file in sorted(parcel.iterdir(), key=lambda file: file.name == last):
        if file.is_dir():  # which replaces no folder that holds something
            shutil.rmtree(out / file.name, ignore_errors=True)
        file.replace(out / file.name)
    parcel.rmdir()


def export_projection(
    model: str, out: Path, verify: bool = False, dtype: str | None = None, adapter: Path | None = None
) -> Path:
    """`minichat export MODEL --format projection`: the projection of a whole model, or of a projection's folder.

    `verify`: record hashes of everything in the frozen parts, too. `dtype`: of the adapter that belongs to it, which is
    `adapter`, a PEFT folder, or else the model's own.

    Raises `ModelError` for an adapter that is not whole; whether it fits the LLM is seen when it is loaded.
    """
    folder, projection = find(model), None
    if adapter is not None:
        read_adapter(adapter)
    own = {
        ADAPTER: adapter or trained_adapter(folder),
        QFORMER_ADAPTER: trained_adapter(folder, kind=QFORMER_ADAPTER),
    }
    if is_projection(folder):
        projection = read_projection(folder)
        folder = projection.base_folder()
        projection.check(folder)
    facts = {RECORDED: {part: found for part, found in hashes(folder).items() if part in FROZEN}} if verify else None
    if projection is not None:
        base, template = projection.base_name(), projection.template
        return write_projection(
            out, projection.tensors(), base, template=template, facts=facts, beside=copy_adapters(own, dtype)
        )
    stored = _stored(folder)
    tensors = {name: stored[f"projection.{name}"] for name in ("weight", "bias")}
    return write_projection(out, tensors, model, facts=facts, beside=copy_adapters({ADAPTER: adapter}, dtype))


def fingerprints(folder: Path) -> dict[str, str]:
    """Of each frozen part of the model in `folder`."""
    from minichat.weights.checkpoint_io import fingerprint

    tensors = _stored(folder)
    referred = read_json(folder, "config.json").get("llm")
    found = {}
    for part in FROZEN:
        held = [(name.removeprefix(f"{part}."), t) for name, t in tensors.items() if name.startswith(f"{part}.")]
        if part == "language_model" and referred:
            found[part] = str(referred.get("fingerprint"))  # which loading holds against the LLM itself
        else:
            found[part] = fingerprint(held)
    return found


def _stored(folder: Path) -> dict[str, Tensor]:
    """The tensors that a whole model's folder holds, mapped from disk. Raises `ModelError` for one that is damaged."""
    from minichat.weights.checkpoint_io import read_checkpoint

    files = weight_files(folder)
    for file in files:
        check_header(folder, file)
    opened = [read_checkpoint(folder / file) for file in files]
    tensors = {name: checkpoint.plain(name) for checkpoint in opened for name in checkpoint}
    if "projection.weight" not in tensors or "projection.bias" not in tensors:
        raise ModelError(f"The weights of {folder.name!r} hold no projection: it is no MiniChat model.")
    return tensors


def _reference(name: str, folder: Path) -> dict[str, str]:
    if _is_known(name):
        return {"name": name}
    if not Path(name).expanduser().is_dir() and HUB_ID.fullmatch(name):
        return {"id": name}
    given = Path(name).expanduser()  # of a BLIP-2 the folder of transformers', not what was made of it
    return {"path": str((given if given.is_dir() else folder).resolve())}


# --- `--verify`: hashes of all that the weights hold, where a fingerprint is of the first 64 KiB of each tensor.


def verify_weights(folder: Path, projection: Projection | None = None) -> None:
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
