"""The vision side that another model brings: a BLIP-2's, one of ours, or an encoder that transformers knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from transformers import Blip2QFormerConfig, PreTrainedConfig

from minichat.errors import ModelError, SettingsError
from minichat.images import CLIP_MEAN, CLIP_STD
from minichat.model.vision import EVA, KINDS, SIGLIP2, picture_side, vision_config
from minichat.prompt.processor import MiniChatImageProcessor
from minichat.weights.account import Account, Sizes, resize_positions
from minichat.weights.check_config import building, check_depth, check_parts, check_values
from minichat.weights.checkpoint_io import read_checkpoint
from minichat.weights.hub import WEIGHTS, find_folder, read_json, verify, weight_files, weight_map
from minichat.weights.key_map import (
    ENCODERS,
    HUGGING_FACE_BLIP2,
    HUGGING_FACE_INSTRUCTBLIP,
    HUGGING_FACE_PROJECTION,
    HUGGING_FACE_VIT,
    OUR_VISION_SIDE,
    OUR_VIT,
    KeyMap,
)


class Eyes(NamedTuple):
    """What was taken in: the configurations of the vision encoder and, where there is one, of the Q-Former; and how
    pictures become pixels."""

    vision: dict[str, Any]
    qformer: dict[str, Any]
    pixels: MiniChatImageProcessor


# --- Only the files that hold it are fetched and read, and all of them where a whole BLIP-2 is taken.


_INDEX = f"{WEIGHTS}.index.json"
_PIXELS, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
CONFIGS = ("config.json", _INDEX)
_OWN = ("*.json", "*.safetensors")  # of a model of ours on the hub
RETRIEVAL = "Blip2ForImageTextRetrieval"
#: Hugging Face's kinds of whole models → the template of each kind of LLM that they were published with.
FAMILY = {
    "blip-2": {"opt": "blip2-opt-chat", "t5": "blip2-t5"},
    "instructblip": {"llama": "instructblip", "t5": "instructblip-t5"},
}


def add_vision_side(
    account: Account,
    name: str,
    sizes: Sizes,
    qformer: bool = True,
    what: str = "The vision encoder",
    whole: bool = False,
) -> Eyes:
    """Take in a vision encoder, and a Q-Former and its queries where there are some.

    `name`: a folder or hub id of a BLIP-2 or InstructBLIP, of what stage 1 left, of a model of ours, or of a vision
    encoder that transformers knows (`minichat.model.vision.KINDS`), alone or with its text side. A BLIP-2's last norm
    is the originals' `ln_vision`; here it has their eps of 1e-5, not the 1e-6 that transformers gives it. Without
    `qformer` the encoder alone is taken. With `whole` a BLIP-2's projection is taken, too. `what` was looked for, where
    nothing is found.

    Raises `ModelError` for another model or one that is not whole, or a file that did not come as it was published.
    """
    folder = find_folder(name, what, CONFIGS)
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if kind in _ENCODERS and not whole:
        return _add_encoder(account, name, what, config, sizes)
    if kind not in (*FAMILY, "minichat") or (whole and kind == "minichat"):
        known = FAMILY if whole else (*FAMILY, "minichat", *_ENCODERS)
        raise ModelError(f"{folder.name!r} holds a model of type {kind!r}, not {', '.join(map(repr, known))}.")
    check_values(config, f"config.json in {folder.name!r}")
    if kind == "minichat":
        folder = find_folder(name, what, _OWN)
        files = weight_files(folder)
    else:
        files = _fetched(name, what, folder, weight_files(folder) if whole else vision_files(folder, qformer))
    keys = _keys(kind, qformer)
    keys = KeyMap({**keys.used, **HUGGING_FACE_PROJECTION}, keys.unused, keys.parts) if whole else keys
    for file in files:
        account.add(read_checkpoint(folder / file), keys)
    check_parts(config, account.names(), f"config.json in {folder.name!r}")
    with building(f"config.json in {folder.name!r}"):
        vision = vision_config(config.get("vision_config"))
        known_qformer = _qformer(config) if qformer else {}
    ours = kind == "minichat" and (folder / _PROCESSOR).is_file()
    settings = read_json(folder, _PROCESSOR).get("image_processor", {}) if ours else {}
    return _sized(account, vision, known_qformer, _Pixels.of(settings, vision), sizes)


def _fetched(name: str, what: str, folder: Path, files: list[str]) -> list[str]:
    """These files of weights, which are now there. Raises `ModelError` for one that is missing or not as published."""
    folder = find_folder(name, what, [*CONFIGS, *files])
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ModelError(f"{what} {folder.name!r} has no {missing[0]}: some of its weights are missing.")
    verify(folder, files)
    return files


def _keys(kind: str, qformer: bool) -> KeyMap:
    if kind == "minichat":
        return OUR_VISION_SIDE if qformer else OUR_VIT
    if not qformer:
        return HUGGING_FACE_VIT
    return HUGGING_FACE_INSTRUCTBLIP if kind == "instructblip" else HUGGING_FACE_BLIP2


def vision_files(folder: Path, qformer: bool = True) -> list[str]:
    """The files of a BLIP-2 that hold what is taken of it, by its index. Raises `ModelError` for a damaged one."""
    if not (folder / _INDEX).is_file():
        return [WEIGHTS]
    keys = _keys(str(read_json(folder, "config.json").get("model_type")), qformer)
    return sorted({file for name, file in weight_map(folder, _INDEX).items() if keys.target(name) is not None})


#: What no configuration here needs: types, origins, and what a DINO is as the backbone of another model.
_DROPPED = (
    *("transformers_version", "dtype", "torch_dtype", "architectures", "_name_or_path", "return_dict"),
    *("out_features", "out_indices", "stage_names", "reshape_hidden_states", "apply_layernorm"),
)


def _plain(part: Mapping[str, Any] | None, *drop: str) -> dict[str, Any]:
    return {key: value for key, value in (part or {}).items() if key not in (*_DROPPED, *drop)}


def _qformer(config: Mapping[str, Any]) -> dict[str, Any]:
    bridge = config.get("bridge_config") or {"qformer": config.get("qformer_config")}
    given = _plain(bridge.get("qformer"), "model_type")
    qformer = _plain(Blip2QFormerConfig(**given).to_diff_dict(), "model_type")
    if config.get("architectures") == [RETRIEVAL]:  # what stage 1 left: its text branch ends here
        qformer |= {"use_qformer_text_input": False, "vocab_size": Blip2QFormerConfig().vocab_size}
    if qformer.get("use_qformer_text_input") and not bridge.get("instructed"):
        raise ModelError("The Q-Former of this BLIP-2 was made to match texts: give what a chat model has.")
    return qformer


def _sized(account: Account, vision: PreTrainedConfig, qformer: dict[str, Any], pixels: _Pixels, sizes: Sizes) -> Eyes:
    """With pictures of the size that is asked for, or as it was trained: positions for another are interpolated."""
    asked, patch = sizes.image_size, int(vision.patch_size)
    if asked is not None and (asked % patch or asked < patch):
        raise SettingsError(f"image_size is {asked}; it must be a multiple of the patch size {patch}.")
    side = asked or pixels.side or picture_side(vision)
    resize_positions(account, side // patch, vision.model_type)
    named = {"num_patches": (side // patch) ** 2} if vision.model_type == SIGLIP2 else {"image_size": side}
    kept = _plain(vision.to_diff_dict(), *(("model_type",) if vision.model_type == EVA else ()))
    kept = {"hidden_size": vision.hidden_size, "patch_size": patch, **kept, **named}
    return Eyes(kept, qformer, pixels.processor(side))


# --- A vision encoder alone, or one with its text side: CLIP's, SigLIP's and DINO's.


#: The types of whole models and of encoders → the type of the encoder.
_ENCODERS = {
    **{name: f"{name}_vision_model" for name in ("clip", "siglip", "siglip2")},
    **{kind: kind for kind in KINDS if kind != EVA},
}
#: What is left out of an encoder: what pools its patches, and what stands for one that is masked.
_WITHOUT = {
    "siglip_vision_model": {"vision_use_head": False},
    SIGLIP2: {"vision_use_head": False},
    "dinov2": {"use_mask_token": False},
}
_LAYER = re.compile(r"(?:.*\.)?layers?\.(\d+)\.")


def _add_encoder(account: Account, name: str, what: str, stored: Mapping[str, Any], sizes: Sizes) -> Eyes:
    """All blocks of it, or as many as are asked for; of CLIP's all but the last, as LLaVA takes them."""
    folder = find_folder(name, what, (*CONFIGS, _PIXELS))
    where, kind = f"config.json in {folder.name!r}", _ENCODERS[stored["model_type"]]
    part = stored if stored["model_type"] == kind else stored.get("vision_config") or {}
    check_values(part if part is stored else {"vision_config": {**part, "model_type": kind}}, where)
    with building(where):
        held = vision_config({**_plain(part), **_WITHOUT.get(kind, {}), "model_type": kind})
    most = int(held.num_hidden_layers)
    layers = sizes.vision_layers or max(1, most - (kind == "clip_vision_model"))
    if layers > most:
        raise SettingsError(f"vision_layers is {layers}, and {folder.name!r} has {most}.")
    files = _fetched(name, what, folder, weight_files(folder))
    for file in files:
        account.add(
            read_checkpoint(folder / file),
            ENCODERS[kind],
            lambda name: (found := _LAYER.match(name)) is not None and int(found[1]) >= layers,
        )
    check_depth({"num_hidden_layers": layers}, account.names(), where)
    held.num_hidden_layers = layers
    settings = read_json(folder, _PIXELS) if (folder / _PIXELS).is_file() else {}
    return _sized(account, held, {}, _Pixels.of(settings, held), sizes)


