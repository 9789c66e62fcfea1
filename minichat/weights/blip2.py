"""The vision side of a Hugging Face BLIP-2, or of a model of ours: only the files that hold it are fetched and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minichat.errors import ModelError, SettingsError
from minichat.weights.account import Account
from minichat.weights.files import WEIGHTS, find_folder, read_json, weight_files, weight_map
from minichat.weights.hub import verify
from minichat.weights.keys import HUGGING_FACE_BLIP2, HUGGING_FACE_VIT, OUR_VISION_SIDE, OUR_VIT
from minichat.weights.published import Sizes, resize_positions
from minichat.weights.reading import read_checkpoint
from minichat.weights.values import building, check_parts, check_values

_INDEX = f"{WEIGHTS}.index.json"
CONFIGS = ("config.json", _INDEX)
_OWN = ("*.json", "*.safetensors")  # of a model of ours on the hub
RETRIEVAL = "Blip2ForImageTextRetrieval"


def add_vision_side(
    account: Account, name: str, sizes: Sizes, qformer: bool = True, what: str = "The BLIP-2 model"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take in a vision encoder, Q-Former and queries; returns the configurations of the first two.

    `name`: a BLIP-2's folder or hub id, what stage 1 left, or the folder or hub id of a model of ours. A BLIP-2's
    last norm is the originals' `ln_vision`; here it has their eps of 1e-5, as MiniGPT-4 was trained, not the 1e-6 that
    transformers gives it. Without `qformer` the vision encoder alone is taken, and no configuration of the other.
    `what` was looked for, where nothing is found.

    Raises `ModelError` for another model or one that is not whole, or a file that did not come as it was published.
    """
    folder = find_folder(name, what, CONFIGS)
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if kind not in ("blip-2", "minichat"):
        raise ModelError(f"{folder.name!r} holds a model of type {kind!r}, not 'blip-2' or 'minichat'.")
    check_values(config, f"config.json in {folder.name!r}")
    if kind == "minichat":
        folder = find_folder(name, what, _OWN)
        keys, files = OUR_VISION_SIDE if qformer else OUR_VIT, weight_files(folder)
    else:
        keys, files = HUGGING_FACE_BLIP2 if qformer else HUGGING_FACE_VIT, vision_files(folder, qformer)
        folder = find_folder(name, what, [*CONFIGS, *files])
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise ModelError(f"The BLIP-2 model {folder.name!r} has no {missing[0]}: some of its weights are missing.")
        verify(folder, files)
    for file in files:
        account.add(read_checkpoint(folder / file), keys)
    check_parts(config, account.names(), f"config.json in {folder.name!r}")
    with building(f"config.json in {folder.name!r}"):
        vision, known = _configs(account, config, sizes)
    return vision, known if qformer else {}


def vision_files(folder: Path, qformer: bool = True) -> list[str]:
    """The files of a BLIP-2 that hold what is taken of it, by its index. Raises `ModelError` for a damaged one."""
    if not (folder / _INDEX).is_file():
        return [WEIGHTS]
    keys = HUGGING_FACE_BLIP2 if qformer else HUGGING_FACE_VIT
    return sorted({file for name, file in weight_map(folder, _INDEX).items() if keys.target(name) is not None})


def _configs(account: Account, config: dict[str, Any], sizes: Sizes) -> tuple[dict[str, Any], dict[str, Any]]:
    from transformers import Blip2QFormerConfig, Blip2VisionConfig

    vision = Blip2VisionConfig(**(config.get("vision_config") or {})).to_diff_dict()
    vision.setdefault("hidden_size", Blip2VisionConfig().hidden_size)
    bridge = config.get("bridge_config") or {"qformer": config.get("qformer_config")}
    qformer = Blip2QFormerConfig(**(bridge.get("qformer") or {})).to_diff_dict()
    if config.get("architectures") == [RETRIEVAL]:  # what stage 1 left: its text branch ends here
        qformer |= {"use_qformer_text_input": False, "vocab_size": Blip2QFormerConfig().vocab_size}
    if qformer.get("use_qformer_text_input"):
        raise ModelError("The Q-Former of this BLIP-2 reads text, too: MiniChat's does not.")
    given = Blip2VisionConfig(**vision)
    size = sizes.image_size or given.image_size
    if size % given.patch_size:
        raise SettingsError(f"image_size is {size}; it must be a multiple of the patch size {given.patch_size}.")
    resize_positions(account, size // given.patch_size)
    drop = ("model_type", "transformers_version", "dtype", "torch_dtype", "architectures")
    vision = {key: value for key, value in {**vision, "image_size": size}.items() if key not in drop}
    return vision, {key: value for key, value in qformer.items() if key not in drop}
