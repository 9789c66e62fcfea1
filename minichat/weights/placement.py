"""Where a network goes, and how precisely: device, dtype, quantization, an LLM that is spread over several devices."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minichat.errors import SettingsError
from minichat.weights.files import some

if TYPE_CHECKING:
    import torch

    from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("8bit", "4bit")
BITSANDBYTES = "bitsandbytes>=0.50"

_VISION_SIDE = ("vision_model", "bridge", "projection")
_LLM = "language_model"
_KEPT_FREE = 0.1  # of each device, for the key–value cache and what is computed


@dataclass(frozen=True)
class Placement:
    """What was asked for, found to be possible here.

    Only the LLM is quantized or spread. The vision encoder, the bridge and the projection stay whole on `device`, in
    `dtype`, the projection in float32.
    """

    device: torch.device
    dtype: torch.dtype
    quantize: str | None = None  # "8bit" or "4bit"
    device_map: Mapping[str, Any] | str | None = None  # where the LLM is, if not on `device`

    def as_stored(self, name: str) -> bool:
        """Whether this tensor is used as it lies in its file, if it is stored in `dtype`: it may then stay mapped."""
        changed = self.quantize is not None and name.startswith(f"{_LLM}.")
        return self.device.type == "cpu" and self.device_map is None and not changed

    def options(self, config: MiniChatConfig) -> dict[str, Any]:
        """The same for transformers' `from_pretrained`. Raises `SettingsError` for a map of another network."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.device_map is not None:
            options["device_map"] = spread(_outline(config), self)
        elif self.quantize is not None or self.device.type != "cpu":
            options["device_map"] = {"": self.device}
        if self.quantize is not None:
            options["quantization_config"] = _quantization(_outline(config), self)
        return options


def choose(
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device_map: Mapping[str, Any] | str | None = None,
) -> Placement:
    """What these settings mean on this machine. Raises `SettingsError` for what does not exist here."""
    if quantize is not None:
        if quantize not in QUANTIZED:
            raise SettingsError(f"quantize is {quantize!r}; it must be None, {' or '.join(map(repr, QUANTIZED))}.")
        _check_bitsandbytes(quantize)
    if device_map is not None:
        if device_map != "auto" and not isinstance(device_map, Mapping):
            raise SettingsError(f"device_map is {device_map!r}; it must be None, 'auto' or a dict of parts to devices.")
        if isinstance(device_map, Mapping):
            device_map = {str(part): _spelled(_device(where)) for part, where in device_map.items()}
            device = _vision_device(device_map, device)
    chosen = choose_device(device)
    return Placement(chosen, choose_dtype(dtype, chosen), quantize, device_map)


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA, else MPS, else the CPU. Raises `SettingsError` for one that is not here."""
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
    """ "auto" is float32 on the CPU, bfloat16 on CUDA, float16 on MPS. Raises `SettingsError` for another than ours."""
    import torch

    by_name = {name: getattr(torch, name) for name in DTYPES}
    if isinstance(dtype, str) and dtype == "auto":
        # A CPU computes in float32 about as fast as in half precision, and exactly.
        return {"cuda": torch.bfloat16, "mps": torch.float16}.get(device.type, torch.float32)
    if isinstance(dtype, torch.dtype) and dtype in by_name.values():
        return dtype
    if isinstance(dtype, str) and dtype in by_name:
        return by_name[dtype]
    raise SettingsError(f"dtype is {str(dtype)!r}; it must be 'auto', {', '.join(map(repr, DTYPES))}.")


def spread(
    network: MiniChatForConditionalGeneration, placement: Placement, budgets: Mapping[int | str, int] | None = None
) -> dict[str, int | str]:
    """Which part of a network (on the meta device) goes where, as accelerate takes it.

    "auto" fills the GPUs in their order with the LLM's layers, and then the CPU. `budgets` are bytes for each device;
    by default what is free. Raises `SettingsError` where the LLM does not fit, or the given map is not one of it.
    """
    home = _spelled(placement.device)
    if isinstance(placement.device_map, Mapping):
        found = _given(network, placement.device_map, home)
    else:
        found = _filled(network, placement, _free() if budgets is None else budgets, home)
    if placement.quantize is not None and len({isinstance(where, int) for where in found.values()}) > 1:
        raise SettingsError(
            f"quantize is {placement.quantize!r}, but device_map puts parts of the LLM on the CPU and others on a GPU: "
            "a quantized LLM needs to be on GPUs alone, or on the CPU alone."
        )
    return found


def _outline(config: MiniChatConfig) -> MiniChatForConditionalGeneration:
    """The network without its weights."""
    import torch

    from minichat.model import MiniChatForConditionalGeneration

    with torch.device("meta"):
        return MiniChatForConditionalGeneration(config)


# --- quantization


def _check_bitsandbytes(quantize: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(
            f"quantize is {quantize!r}, which needs bitsandbytes: install it with `pip install '{BITSANDBYTES}'`."
        )


def _quantization(network: MiniChatForConditionalGeneration, placement: Placement) -> Any:
    """LLM.int8() (arXiv:2208.07339), or NF4 and computation in bfloat16 (arXiv:2305.14314). The head stays as it is."""
    import torch
    from transformers import BitsAndBytesConfig

    head = network.get_output_embeddings()
    heads = [name for name, module in network.named_modules() if module is head]
    # Patterns from the beginning of a name: transformers also takes what is listed for the end of one.
    whole = [rf"^{name}" for name in (*_VISION_SIDE, *heads)]
    with _without_remarks():
        if placement.quantize == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=whole,
        )


@contextmanager
def _without_remarks() -> Iterator[None]:
    """bitsandbytes speaks of optional kernels when it is imported."""
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        importlib.import_module("bitsandbytes")
        # It would say at every product of matrices that 8 bits are multiplied in float16.
        logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
        yield
    except (ImportError, OSError, RuntimeError) as error:
        raise SettingsError(
            f"bitsandbytes is installed but cannot be used ({error}): install it anew with "
            f"`pip install --force-reinstall '{BITSANDBYTES}'`."
        ) from None
    finally:
        log.setLevel(level)


# --- several devices


def _device(where: Any) -> torch.device:
    """A device of a map, where a bare number is a GPU's."""
    if where in ("disk", "meta"):
        raise SettingsError(f"device_map puts a part on {where!r}: an LLM is spread over GPUs and the CPU alone.")
    return choose_device(f"cuda:{where}" if isinstance(where, int) and not isinstance(where, bool) else where)


