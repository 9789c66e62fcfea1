"""Which forms of a model fit into the memory that is here, the best first, and what to try where none does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minichat.errors import ModelError
from minichat.machine import Device, Machine, look
from minichat.memory import CONTEXT, Needs, estimate, gib

if TYPE_CHECKING:
    import torch

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

    On one GPU: bfloat16, spread over all GPUs, 8 bits, 4 bits, spread over the GPUs and the processor. Then on the
    processor: float32 where there is no GPU (as exact, and about as fast), bfloat16, 8 bits, 4 bits.
    """

    def choice(
        device: Device, dtype: str, quantize: str | None = None, spread: tuple[Device, ...] = (), where: str = ""
    ) -> Choice:
        kind = device.name.partition(":")[0]
        needs = estimate(config, dtype=dtype, quantize=quantize, context=context, batch=batch, device=kind)
        over = spread or (device,)
        return Choice(
            device=None if spread else device.name,
            dtype=dtype,
            quantize=quantize,
            device_map="auto" if spread else None,
            needs=needs,
            available=sum(place.available for place in over),
            where=where or device.name,
        )

    cpu, gpus = machine.devices[-1], machine.gpus
    found = []
    if gpus:
        best = max(gpus, key=lambda gpu: gpu.available)
        found.append(choice(best, "bfloat16"))
        if len(gpus) > 1:
            found.append(choice(best, "bfloat16", spread=gpus, where=f"{len(gpus)} GPUs"))
        found += [choice(best, "bfloat16", quantize) for quantize in ("8bit", "4bit")]
        found.append(choice(best, "bfloat16", spread=(*gpus, cpu), where="GPU and processor"))
    found += [choice(device, "float16") for device in machine.devices if device.name == "mps"]
    if not found:
        found.append(choice(cpu, "float32"))
    return [*found, choice(cpu, "bfloat16"), choice(cpu, "bfloat16", "8bit"), choice(cpu, "bfloat16", "4bit")]


def best(config: MiniChatConfig, machine: Machine, context: int = CONTEXT, batch: int = 1) -> Choice | None:
    """The first choice that fits."""
    return next((choice for choice in choices(config, machine, context, batch) if choice.fits), None)


def check_fits(
    config: MiniChatConfig,
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    machine: Machine | None = None,
) -> None:
    """Before a model is loaded: raise `ModelError`, with both sizes and the next thing to try, where it cannot fit.

    What is short by less than the estimate may be wrong is not refused, nor anything while the environment variable
    MINICHAT_IGNORE_MEMORY is set. `machine` is what is here now.
    """
    if os.environ.get(IGNORE):
        return
    machine = machine or look()
    places = _places(machine, device, device_map)
    if places is None:
        return
    form = str(dtype).removeprefix("torch.")
    kind = places[0].name.partition(":")[0]
    needs = estimate(config, dtype=form, quantize=quantize, context=_SHORT, device=kind).model
    available = sum(place.available for place in places)
    if needs * (1 - _MARGIN) <= available:
        return
    where = " and ".join(place.name for place in places)
    raise ModelError(
        f"{name!r} needs about {gib(needs)} of memory in {quantize or form}, but {where} has {gib(available)} free: "
        f"{_next(config, machine)}, or set {IGNORE}=1 to try all the same."
    )


def _places(
    machine: Machine, device: torch.device, device_map: str | Mapping[str, Any] | None
) -> tuple[Device, ...] | None:
    """Where the model would be; None where part of it stays on the disk, so that memory sets no limit."""
    if device_map is None:
        return (machine.device(str(device)),)
    if isinstance(device_map, str):  # "auto" and its like: first the GPUs, then the processor
        return machine.devices
    named = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()}
    if "disk" in named:
        return None
    used = {machine.device(place) for place in named}
    return tuple(place for place in machine.devices if place in used)


def _next(config: MiniChatConfig, machine: Machine) -> str:
    """What to try: the best form that fits."""
    if found := best(config, machine, _SHORT):
        given = ", ".join(f'{name}="{value}"' for name, value in found.arguments.items())
        return f"try {given}, which needs {gib(found.needs.model)}"
    least = min(choice.needs.model for choice in choices(config, machine, _SHORT))
    return f"use a smaller model, since this one needs {gib(least)} at the least, or close other programs"
