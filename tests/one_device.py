"""What runs on a GPU, checked without one: shapes alone, on the device "meta", beside the host's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

META = torch.device("meta")
# What brings values from one device to another, and so takes tensors of both.
_COPIES = ("aten::_to_copy", "aten::copy_")


class OneDevice(TorchDispatchMode):
    """Refuses, as CUDA does, an operation on tensors of two devices; a CPU tensor of no dimension goes with any.

    What the host wants to know of a tensor on "meta" (`item`, `bool`, `nonzero`) raises of itself: it has no values.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in found if tensor.dim() or tensor.device.type != "cpu"}
        if len(devices) > 1 and func._schema.name not in _COPIES:
            raise RuntimeError(f"{func} is given tensors on {' and '.join(sorted(devices))}.")
        return func(*args, **dict(kwargs or {}))


def to_meta(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move a network to "meta", where it takes that for a device like any other."""
    model.to(META)
    # What is on "meta" is taken for offloaded, and accelerate asked where it is computed.
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module._hf_hook = SimpleNamespace(execution_device=META)
    autocast, enabled = torch.autocast, torch.is_autocast_enabled  # which know no "meta"

    def or_none(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", or_none)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    # transformers' own wait, once in a pass without mask and cache: it looks whether rows hold several texts.
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


def answered(monkeypatch: pytest.MonkeyPatch, values: Callable[[Tensor], Any]) -> list[Tensor]:
    """Let `tolist` of a tensor on "meta" return `values` of it; the list that is returned holds who was asked."""
    asked: list[Tensor] = []
    original = Tensor.tolist

    def tolist(self: Tensor) -> Any:
        if self.device != META:
            return original(self)
        asked.append(self)
        return values(self)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    return asked
