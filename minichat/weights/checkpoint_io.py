"""Checkpoints in and out: tensors read, hashed, streamed and written. Nothing in a file is ever run."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from minichat.errors import POINTER, UNFETCHED, ModelError, sentence
from minichat.fileio import open_to_others, write_json
from minichat.weights.hub import WEIGHTS

# --- A hash of tensors as they are stored, by which the same weights are known again in any file.


_SAMPLE = 64 * 1024  # bytes of each tensor


def fingerprint(tensors: Iterable[tuple[str, Tensor]], whole: bool = False) -> str:
    """A hash of stored tensors: names, dtypes, shapes and the first 64 KiB of each, whatever files they are in.

    `whole`: all of each tensor, for which everything is read.
    """
    held = dict(tensors)
    return fingerprint_of(held, held.__getitem__, whole)


def fingerprint_of(names: Iterable[str], read: Callable[[str], Tensor], whole: bool = False) -> str:
    """The same of tensors that are read one by one, so that no two need be in memory."""
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = read(name)
        count = tensor.numel() if whole else min(tensor.numel(), _SAMPLE // tensor.element_size())
        sample = tensor.flatten()[:count].contiguous().view(torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(sample.cpu().numpy().data)
    return digest.hexdigest()


# --- What decides all that a network computes, as one hash: whole tensors and the configuration, for keys of caches.


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


# --- Checksums of what is written: a byte that changes on the disk is found when the file is next read.
#
# A safetensors file carries its own, as `sha256` among its metadata: of names, types, shapes and all bytes of its
# tensors, and of the other metadata that matter. It is in the file, and not beside it, so that the two are never
# apart. A file without one, as others write them, is read as it is.


KEY = "sha256"
_AT_MOST = 2**30  # bytes of a file that is hashed whenever it is read; `--verify` is for larger ones


def checksum(tensors: Iterable[tuple[str, Tensor]], said: str = "") -> str:
    """SHA-256 of tensors by name, and of a text that belongs to them."""
    return _with(fingerprint(tensors, whole=True), said)


def _with(found: str, said: str = "") -> str:
    return hashlib.sha256(f"{found} {said}".encode()).hexdigest()


def is_sound(path: Path) -> bool:
    """Whether a safetensors file of weights holds what was written; also where that is not known, or it is large.

    Raises what `safe_open` raises.
    """
    found = path.stat()
    return found.st_size > _AT_MOST or _is_sound(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)  # a model's loading opens its files more than once
def _is_sound(path: Path, size: int, changed: int) -> bool:
    from safetensors import safe_open

    # Read tensor by tensor and not mapped: a mapped file would be in memory as a whole, beside a quantized model.
    with safe_open(path, framework="pt", backend="pread") as file:
        written = (file.metadata() or {}).get(KEY)
        return written is None or written == _with(fingerprint_of(file.keys(), file.get_tensor, whole=True))


def of_facts(facts: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON object says, however it is laid out."""
    read_back = json.loads(json.dumps(facts))  # where all keys are texts
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


# --- One checkpoint file → its tensors, mapped from disk. Nothing in a file is ever run.


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

    def __contains__(self, name: object) -> bool:  # a mapping's own would read the tensor
        return name in self._tensors

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
    if start.startswith(POINTER):
        raise ModelError(f"{name} {UNFETCHED}.")


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


# --- Stored tensors that are read when they are asked for: a model is loaded without a second copy of its weights.


# Of mallopt(3), numbered as in glibc's malloc.h, and the values that glibc comes to by itself at the most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_APART, _USUAL = 256 * 1024, 32 * 1024**2
_STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors spells them


