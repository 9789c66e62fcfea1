"""Which forms of a model fit into the memory that is here, the best first, and what to try where none does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minichat.errors import ModelError
from minichat.hardware.machine import Device, Machine, look
from minichat.hardware.memory import CONTEXT, QUANTIZED, Needs, estimate, gib
from minichat.hardware.placement import Placement, choose

if TYPE_CHECKING:
    from minichat.model import MiniChatConfig

IGNORE = "MINICHAT_IGNORE_MEMORY"
_MARGIN = 0.15  # an estimate may be off by so much: what exceeds the memory by less is not refused
_SHORT = 512  # tokens of the conversation that must at least be possible


@dataclass(frozen=True)
class Choice:
    """One form of a model on the devices that are here."""

    device: str | None  # as `load` takes it; None where a device map decides
    dtype: str
    quantize: str | None
    device_map: str | None
    needs: Needs
    available: int  # bytes, on all devices that it would be on
    where: str

    @property
    def fits(self) -> bool:
        return self.needs.total <= self.available

    @property
    def arguments(self) -> dict[str, str]:
        """What `minichat.load` is given."""
        given = {
            "device": self.device,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "device_map": self.device_map,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def flags(self) -> str:
        """What the command line is given."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.arguments.items())

    def __str__(self) -> str:
        return f"{self.quantize or self.dtype} on {self.where}"


def choices(config: MiniChatConfig, machine: Machine, context: int = CONTEXT, batch: int = 1) -> list[Choice]:
    """All forms that could be tried here, the best first.

    On GPUs: bfloat16, 8 bits, 4 bits, each on one and then spread over all; then bfloat16 on the GPUs and the processor
    together. On the processor: float32 where there is no GPU (exact, and about as fast), bfloat16, 8 bits, 4 bits.
    """
    cpu, gpus = machine.devices[-1], machine.gpus
    found: list[tuple[tuple[Device, ...], str, str | None]] = []
    if gpus:
        roomiest = (max(gpus, key=lambda gpu: gpu.available),)
        on_gpus = [roomiest, gpus] if len(gpus) > 1 else [roomiest]
        found += [(places, "bfloat16", quantize) for quantize in (None, *QUANTIZED) for places in on_gpus]
        found.append(((*gpus, cpu), "bfloat16", None))
    found += [((device,), "float16", None) for device in machine.devices if device.name == "mps"]
    if not found:
        found.append(((cpu,), "float32", None))
    found += [((cpu,), "bfloat16", quantize) for quantize in (None, *QUANTIZED)]
    return [_choice(config, places, dtype, quantize, context, batch) for places, dtype, quantize in found]


def default(config: MiniChatConfig, machine: Machine, context: int = CONTEXT, batch: int = 1) -> Choice:
    """What `minichat.load` takes where nothing is asked for."""
    placement = choose()
    places = (machine.device(str(placement.device)),)
    return _choice(config, places, str(placement.dtype).removeprefix("torch."), None, context, batch)


def _choice(
    config: MiniChatConfig,
    places: tuple[Device, ...],
    dtype: str,
    quantize: str | None,
    context: int,
    batch: int,
) -> Choice:
    """A form on these places; several are a device map."""
    needs = estimate(config, dtype=dtype, quantize=quantize, context=context, batch=batch, device=places[0].kind)
    return Choice(
        device=places[0].name if len(places) == 1 else None,
        dtype=dtype,
        quantize=quantize,
        device_map=None if len(places) == 1 else "auto",
        needs=needs,
        available=sum(place.available for place in places),
        where=" and ".join(place.name for place in places),
    )


def best(config: MiniChatConfig, machine: Machine, context: int = CONTEXT, batch: int = 1) -> Choice | None:
    """The first choice that fits."""
    return next((choice for choice in choices(config, machine, context, batch) if choice.fits), None)


def check_fits(config: MiniChatConfig, name: str, placement: Placement, machine: Machine | None = None) -> None:
    """Before a model is loaded: raise `ModelError`, with both sizes and the next thing to try, where it cannot fit.

    What is short by less than the estimate may be wrong is not refused, nor anything while the environment variable
    MINICHAT_IGNORE_MEMORY is set. `machine` is what is here now.
    """
    if os.environ.get(IGNORE):
        return
    here = machine or look(placement.device if placement.device_map is None else None)
    places = _places(here, placement)
    dtype = str(placement.dtype).removeprefix("torch.")
    wanted = _choice(config, places, dtype, placement.quantize, _SHORT, 1)
    needs = wanted.needs.model
    if needs * (1 - _MARGIN) <= wanted.available:
        return
    raise ModelError(
        f"{name!r} needs about {gib(needs)} of memory in {placement.quantize or dtype}, but {gib(wanted.available)} is "
        f"free on {wanted.where}: {_next(config, machine or look())}, or set {IGNORE}=1 to try all the same."
    )


def _places(machine: Machine, placement: Placement) -> tuple[Device, ...]:
    """Where the model would be."""
    spread = placement.device_map
    if spread is None:
        return (machine.device(str(placement.device)),)
    if isinstance(spread, str):  # "auto": the GPUs in their order, then the processor, unless it is quantized
        return machine.gpus if placement.quantize and machine.gpus else (*machine.gpus, machine.devices[-1])
    named = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in spread.values()}
    used = {machine.device(place).name for place in named}
    return tuple(place for place in machine.devices if place.name in used)


def _next(config: MiniChatConfig, machine: Machine) -> str:
    """What to try: the best form that fits."""
    if found := best(config, machine, _SHORT):
        given = ", ".join(f'{name}="{value}"' for name, value in found.arguments.items())
        return f"try {given}, which needs {gib(found.needs.model)}"
    least = min(choice.needs.model for choice in choices(config, machine, _SHORT))
    return f"use a smaller model, since this one needs {gib(least)} at the least, or close other programs"
