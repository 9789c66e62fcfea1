"""Where a network goes, and how precisely: device, dtype, quantization, an LLM that is spread over several devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minichat.errors import SettingsError
from minichat.hardware.quantization import QUANTIZED, check_quantize, half, settings
from minichat.hardware.spreading import read_map, spelled, spread

if TYPE_CHECKING:
    import torch

    from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration

__all__ = ["DTYPES", "QUANTIZED", "Placement", "choose", "choose_device", "choose_dtype", "outline"]

DTYPES = ("float32", "bfloat16", "float16")


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
        # A CPU computes in float32 about as fast as in half precision, and exactly.
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