class Stream:
    """The tensors of a model by name, for transformers to load, and what was found while they were read.

    A tensor that is used as it is stored stays mapped from its file: nothing is copied. Any other is read into memory,
    one at a time, and not mapped, so that its file takes none beside it.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        as_stored: Callable[[str], bool],
        change: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        """`dtype`: what the tensors become. `as_stored`: whether one is used as it is if it has that dtype already.
        `change`: what is made of a tensor, by its name in the model, when it is read."""
        self.tensors: dict[str, StoredTensor] = {}
        self.not_finite: list[str] = []
        self.too_large: list[str] = []  # finite, but beyond what `dtype` can hold
        self._dtype = dtype
        self._as_stored = as_stored
        self._change = change

    def add(self, path: Path, prefix: str = "", names: Iterable[str] | None = None, inner: str = "") -> None:
        """Take in a file's tensors, or these of them. `inner`: in the file, all their names begin so.

        Raises `ModelError`, naming the file, for one that is damaged.
        """
        mapped = read_checkpoint(path).raw
        read = safe_open(path, framework="pt", backend="pread") if path.suffix == ".safetensors" else None
        for name in mapped if names is None else names:
            value = mapped[inner + name]
            check_float(path.name, inner + name, value)
            stays = self._as_stored(prefix + name) and _stored_as(value) == _STORED[self._dtype]
            if read is not None and not stays:
                value = read.get_slice(inner + name)
            self.tensors[prefix + name] = StoredTensor(value, prefix + name, self)

    def changed(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self._change is None else self._change(name, tensor)

    def look_at(self, name: str, tensor: Tensor) -> None:
        most = largest(tensor)
        if not math.isfinite(most):
            self.not_finite.append(name)
        elif most > torch.finfo(self._dtype).max and not name.startswith("projection."):
            self.too_large.append(name)


class StoredTensor:
    """What transformers takes for a slice of a file: `[...]` reads it."""

    def __init__(self, value: Any, name: str, stream: Stream) -> None:
        self._value, self._name, self._stream = value, name, stream

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._value.get_shape() if hasattr(self._value, "get_shape") else self._value.shape)

    def __getitem__(self, part: Any) -> Tensor:
        tensor: Tensor = self._value[part]
        self._stream.look_at(self._name, tensor)
        return self._stream.changed(self._name, tensor)


def _stored_as(value: Any) -> str:
    return value.get_dtype() if hasattr(value, "get_dtype") else _STORED.get(value.dtype, "")


@contextmanager
def large_apart() -> Iterator[None]:
    """Where the C library is glibc, each large block of memory is for the while one that goes back when it is freed.

    Quantizing leaves small matrices between large copies that are gone. In one heap these are holes that later work
    fills here and there, until the process holds them all; measured in docs/MEMORY.md.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _APART)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _USUAL)
        mallopt(_TRIM_THRESHOLD, 2 * _USUAL)


# --- Tensors → safetensors files, a shard at a time.


_SHARD = 2 * 1024**3  # bytes; so much is in memory while it is written


class Entry(NamedTuple):
    """A tensor that is made when it is written."""

    name: str
    bytes: int
    make: Callable[[], Tensor]


def write_tensors(folder: Path, entries: Sequence[Entry], file: str = WEIGHTS, shard: int = _SHARD) -> None:
    """Write `model.safetensors`, or shards of it with their index; never more than one shard in memory.

    `file`: another name where there is one file. Raises `ModelError` where the disk does not take it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.bytes for e in shards[-1]) + entry.bytes > shard:
            shards.append([])
        shards[-1].append(entry)
    index: dict[str, str] = {}
    for number, part in enumerate(shards, start=1):
        name = file if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        # A tensor that shares its storage with others is written as its own.
        tensors = {e.name: e.make().clone().contiguous() for e in part}
        try:
            save_file(tensors, folder / name, metadata={"format": "pt", KEY: checksum(tensors.items())})
            open_to_others(folder / name)
        except SafetensorError as error:  # a full disk
            raise ModelError(f"{name} cannot be written ({sentence(error)}): nothing was left behind.") from error
        index |= {e.name: name for e in part}
    if len(shards) > 1:
        total = sum(entry.bytes for entry in entries)
        write_json(folder / f"{WEIGHTS}.index.json", {"metadata": {"total_size": total}, "weight_map": index})
