"""Whether memory ran out, the machine's or an accelerator's: the one rule for it, and what is done about it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minichat.errors import MiniChatError

# What PyTorch says in a RuntimeError of no class of its own. CUDA's, ROCm's and XPU's allocators raise
# `torch.OutOfMemoryError`, but their libraries do not, nor does MPS ("MPS backend out of memory"). The CPU's allocator
# (c10/core/impl/alloc_cpu.cpp) says "can't allocate memory" on Linux and macOS, "not enough memory" on Windows.
_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # without importing torch
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(said.lower() in text for said in _TEXTS)


@contextmanager
def memory_told(make: Callable[[], MiniChatError]) -> Iterator[None]:
    """Raise the error that `make` returns where memory runs out within the block."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise make() from None


def free_memory() -> None:
    """Give back what PyTorch keeps of an accelerator's memory though nothing uses it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
