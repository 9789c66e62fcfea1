"""Devices: what this machine has, in which precision a network is put where, 8 and 4 bits, several devices."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.device import DTYPES
from minichat.errors import SettingsError, some

if TYPE_CHECKING:
    import torch

    from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration


# --- The memory that is here: of the processor, within a container's limit, and of each accelerator.


_NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63


@dataclass(frozen=True)
class Device:
    """One place where a model may be, as PyTorch names it: "cuda:0", "mps", "cpu". Sizes are in bytes."""

    name: str
    title: str
    total: int
    available: int  # what could be taken now, without putting anything else out

    @property
    def kind(self) -> str:
        """The name without its number."""
        return self.name.partition(":")[0]


#: Dense FLOP/s in 16 bits with sums in float32, by a part of the GPU's name: NVIDIA's data sheets, which for some name
#: twice that, with sparsity. The first that fits counts.
_PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12,
    "A10G": 70e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "V100": 125e12, "T4": 65e12, "RTX A6000": 155e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that a device can do in this precision, by its maker's data sheet; None where that is not known."""
    import torch

    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


@dataclass(frozen=True)
class Machine:
    """Accelerators first, as PyTorch counts them, and the processor last."""

    devices: tuple[Device, ...]

    def device(self, name: str) -> Device:
        """The device that PyTorch calls `name`; "cuda" is the first GPU. The processor, if there is no such device."""
        wanted = self.gpus[0].name if name == "cuda" and self.gpus else name
        return next((device for device in self.devices if device.name == wanted), self.devices[-1])

    @property
    def gpus(self) -> tuple[Device, ...]:
        return tuple(device for device in self.devices if device.kind == "cuda")


def look(device: torch.device | None = None) -> Machine:
    """What is here, now. Of GPUs `device` alone, if it is given: on each that is asked, some 100 MB stay in use."""
    gpus = _gpus(device) if device is None or device.type == "cuda" else []
    return Machine((*gpus, *_mps(), _cpu()))