def _spelled(device: torch.device) -> int | str:
    """A device as accelerate names it."""
    return device.index or 0 if device.type == "cuda" else device.type


def _vision_device(given: Mapping[str, int | str], device: str | torch.device) -> str | torch.device:
    """Where the vision side is: `device`, or where the map puts it."""
    named = {part: given[part] for part in ("", *_VISION_SIDE) if part in given}
    if len(set(named.values())) > 1:
        raise SettingsError(f"device_map is {named}: the vision encoder, bridge and projection go on one device.")
    if not named:
        return device
    part, where = next(iter(named.items()))
    found = _device(where)
    if device != "auto" and _spelled(choose_device(device)) != where:
        raise SettingsError(
            f"device is {str(device)!r}, but device_map puts {part or 'everything'!r} on {str(found)!r}."
        )
    return found


def _given(
    network: MiniChatForConditionalGeneration, given: Mapping[str, int | str], home: int | str
) -> dict[str, int | str]:
    """The map that was asked for, with the vision side in it."""
    if "" in given:
        if len(given) > 1:
            raise SettingsError("device_map has the part '', which stands for the whole network, beside others.")
        return {"": given[""]}
    known = {name for name, _ in network.named_modules()}
    for part in given:
        if part not in known:
            raise SettingsError(
                f"device_map names {part!r}, which is no part of this network: give {_LLM}, or parts of it such as "
                f"{_LLM}.model.layers.0."
            )
        if part.split(".")[0] in _VISION_SIDE and part not in _VISION_SIDE:
            raise SettingsError(f"device_map names {part!r}: the vision encoder and the bridge stay whole.")
    found = {**dict.fromkeys(_VISION_SIDE, home), **given}

    def covering(name: str) -> list[str]:
        return [part for part in found if name == part or name.startswith(f"{part}.")]

    tensors = dict(network.named_parameters(remove_duplicate=False))
    if absent := [name for name in tensors if not covering(name)]:
        raise SettingsError(f"device_map says nothing of {some(absent)}: every part of the LLM needs a device.")
    if twice := [name for name in tensors if len(covering(name)) > 1]:
        raise SettingsError(f"device_map puts {twice[0]} somewhere twice, by {' and '.join(covering(twice[0]))}.")
    first = next(name for name, module in network.named_modules() if module is network.get_input_embeddings())
    start = found[covering(first)[0]]
    for name, _ in network.named_buffers():  # such as the rotary embedding's
        if not covering(name):
            found[name.rpartition(".")[0]] = start
    return found


def _filled(
    network: MiniChatForConditionalGeneration, placement: Placement, budgets: Mapping[int | str, int], home: int | str
) -> dict[str, int | str]:
    """The LLM's layers in their order, each on the first device with room for it."""
    from accelerate import infer_auto_device_map

    left = {where: int(size * (1 - _KEPT_FREE)) for where, size in budgets.items()}
    vision = sum(t.numel() for name, t in network.named_parameters() if not name.startswith(f"{_LLM}."))
    left[home] = max(0, left.get(home, 0) - vision * placement.dtype.itemsize)
    if placement.quantize is not None and any(isinstance(where, int) for where in left):
        left.pop("cpu", None)
    llm = network.language_model
    found = infer_auto_device_map(
        llm,
        max_memory=dict(left),
        no_split_module_classes=llm._no_split_modules,
        dtype=placement.dtype,
        special_dtypes=_quantized_types(network, placement),
    )
    if "disk" in found.values():
        room = ", ".join(f"{size / 1e9:.1f} GB on {where}" for where, size in left.items())
        raise SettingsError(
            f"device_map is 'auto', but the LLM does not fit into what is free here, {room}: use quantize='4bit' or a "
            "smaller LLM, or free some memory."
        )
    return {
        **dict.fromkeys(_VISION_SIDE, home),
        **{f"{_LLM}.{part}".rstrip("."): where for part, where in found.items()},
    }


def _quantized_types(network: MiniChatForConditionalGeneration, placement: Placement) -> dict[str, Any]:
    """What accelerate counts the LLM's quantized tensors as."""
    import torch
    from accelerate.utils import CustomDtype
    from torch import nn

    if placement.quantize is None:
        return {}
    kind: Any = torch.int8 if placement.quantize == "8bit" else CustomDtype.INT4
    llm, head = network.language_model, network.get_output_embeddings()
    linear = (name for name, module in llm.named_modules() if isinstance(module, nn.Linear) and module is not head)
    return {f"{name}.weight": kind for name in linear}


def _free() -> dict[int | str, int]:
    """Bytes that are free on each device."""
    from accelerate.utils import get_max_memory

    return dict(get_max_memory())