# --- How pictures become pixels, by what transformers' image processors write.


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_HALF = (0.5, 0.5, 0.5)
_BICUBIC, _BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
#: Where a folder does not say it: as its family's own processor. The shorter side, as a multiple of the square's.
_FAMILIES = {
    EVA: (_BICUBIC, None, CLIP_MEAN, CLIP_STD),
    "clip_vision_model": (_BICUBIC, 1.0, CLIP_MEAN, CLIP_STD),
    "siglip_vision_model": (_BICUBIC, None, _HALF, _HALF),
    SIGLIP2: (_BILINEAR, None, _HALF, _HALF),
    "dinov2": (_BICUBIC, 256 / 224, _MEAN, _STD),
    "dinov2_with_registers": (_BICUBIC, 256 / 224, _MEAN, _STD),
    "dinov3_vit": (_BILINEAR, None, _MEAN, _STD),
}


class _Pixels(NamedTuple):
    """What a folder says; `side` is None where it does not say it."""

    side: int | None
    resample: int
    shorter: float | None
    mean: Iterable[float]
    std: Iterable[float]

    @classmethod
    def of(cls, settings: Mapping[str, Any], vision: PreTrainedConfig) -> _Pixels:
        """Raises `ModelError` for pictures that are no squares, or for values of another range."""
        resample, shorter, mean, std = _FAMILIES[vision.model_type]
        size, crop = settings.get("size"), settings.get("crop_size")
        cropped = settings.get("do_center_crop", shorter is not None)
        if "shortest_edge" in settings:  # written by this project
            edge = settings["shortest_edge"]
            crop, size, cropped = size, {"shortest_edge": edge}, edge is not None
        side = _side(crop if cropped else size) if vision.model_type != SIGLIP2 else None
        if not cropped:
            shorter = None
        elif side and (edge := _shorter(size)):
            shorter = edge / side
        if not settings.get("do_resize", True) or abs(settings.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise ModelError(f"{_PIXELS} leaves pictures as large as they are, or makes other numbers of their values.")
        if not settings.get("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return cls(
            side,
            settings.get("resample", resample),
            shorter,
            settings.get("image_mean") or mean,
            settings.get("image_std") or std,
        )

    def processor(self, side: int) -> MiniChatImageProcessor:
        """For pictures of this size."""
        edge = None if self.shorter is None else max(side, round(self.shorter * side))
        return MiniChatImageProcessor(side, list(self.mean), list(self.std), self.resample, edge)


def _side(size: Any) -> int | None:
    """The side of a square, as transformers writes it: a number, or height and width, which must be one."""
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        if size["height"] != size["width"]:
            raise ModelError(f"{_PIXELS} asks for pictures of {size['height']} × {size['width']}: squares are needed.")
        return int(size["height"])
    return int(size) if isinstance(size, int) else None


def _shorter(size: Any) -> int | None:
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    return edge if isinstance(edge, int) else None
