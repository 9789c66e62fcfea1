"""An LLM over several devices: which part of it goes where. The vision side stays whole on one of them.

A device is spelled as accelerate does: a GPU by its number, any other by its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minichat.errors import SettingsError, some

if TYPE_CHECKING:
    import torch

    from minichat.hardware.placement import Placement
    from minichat.model import MiniChatForConditionalGeneration

VISION_SIDE = ("vision_model", "bridge", "projection")
LLM = "language_model"
_USED = 0.9  # of what is free on a device; the rest is for the key–value cache and what is computed

Map = dict[str, int | str]


def spelled(device: torch.device) -> int | str:
    return device.index or 0 if device.type == "cuda" else device.type


def entry_device(network: MiniChatForConditionalGeneration) -> torch.device:
    """Where ids go: to the LLM's embedding, or to where accelerate brings it when it is used."""
    import torch

    embedding = network.get_input_embeddings()
    device = next(embedding.parameters()).device
    if device.type != "meta":
        return device
    return torch.device(getattr(embedding, "_hf_hook").execution_device)  # noqa: B009 (accelerate's, not declared)


def read_map(devices: Mapping[str, torch.device]) -> tuple[Map, torch.device | None]:
    """A map as accelerate spells it, and where it puts the vision side, if it says so.

    Raises `SettingsError` where it takes the vision side apart, or says twice where something is.
    """
    for part in devices:
        if part == "" and len(devices) > 1:
            raise SettingsError("device_map has the part '', which stands for the whole network, beside others.")
        if part not in VISION_SIDE and part.split(".")[0] in VISION_SIDE:
            raise SettingsError(
                f"device_map names {part!r}: the vision encoder, the bridge and the projection stay whole."
            )
        if above := next((other for other in devices if other and part.startswith(f"{other}.")), None):
            raise SettingsError(f"device_map names {above!r} and {part!r}, which is in it: name only its parts.")
    given = {part: spelled(device) for part, device in devices.items()}
    vision = {part: devices[part] for part in ("", *VISION_SIDE) if part in devices}
    if len({given[part] for part in vision}) > 1:
        raise SettingsError("device_map puts the vision encoder, the bridge and the projection on different devices.")
    return given, next(iter(vision.values()), None)


def spread(
    network: MiniChatForConditionalGeneration, placement: Placement, budgets: Mapping[int | str, int] | None = None
) -> Map:
    """Where each part of a network (on the meta device) goes: the device map that transformers takes.

    "auto" fills the GPUs in their order with the LLM's layers, and then the CPU. `budgets` are bytes for each device;
    by default what is free. Raises `SettingsError` where the LLM does not fit, or the given map is of another network.
    """
    home = spelled(placement.device)
    if isinstance(placement.device_map, Mapping):
        found = _completed(network, dict(placement.device_map), home)
    else:
        found = _filled(network, placement, _free() if budgets is None else budgets, home)
    if home == "cpu" and set(found.values()) != {"cpu"}:
        raise SettingsError("device_map puts the vision side on the CPU beside an LLM on a GPU: put it on a GPU, too.")
    if placement.quantize is not None and "cpu" in found.values() and set(found.values()) != {"cpu"}:
        raise SettingsError(
            f"quantize is {placement.quantize!r}, but device_map is over the CPU and other devices: a quantized LLM is "
            "on GPUs alone, or on the CPU alone."
        )
    return found


def _completed(network: MiniChatForConditionalGeneration, given: Map, home: int | str) -> Map:
    """The map that was asked for, with the vision side in it."""
    if "" in given:
        return given
    known = {name for name, _ in network.named_modules()}
    if unknown := [part for part in given if part not in known]:
        raise SettingsError(
            f"device_map names {unknown[0]!r}, which is no part of this network: give {LLM!r}, or parts of it such as "
            f"'{LLM}.model.layers.0'."
        )
    found = {**dict.fromkeys(VISION_SIDE, home), **given}

    def where(name: str) -> int | str | None:
        return next((found[part] for part in found if name == part or name.startswith(f"{part}.")), None)

    if absent := [name for name, _ in network.named_parameters(remove_duplicate=False) if where(name) is None]:
        raise SettingsError(f"device_map says nothing of {some(absent)}: every part of the LLM needs a device.")
    entry = next(name for name, module in network.named_modules() if module is network.get_input_embeddings())
    for name, _ in network.named_buffers():  # such as the rotary embedding's, which is computed
        if where(name) is None:
            found[name.rpartition(".")[0]] = found.get(entry, home)
    return found


def _filled(
    network: MiniChatForConditionalGeneration, placement: Placement, budgets: Mapping[int | str, int], home: int | str
) -> Map:
    """The LLM's layers in their order, each on the first device with room for it."""
    from accelerate import infer_auto_device_map

    room: dict[int | str, int] = {where: int(size * _USED) for where, size in budgets.items()}
    vision = sum(tensor.numel() for name, tensor in network.named_parameters() if not name.startswith(f"{LLM}."))
    room[home] = max(0, room.get(home, 0) - vision * placement.dtype.itemsize)
    if placement.quantize is not None and home != "cpu":
        room.pop("cpu", None)
    llm = network.language_model
    found = infer_auto_device_map(
        llm,
        max_memory=dict(room),
        no_split_module_classes=llm._no_split_modules,
        dtype=placement.dtype,
        special_dtypes=_quantized_types(network, placement.quantize),
    )
    if "disk" in found.values():
        free = ", ".join(f"{size / 1e9:.1f} GB on {where}" for where, size in room.items())
        raise SettingsError(
            f"device_map is 'auto', but beside the vision side there is room for {free}, and the LLM needs more: use "
            "quantize='4bit' or a smaller LLM, or free some memory."
        )
    return {**dict.fromkeys(VISION_SIDE, home), **{f"{LLM}.{part}".rstrip("."): at for part, at in found.items()}}


def _quantized_types(network: MiniChatForConditionalGeneration, quantize: str | None) -> dict[str, Any]:
    """What accelerate counts the LLM's quantized tensors as."""
    import torch
    from accelerate.utils import CustomDtype
    from torch import nn

    if quantize is None:
        return {}
    kind = torch.int8 if quantize == "8bit" else CustomDtype.INT4
    head = network.get_output_embeddings()
    modules = network.language_model.named_modules()
    return {f"{name}.weight": kind for name, module in modules if isinstance(module, nn.Linear) and module is not head}


def _free() -> dict[int | str, int]:
    """Bytes that are free on each device."""
    from minichat.hardware.machine import look

    free: dict[int | str, int] = {}
    for device in look().devices:
        kind, _, number = device.name.partition(":")
        free[int(number) if kind == "cuda" else kind] = device.available
    return free