def _gpus(device: torch.device | None) -> list[Device]:
    import torch

    if not torch.cuda.is_available():
        return []
    own = None if device is None else torch.cuda.current_device() if device.index is None else device.index
    found = []
    for index in range(torch.cuda.device_count()) if own is None else [own]:
        free, total = torch.cuda.mem_get_info(index)
        # What PyTorch holds of tensors that are gone is as good as free.
        free += torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        found.append(Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    return found


def _mps() -> list[Device]:
    import torch

    if not torch.backends.mps.is_available():
        return []
    total = torch.mps.recommended_max_memory()
    free = min(total - torch.mps.driver_allocated_memory(), _cpu().available)  # one memory for both
    return [Device("mps", "Apple GPU, in the processor's memory", total, max(free, 0))]


def _cpu() -> Device:
    import psutil

    memory = psutil.virtual_memory()
    limit, used = container_limit() if sys.platform == "linux" else (None, 0)
    if limit is None or limit >= memory.total:
        return Device("cpu", "processor", memory.total, memory.available)
    return Device("cpu", "processor, in a container", limit, min(memory.available, max(limit - used, 0)))


def container_limit(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """The tightest memory limit of this process's control groups, and how much of it is used, in bytes.

    The limit is None where there is none. Files that the kernel merely caches count as unused: they give way. Both
    versions are read as the kernel documents them (Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files",
    and cgroup-v1/memory.rst).
    """
    found = [
        (limit, used)
        for folder, names in _control_groups(proc, cgroups)
        if (limit := _number(folder / names[0])) is not None and limit < _NO_LIMIT
        for used in [(_number(folder / names[1]) or 0) - _cached(folder / "memory.stat", names[2])]
    ]
    return min(found, key=lambda pair: pair[0] - pair[1], default=(None, 0))


_Names = tuple[str, str, tuple[str, str]]
_V2: _Names = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1: _Names = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def _control_groups(proc: Path, cgroups: Path) -> list[tuple[Path, _Names]]:
    """The folders of this process's memory groups, up to the root, with the names of the files in them.

    A container may see its own group as the root, under the path that it has outside: then that path leads nowhere.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[tuple[Path, _Names]] = []
    for line in lines:  # hierarchy:controllers:path
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (cgroups / "memory", _V1) if controllers else (cgroups, _V2)
        own = Path(path.lstrip("/"))
        found += [(root / folder, names) for folder in (own, *own.parents)]
    return found


def _number(file: Path) -> int | None:
    """A file's number; None for "max" and where it cannot be read."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _cached(file: Path, names: tuple[str, str]) -> int:
    """Bytes of cached files, by a group's memory.stat."""
    try:
        fields = dict(line.split(" ", 1) for line in file.read_text().splitlines())
        return sum(int(fields[name]) for name in names)
    except (OSError, ValueError, KeyError):
        return 0


# --- An LLM's matrices in 8 or 4 bits, by bitsandbytes.


QUANTIZED = ("8bit", "4bit")
NEEDED = "bitsandbytes>=0.50"


def check_quantize(quantize: str | None) -> None:
    """Raise `SettingsError` unless it is None, or "8bit" or "4bit" and bitsandbytes is installed."""
    if quantize is None:
        return
    if quantize not in QUANTIZED:
        raise SettingsError(f"quantize is {quantize!r}; it must be None, {' or '.join(map(repr, QUANTIZED))}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(
            f"quantize is {quantize!r}, which needs bitsandbytes: install it with `pip install '{NEEDED}'`."
        )


def half(device: torch.device) -> torch.dtype:
    """The half precision that a device computes in: bfloat16; on MPS, and on GPUs that only emulate it, float16.

    Such are T4 and V100: PyTorch counts them among those that have bfloat16, and they are many times slower in it.
    """
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device) if device.index is not None else nullcontext():
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device.type == "mps" else torch.bfloat16


_NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # what processors call it: x86's, then Arm's
_QUICKER = 0.8  # of float32's time: where it is no less, what one library can do is not what another one uses


@cache
def computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively, and is the quicker for it: asked, then measured, once.

    A processor may have the instructions while the library that PyTorch calls does not use them.
    """
    import torch

    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(capabilities.get(name) for name in _NATIVE):
        return False
    best: dict[torch.dtype, float] = {}
    for _ in range(4):  # the first of each is for what is made once
        for dtype in (torch.float32, torch.bfloat16):
            one, other = torch.ones(128, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
            started = time.perf_counter()
            one @ other
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - started)
    return best[torch.bfloat16] <= _QUICKER * best[torch.float32]


def settings(network: MiniChatForConditionalGeneration, quantize: str, compute: torch.dtype) -> Any:
    """transformers' `BitsAndBytesConfig` for a network: its LLM's matrices, the head excepted, and nothing else.

    8 bits are LLM.int8() (arXiv:2208.07339); 4 bits are NF4 (arXiv:2305.14314), computed with in `compute`.
    """
    from transformers import BitsAndBytesConfig

    _open_bitsandbytes()
    head = network.get_output_embeddings()
    heads = [name for name, module in network.named_modules() if module is head]
    others = [name for name, module in network.named_children() if module is not network.language_model]
    # Patterns from the beginning of a name: transformers also takes what is listed for the end of one.
    whole = [f"^{name}" for name in (*others, *heads)]
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=whole
    )


def _open_bitsandbytes() -> None:
    quiet_bitsandbytes()
    try:
        importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(
            f"bitsandbytes is installed but cannot be used ({reason}): install it anew with "
            f"`pip install --force-reinstall '{NEEDED}'`."
        ) from None


def quiet_bitsandbytes() -> None:
    """Keep back its remarks: on optional kernels when it is opened, as PEFT does, too, and on products in 8 bits."""
    if (log := logging.getLogger("bitsandbytes")).level == logging.NOTSET:
        log.setLevel(logging.ERROR)


def suit_cpu(network: MiniChatForConditionalGeneration) -> None:
    """Let every 4-bit matrix on a CPU be used.

    With AVX-512 and bfloat16, bitsandbytes 0.50 packs a matrix when it is first used, but only one of a multiple of 32
    rows and 64 columns: any other fails there.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False


# --- An LLM over several devices: which part of it goes where. The vision side stays whole on one of them.
#
# A device is spelled as accelerate does: a GPU by its number, any other by its type.


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
    free: dict[int | str, int] = {}
    for device in look().devices:
        kind, _, number = device.name.partition(":")
        free[int(number) if kind == "cuda" else kind] = device.available
    return free


# --- Where a network goes, and how precisely: device, dtype, quantization, an LLM that is spread over several devices.


@dataclass(frozen=True)
class Placement:
    """What was asked for, found to be possible here.

    Only the LLM is quantized or spread. The vision encoder, the bridge and the projection stay whole on `device`, in
    `dtype`, the projection in float32.
    """

    device: torch.device
    dtype: torch.dtype
    quantize: str | None = None  # "8bit" or "4bit"
    device_map: Mapping[str, int | str] | str | None = None  # where the LLM is, if it is not on `device`

    def for_bfloat16(self) -> Placement:
        """For weights that are stored in bfloat16: on a processor that computes in it natively, they stay so."""
        plain = self.device.type == "cpu" and self.quantize is None and self.device_map is None
        return replace(self, dtype=half(self.device)) if plain and computes_bfloat16() else self

    def as_stored(self, name: str) -> bool:
        """Whether this tensor is used as it lies in its file, if it is stored in `dtype`: it may then stay mapped."""
        changed = self.quantize is not None and name.startswith("language_model.")
        return self.device.type == "cpu" and self.device_map is None and not changed

    def options(self, config: MiniChatConfig) -> dict[str, Any]:
        """The same for transformers' `from_pretrained`. Raises `SettingsError` for a map of another network."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.device_map is not None:
            options["device_map"] = spread(outline(config), self)
        elif self.quantize is not None or self.device.type != "cpu":
            options["device_map"] = {"": self.device}
        if self.quantize is not None:
            options["quantization_config"] = settings(outline(config), self.quantize, half(self.device))
        return options


def choose(
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device_map: Mapping[str, Any] | str | None = None,
) -> Placement:
    """What these settings mean on this machine. Raises `SettingsError` for what does not exist here."""
    check_quantize(quantize)
    home: str | torch.device | None = None
    if isinstance(device_map, Mapping):
        devices = {str(part): choose_device(_named(where)) for part, where in device_map.items()}
        device_map, home = read_map(devices)
        if home is not None and device != "auto" and spelled(choose_device(device)) != spelled(home):
            raise SettingsError(f"device is {str(device)!r}, but device_map puts the vision side on {str(home)!r}.")
    elif device_map not in (None, "auto"):
        raise SettingsError(f"device_map is {device_map!r}; it must be None, 'auto' or a dict of parts to devices.")
    chosen = choose_device(device if home is None else home)
    return Placement(chosen, choose_dtype(dtype, chosen), quantize, device_map)


def choose_device(device: str | torch.device) -> torch.device:
    """`device`, where "auto" is CUDA, else MPS, else the CPU. Raises `SettingsError` for one that is not here."""
    import torch

    if isinstance(device, str) and device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise SettingsError(f"device is {device!r}; it must be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'.") from None
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (chosen.index or 0) >= available.get(chosen.type, 0):
        raise SettingsError(f"device is {str(device)!r}, but PyTorch finds none here: use 'auto' or 'cpu'.")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, where "auto" is float32 on the CPU, on CUDA what `half` says, float16 on MPS. Raises `SettingsError`."""
    import torch

    by_name = {name: getattr(torch, name) for name in DTYPES}
    if isinstance(dtype, str) and dtype == "auto":
        # Exactly; of weights in bfloat16, which a processor may compute with natively, `load` knows.
        return torch.float32 if device.type == "cpu" else half(device)
    if isinstance(dtype, torch.dtype) and dtype in by_name.values():
        return dtype
    if isinstance(dtype, str) and dtype in by_name:
        return by_name[dtype]
    raise SettingsError(f"dtype is {str(dtype)!r}; it must be 'auto', {', '.join(map(repr, DTYPES))}.")


def _named(where: Any) -> Any:
    """A device of a map, where a bare number is a GPU's."""
    if where in ("disk", "auto", "meta"):
        raise SettingsError(f"device_map puts a part on {where!r}: an LLM is spread over GPUs and the CPU alone.")
    return f"cuda:{where}" if isinstance(where, int) and not isinstance(where, bool) else where


def outline(config: MiniChatConfig) -> MiniChatForConditionalGeneration:
    """The network without its weights."""
    import torch

    from minichat.model import MiniChatForConditionalGeneration

    with torch.device("meta"):
        return MiniChatForConditionalGeneration(config)
