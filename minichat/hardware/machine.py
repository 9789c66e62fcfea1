"""The memory that is here: of the processor, within a container's limit, and of each accelerator."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
