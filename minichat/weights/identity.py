"""What decides all that a network computes, as one hash: whole tensors and the configuration, for keys of caches."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig

from minichat.weights.fingerprint import fingerprint

#: Of a configuration, what no number depends on.
_SILENT = (
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
)
_Stamp = tuple[tuple[int, int], ...]
_hashed: WeakKeyDictionary[nn.Module, tuple[_Stamp, str]] = WeakKeyDictionary()


def identity(module: nn.Module, config: PreTrainedConfig) -> str:
    """The hash of all tensors of a module and of its configuration: heads, eps and activation are in that alone.

    Tensors are hashed once, as long as they stay where they are and nothing is written into them.
    """
    stamp = _stamp(module)
    kept = _hashed.get(module)
    if kept is None or stamp is None or kept[0] != stamp:
        tensors = fingerprint(module.state_dict().items(), whole=True)
        if stamp is not None:
            _hashed[module] = (stamp, tensors)
    else:
        tensors = kept[1]
    said = json.dumps(_spoken(config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(f"{tensors} {said}".encode()).hexdigest()


def _stamp(module: nn.Module) -> _Stamp | None:
    """Where each tensor is, and how often it was written to; None where PyTorch does not count that."""
    try:
        return tuple((tensor.data_ptr(), tensor._version) for tensor in module.state_dict(keep_vars=True).values())
    except RuntimeError:  # tensors that were made in inference mode
        return None


def _spoken(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {k: _spoken(v) for k, v in config.items() if k not in _SILENT and not str(k).startswith("_")}
