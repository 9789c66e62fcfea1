"""One checkpoint file → its tensors, mapped from disk. Nothing in a file is ever run."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minichat.errors import ModelError, sentence
from minichat.weights.checksum import is_sound

_ZIP = b"PK\x03\x04"  # what torch.save has written since PyTorch 1.6; older files cannot be mapped
_FLOATS = ("float32", "bfloat16", "float16", "float64")
#: How safetensors spells the dtypes that PyTorch has.
_SPELLED = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    "C64": "complex64",
    **{f"{sign}{bits}": f"{kind}{bits}" for sign, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
#: Buffers that some LLMs save with their weights: masks and positions, which nothing is multiplied with.
_BUFFERS = re.compile(r".*\.(position_ids|inv_freq|num_batches_tracked|masked_bias|attn\.bias|attention\.bias)")
_CODE = re.compile(r"GLOBAL\s+([\w.]+)")


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one file by name, and what else it holds (`extras`: an original's optimizer, config, epoch).

    Tensors are read when they are asked for, and checked then: dense, backed by the file, and finite.
    """

    def __init__(self, file: str, tensors: Mapping[str, Any], extras: Mapping[str, Any]) -> None:
        self.file = file
        self.extras = extras
        self._tensors = tensors

    @property
    def raw(self) -> Mapping[str, Any]:
        """Name → a tensor, or a slice of the file that is read when it is needed; unchecked."""
        return self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        """Raises `ModelError`, naming file and tensor, for one that is no plain tensor or not finite."""
        tensor = self.plain(name)
        if not math.isfinite(largest(tensor)):
            raise ModelError(f"The tensor {name} in {self.file} holds values that are not finite: the file is damaged.")
        return tensor

    def plain(self, name: str) -> Tensor:
        """The tensor without a look at its values; its shape and dtype can be trusted."""
        value = self._tensors[name]
        tensor = value[...] if hasattr(value, "get_shape") else value
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{name} in {self.file} is a {type(value).__name__}, not a tensor: give another file.")
        whole = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not whole or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(f"The tensor {name} in {self.file} is not a plain one with all its values: give another.")
        check_float(self.file, name, tensor)
        return tensor


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a `.pth`, `.bin` or `.safetensors` file by its content, not its name.

    A pickle is read with `weights_only=True` and mapped; its tensors are at the top, or under "model" (as the
    originals' training saves them) or "state_dict". Raises `ModelError`, naming the file, for anything else.
    """
    try:
        with path.open("rb") as opened:
            head = opened.read(512)
    except FileNotFoundError:
        raise ModelError(f"There is no file {path.name!r}: check the path.") from None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror}): check the path.") from None
    refuse_downloads(path.name, head)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _safetensors(path)
    content = _unpickle(path, mapped=head.startswith(_ZIP))
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} holds a {type(content).__name__}, not named tensors: give another file.")
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            extras = {name: value for name, value in content.items() if name != key}
            return Checkpoint(path.name, _named(path.name, content[key]), extras)
    return Checkpoint(path.name, _named(path.name, content), {})


def refuse_downloads(name: str, head: bytes) -> None:
    """What downloads leave behind in place of a file."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise ModelError(f"{name} is empty: download it again.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ModelError(f"{name} is a web page, not weights: download the file itself, logged in where that is asked.")
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{name} is a Git LFS pointer, not weights: run `git lfs pull` where it is from.")


def _safetensors(path: Path) -> Checkpoint:
    try:
        opened = safe_open(path, framework="pt")
        if not is_sound(path):
            raise ModelError(
                f"{path.name} in {path.parent.name!r} is damaged: what it holds does not match its checksum. Put back "
                "a copy, or make it anew with the command that made it."
            )
        return Checkpoint(path.name, {name: opened.get_slice(name) for name in opened.keys()}, {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path.name} is damaged or cut off ({sentence(error)}): download it again.") from None


def _unpickle(path: Path, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # a hostile file may fail anywhere in the reader
        code = _CODE.search(str(error))
        if code:
            raise ModelError(
                f"{path.name} is a pickle that asks to run {code[1]}, which is refused: get plain weights."
            ) from None
        raise ModelError(f"{path.name} is damaged, cut off or no file of weights: download it again.") from None


def check_float(file: str, name: str, value: Any) -> None:
    """Raise `ModelError`, with the dtype, for a tensor or a slice of a file that is no floating-point weight.

    Numbers of 8 bits and below are only half of a weight: the other half is in scales beside it.
    """
    spelled = value.get_dtype() if hasattr(value, "get_dtype") else str(value.dtype).removeprefix("torch.")
    dtype = _SPELLED.get(spelled, spelled)
    if dtype not in _FLOATS and not _BUFFERS.fullmatch(name):
        raise ModelError(
            f"The tensor {name} in {file} is stored as {dtype}, where a floating-point weight is needed: the file is "
            "quantized, or was half converted. Give it in float32, bfloat16 or float16; MiniChat quantizes an LLM "
            "itself when it is loaded (quantize='8bit' or '4bit')."
        )


def largest(tensor: Tensor) -> float:
    """The largest magnitude in a tensor on the CPU; infinite or NaN where not all of it is finite.

    One pass, without a copy: NaN is both the least and the greatest where there is one.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    if tensor.element_size() == 1:  # PyTorch does not compare eight bits
        tensor = tensor.float()
    least, greatest = torch.aminmax(tensor)
    return max(abs(float(least)), abs(float(greatest)))


def _named(file: str, tensors: Mapping[Any, Any]) -> dict[str, Any]:
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise ModelError(f"{file} holds no named tensors: give another file.")
    return dict(tensors)
