"""The memory that is found, above all within a container's limits."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from minichat.device import placement
from minichat.device.placement import Device, Machine, container_limit, look

MIB = 1024**2


def v2(folder: Path, limit: int | str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon {used - cached}\nactive_file {cached // 4}\ninactive_file {cached * 3 // 4}\n"
    )


def v1(folder: Path, limit: int, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 7\ntotal_active_file {cached}\ntotal_inactive_file 0\n")


@pytest.fixture
def found(tmp_path: Path):
    """`found(lines)`: the limit and what is used, for a process whose /proc/self/cgroup has these lines."""
    (tmp_path / "proc" / "self").mkdir(parents=True)

    def find(*lines: str) -> tuple[int | None, int]:
        (tmp_path / "proc" / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))
        return container_limit(tmp_path / "proc", tmp_path / "groups")

    return find


def test_cached_files_give_way(tmp_path, found):
    v2(tmp_path / "groups/app", 1000 * MIB, 700 * MIB, cached=400 * MIB)
    assert found("0::/app") == (1000 * MIB, 300 * MIB)


def test_the_tightest_group_above_counts(tmp_path, found):
    v2(tmp_path / "groups/slice/app", "max", 100 * MIB)
    v2(tmp_path / "groups/slice", 500 * MIB, 450 * MIB)
    v2(tmp_path / "groups", 400 * MIB, 100 * MIB)
    assert found("0::/slice/app") == (500 * MIB, 450 * MIB)


def test_a_container_sees_its_own_group_as_the_root(tmp_path, found):
    v2(tmp_path / "groups", 800 * MIB, 200 * MIB)
    assert found("0::/docker/1234") == (800 * MIB, 200 * MIB)


def test_the_first_version(tmp_path, found):
    v1(tmp_path / "groups/memory", 2**63 - 4096, 900 * MIB)  # its way of writing that there is none
    v1(tmp_path / "groups/memory/app", 600 * MIB, 500 * MIB, cached=100 * MIB)
    assert found("5:cpu,cpuacct:/app", "4:memory:/app", "0::/") == (600 * MIB, 400 * MIB)


@pytest.mark.parametrize("lines", [[], ["0::/"], ["4:memory:/app"], ["0::/../.."], ["1:name=systemd:/memory"]])
def test_no_limit(tmp_path, found, lines):
    v1(tmp_path / "groups/memory", 2**63 - 4096, 900 * MIB)
    v2(tmp_path / "groups", "max", 900 * MIB)
    assert found(*lines)[0] is None


def test_no_groups_at_all(tmp_path):
    assert container_limit(tmp_path, tmp_path) == (None, 0)


def test_the_processor_is_what_the_system_says(monkeypatch):
    monkeypatch.setattr(placement, "container_limit", lambda: (None, 0))
    cpu = look().devices[-1]
    assert (cpu.name, cpu.total) == ("cpu", psutil.virtual_memory().total)
    assert cpu.available == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(("limit", "used", "available"), [(100 * MIB, 30 * MIB, 70 * MIB), (100 * MIB, 200 * MIB, 0)])
def test_a_container_has_what_its_limit_leaves(monkeypatch, limit, used, available):
    monkeypatch.setattr(placement, "container_limit", lambda: (limit, used))
    monkeypatch.setattr(placement.sys, "platform", "linux")
    cpu = look().devices[-1]
    assert (cpu.total, cpu.available, "container" in cpu.title) == (limit, available, True)


def test_a_limit_above_the_machine_is_none(monkeypatch):
    monkeypatch.setattr(placement, "container_limit", lambda: (2**60 - 1, 0))
    assert look().devices[-1].total == psutil.virtual_memory().total


def test_gpus_come_first_and_what_is_reserved_is_free(monkeypatch):
    facts = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "mem_get_info": lambda index: (5 * MIB * (index + 1), 40 * MIB),
        "memory_reserved": lambda index: 3 * MIB,
        "memory_allocated": lambda index: 1 * MIB,
        "get_device_name": lambda index: f"GPU number {index}",
    }
    for name, fact in facts.items():
        monkeypatch.setattr(torch.cuda, name, fact)
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: asked.append(i) or facts["mem_get_info"](i))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for name in ("cuda:1", "cuda", "cpu"):  # the others are left alone: each process of a run asks its own
        gpus = look(torch.device(name)).gpus
        assert [gpu.name for gpu in gpus] == ([] if name == "cpu" else ["cuda:1"])
        assert look(torch.device(name)).device(name).name == ("cpu" if name == "cpu" else "cuda:1")
    assert set(asked) == {1}
    here = look()
    assert here.gpus == (
        Device("cuda:0", "GPU number 0", 40 * MIB, 7 * MIB),
        Device("cuda:1", "GPU number 1", 40 * MIB, 12 * MIB),
    )
    assert [device.name for device in here.devices] == ["cuda:0", "cuda:1", "cpu"]


def test_apples_gpu_has_no_more_than_the_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2**60)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
    mps, cpu = look().devices
    assert (mps.name, mps.total) == ("mps", 2**60)
    assert mps.available == pytest.approx(cpu.available, rel=0.2)


def test_devices_are_found_by_pytorchs_names():
    gpu, cpu = Device("cuda:0", "", 2, 1), Device("cpu", "", 4, 3)
    here = Machine((gpu, cpu))
    assert [here.device(name) for name in ("cuda", "cuda:0", "cpu", "xpu")] == [gpu, gpu, cpu, cpu]
    assert (gpu.kind, cpu.kind) == ("cuda", "cpu")
