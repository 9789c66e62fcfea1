"""The vision side of a Hugging Face BLIP-2: only the files that hold it are fetched and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minichat.errors import ModelError, SettingsError
from minichat.weights.account import Account
from minichat.weights.files import WEIGHTS, find_folder, read_json, weight_map
from minichat.weights.hub import verify
from minichat.weights.keys import HUGGING_FACE_BLIP2, HUGGING_FACE_VIT
from minichat.weights.published import Sizes, resize_positions
from minichat.weights.reading import read_checkpoint
from minichat.weights.values import building, check_parts, check_values

_INDEX = f"{WEIGHTS}.index.json"
CONFIGS = ("config.json", _INDEX)
RETRIEVAL = "Blip2ForImageTextRetrieval"


def add_hugging_face(
    account: Account, name: str, sizes: Sizes, qformer: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take in a BLIP-2's vision encoder, Q-Former and queries; returns the configurations of the first two.

    Its last norm is the originals' `ln_vision`; here it has their eps of 1e-5, as MiniGPT-4 was trained, not the 1e-6
    that transformers gives it. Without `qformer` the vision encoder alone is taken, and no configuration of the other.
    Raises `ModelError` for a folder that is no BLIP-2 or not whole, or a file that did not come as it was published.
    """
    what = "The BLIP-2 model"
    keys = HUGGING_FACE_BLIP2 if qformer else HUGGING_FACE_VIT
    folder = find_folder(name, what, CONFIGS)
    config = read_json(folder, "config.json")
    if config.get("model_type") != "blip-2":
        raise ModelError(f"{folder.name!r} holds a model of type {config.get('model_type')!r}, not 'blip-2'.")
    check_values(config, f"config.json in {folder.name!r}")
    files = vision_files(folder, qformer)
    folder = find_folder(name, what, [*CONFIGS, *files])
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"The BLIP-2 model {folder.name!r} has no {file}: some of its weights are missing.")
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
    qformer = Blip2QFormerConfig(**(config.get("qformer_config") or {})).to_diff_dict()
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
