"""`minichat.device.memory`: one rule says whether memory ran out, whatever ran out of it."""

from __future__ import annotations

import errno

import pytest
import torch

from minichat.device.memory import memory_errors, out_of_memory
from minichat.errors import SettingsError

YES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.96 GB, other allocations: 1.2 GB, max allowed: 18 GB)."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to ..."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
NO = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("a memory format that is not supported"),
    ValueError("out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", YES, ids=str)
def test_what_ran_out_of_memory(error: BaseException) -> None:
    assert out_of_memory(error)
    with pytest.raises(SettingsError, match="lower it"), memory_errors(lambda: SettingsError("Too many: lower it.")):
        raise error


@pytest.mark.parametrize("error", NO, ids=repr)
def test_what_did_not(error: BaseException) -> None:
    assert not out_of_memory(error)
    with pytest.raises(type(error)) as caught, memory_errors(lambda: SettingsError("Too many: lower it.")):
        raise error
    assert caught.value is error


def test_pytorch_on_this_machine_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert out_of_memory(caught.value)
