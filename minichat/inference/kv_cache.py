"""The KV cache: of one conversation, of many replies in a pool, and how one token is read on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import ModelOutput

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration

# --- The KV cache of one conversation, which is cropped to what the next prompt begins with.


@dataclass
class KVCache:
    """What the LLM has read of a conversation: its key–value cache and, entry for entry, what was read.

    A key is a token's id, or for an image token the identity of its picture. An encoder–decoder keeps nothing from one
    prompt to the next, whose words all see each other: of it, this is what is written of one reply.
    """

    keys: list[int | str] = field(default_factory=list)
    past: Cache | None = None
    encoded: ModelOutput | None = None  # an encoder–decoder's prompt, as its encoder read it

    def clear(self) -> None:
        self.keys, self.past, self.encoded = [], None, None

    def keep(self, wanted: Sequence[int | str]) -> int:
        """Crop to the longest beginning shared with `wanted` that leaves something to read. Returns its length.

        A picture is kept whole or not at all.
        """
        length = 0
        limit = min(len(self.keys), len(wanted) - 1)
        while length < limit and self.keys[length] == wanted[length]:
            length += 1
        while 0 < length < len(wanted) and isinstance(wanted[length], str) and wanted[length - 1] == wanted[length]:
            length -= 1
        if length == 0 or not self._crop(length):
            self.clear()
            return 0
        return length

    def _crop(self, length: int) -> bool:
        """Shorten the cache; False where it cannot be (a sliding window has moved on)."""
        if self.past is None:
            return False
        surplus = self.past.get_seq_length() - length
        try:
            if surplus > 0:
                # Negative = remove so many: the one meaning that crop has had throughout transformers 5.
                self.past.crop(-surplus)
        except (RuntimeError, ValueError):
            return False
        del self.keys[length:]
        return self.past.get_seq_length() == length

    def read(self, model: MiniChatForConditionalGeneration, embeds: Tensor, keys: Sequence[int | str]) -> Tensor:
        """Read embeddings (1, T, H), called `keys`; returns the logits (1, V) of what comes next, in float32."""
        if self.past is None:
            self.past = DynamicCache(config=model.config.text_config)
        try:
            with one_row(embeds):
                output = model(inputs_embeds=embeds, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        except BaseException:
            self.clear()  # some layers have read it and some have not
            raise
        self.keys.extend(keys)
        return output.logits[:, -1].float()

    def encode(self, model: MiniChatForConditionalGeneration, embeds: Tensor) -> Tensor:
        """Begin an encoder–decoder's reply to a prompt (1, T, H); returns the logits (1, V) of its first id."""
        self.clear()
        self.encoded = model.language_model.get_encoder()(inputs_embeds=embeds)
        start = torch.tensor([[decoder_start(model)]], device=embeds.device)
        return self.write(model, start)

    def write(self, model: MiniChatForConditionalGeneration, ids: Tensor) -> Tensor:
        """Go on with an encoder–decoder's reply by ids (1, 1); returns the logits (1, V) of what comes next."""
        output = model.language_model(
            encoder_outputs=self.encoded, decoder_input_ids=ids, past_key_values=self.past, use_cache=True
        )
        self.past = output.past_key_values
        return output.logits[:, -1].float()


def decoder_start(model: MiniChatForConditionalGeneration) -> int:
    """What an encoder–decoder's replies begin with, before any of their words."""
    llm = model.config.text_config
    start = getattr(llm, "decoder_start_token_id", None)
    return int(llm.bos_token_id if start is None else start)


# --- The keys and values of all running rows, in one preallocated pool that grows.
#
# Shapes: R rows of the pool, C its columns, B rows of one pass, T tokens of each of them, L the columns that a pass
# looks at, H the key–value heads, D a head's width.


#: Of each layer the keys and the values of one row's tokens from one to another, both (H, tokens, D).
States = list[tuple[Tensor, Tensor]]

_COLUMNS = 64  # the least that is allocated: a question and the first words of its reply


def poolable(config: PretrainedConfig) -> bool:
    """Whether each layer of this LLM keeps the keys and values of all tokens, so that a pool can hold them."""
    layers = DynamicCache(config=config).layers
    return not layers or all(type(layer) is DynamicLayer for layer in layers)


@dataclass
class _Pass:
    """Where the tokens of one pass go, and what it looks at."""

    rows: Tensor  # (B, 1), places in the pool
    columns: Tensor  # (B, T)
    length: int  # L
    first: int | None  # where the rows lie side by side, the first of them: then nothing is copied to be looked at


class _PoolLayer(CacheLayerMixin):
    """One layer's keys and values (R, H, C, D). A row's tokens are at the columns that are their positions."""

    def __init__(self, pool: KeyValuePool) -> None:
        super().__init__()
        self._pool = pool

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self._pool.rows, self._pool.columns
        # Zeros: what a mask hides is multiplied by 0, which makes of a stray NaN another one.
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take the keys and values (B, H, T, D) of a pass; returns those that it looks at (B, H, L, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self._pool.at
        found = []
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held[at.rows, :, at.columns] = new.transpose(1, 2)
            seen = held[:, :, : at.length]
            if at.first is None:
                found.append(seen.index_select(0, at.rows[:, 0]))
            else:
                found.append(seen[at.first : at.first + new.shape[0]])
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._pool.at.length, 0

    def get_seq_length(self) -> int:
        return self._pool.at.length - self._pool.at.columns.shape[1]

    def get_max_length(self) -> int:
        return -1

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values] if self.is_initialized else []

    def grow(self, rows: int, columns: int) -> None:
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
            new[: old.shape[0], :, : old.shape[2]] = old
            setattr(self, name, new)


class KeyValuePool(Cache):
    """A cache whose rows have lengths of their own, and may be passed one by one, some together, or all.

    It knows nothing of lengths: who uses it says where tokens go (`aim`), and hides by a mask what is beyond a row's
    end. There everything is zero.
    """

    at: _Pass
    layers: list[Any]

    def __init__(self, layers: int) -> None:
        self.rows = self.columns = 0
        super().__init__(layers=self._empty(layers))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors())

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for so many rows and columns, by doubling."""
        rows, columns = _doubled(max(self.rows, 1), rows), _doubled(max(self.columns, _COLUMNS), columns)
        if (rows, columns) == (self.rows, self.columns):
            return
        for layer in self.layers:
            layer.grow(rows, columns)
        self.rows, self.columns = rows, columns

    def release(self) -> None:
        """Give all memory back; every row is gone."""
        self.rows = self.columns = 0
        self.layers = self._empty(len(self.layers))

    def aim(self, rows: Sequence[int], columns: Tensor, length: int) -> None:
        """Say where the next pass's tokens go: to these rows, at columns (B, T); it looks at `length` columns."""
        first = rows[0] if list(rows) == list(range(rows[0], rows[0] + len(rows))) else None
        self.at = _Pass(torch.tensor(rows, device=columns.device)[:, None], columns, length, first)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row of `length` tokens over another, which is clear. The source is left as it is."""
        for tensor in self._tensors():
            tensor[target, :, :length] = tensor[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange two rows, of at most `length` tokens."""
        for tensor in self._tensors():
            kept = tensor[one, :, :length].clone()
            tensor[one, :, :length] = tensor[other, :, :length]
            tensor[other, :, :length] = kept

    def clear(self, row: int, length: int) -> None:
        """Forget a row of `length` tokens."""
        for tensor in self._tensors():
            tensor[row, :, :length] = 0

    def read(self, row: int, start: int, end: int) -> States:
        """A copy of what a row holds of its tokens from `start` to `end`."""
        return [
            (layer.keys[row, :, start:end].clone(), layer.values[row, :, start:end].clone()) for layer in self.layers
        ]

    def write(self, row: int, start: int, states: States) -> None:
        """Put what `read` has returned into a row, from column `start` on."""
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[row, :, start : start + keys.shape[1]] = keys
            layer.values[row, :, start : start + keys.shape[1]] = values

    def _empty(self, layers: int) -> list[Any]:
        return [_PoolLayer(self) for _ in range(layers)]

    def _tensors(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in layer.tensors()]


def _doubled(size: int, wanted: int) -> int:
    while size < wanted:
        size *= 2
    return size


# --- What was read before: a tree of the beginnings of prompts and conversations, with their keys and values.
#
# A prompt is named by a key for each token: its id, or for an image token the identity of its picture.


Key = int | str


def shared(one: Sequence[Key], other: Sequence[Key]) -> int:
    """How many keys two prompts begin with alike."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit  # comparing slices runs in C: halve instead of walking
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


_NOBODY = object()  # the owner of what goes as soon as nothing follows it


class _Node:
    """A stretch of keys after its parent's, and what was computed for it."""

    __slots__ = ("children", "keys", "owner", "parent", "states", "used")

    def __init__(self, keys: list[Key], states: States, parent: _Node | None, owner: object = None) -> None:
        self.keys, self.states, self.parent, self.owner = keys, states, parent, owner
        self.children: dict[Key, _Node] = {}
        self.used = 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for pair in self.states for tensor in pair)


class PrefixTree:
    """Beginnings and their keys and values, at most `limit` bytes of them: what was not used for longest goes first.

    What two prompts begin with alike is held once. Everything in it can be computed anew, so nothing is lost by its
    going.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._root = _Node([], [], None)
        self._clock = 0

    def clear(self) -> None:
        self._root = _Node([], [], None)
        self.nbytes = 0

    def longest(self, keys: Sequence[Key]) -> int:
        """How many of the first keys are known."""
        return sum(length for _, length in self._walk(list(keys)))

    def find(self, keys: Sequence[Key]) -> list[States]:
        """What is known of the first keys, piece by piece in their order. The tensors are the tree's own: read only."""
        self._clock += 1
        found = []
        for node, length in self._walk(list(keys)):
            node.used = self._clock
            found.append([(k[:, :length], v[:, :length]) for k, v in node.states])
        return found

    def insert(self, keys: Sequence[Key], read: Callable[[int, int], States], owner: object = None) -> None:
        """Keep these keys; `read(start, end)` returns a copy of what was computed for those that are not known yet.

        An owner, such as a conversation, holds one line of keys: what it put in before and has left goes.
        """
        self._clock += 1
        path = list(self._walk(list(keys)))
        known = sum(length for _, length in path)
        node = self._root
        for node, length in path:
            if length < len(node.keys) and known < len(keys):
                self._split(node, length)
            node.used = self._clock
        if owner is not None:
            self.disown(owner, [node for node, _ in path])
        if known == len(keys):
            return
        leaf = _Node(list(keys[known:]), read(known, len(keys)), node, owner)
        if leaf.nbytes > self.limit:
            return
        leaf.used = self._clock
        node.children[leaf.keys[0]] = leaf
        self.nbytes += leaf.nbytes
        self.evict(self.limit)

    def evict(self, limit: int) -> None:
        """Let go of what was not used for longest, until at most `limit` bytes are left."""
        while self.nbytes > limit:
            self._drop(min((node for node in self._nodes() if not node.children), key=lambda node: node.used))

    def disown(self, owner: object, but: Sequence[object] = ()) -> None:
        """Let go of what an owner put in, except the nodes `but`, as far as no one else's keys follow it."""
        for node in self._nodes():
            if node.owner is owner and node not in but:
                node.owner = _NOBODY
        while gone := [node for node in self._nodes() if node.owner is _NOBODY and not node.children]:
            for node in gone:
                self._drop(node)

    def _drop(self, leaf: _Node) -> None:
        if leaf.parent is not None:
            del leaf.parent.children[leaf.keys[0]]
        self.nbytes -= leaf.nbytes

    def _walk(self, keys: list[Key]) -> Iterator[tuple[_Node, int]]:
        """The nodes that hold the first keys, and how many of its keys each of them shares."""
        node, at = self._root, 0
        while at < len(keys) and (child := node.children.get(keys[at])) is not None:
            length = shared(child.keys, keys[at : at + len(child.keys)])
            yield child, length
            if length < len(child.keys):
                return
            node, at = child, at + length

    def _split(self, node: _Node, length: int) -> None:
        """Cut a node in two, the second a child of the first. Copies, so that either can go without the other."""
        rest = _Node(node.keys[length:], [(k[:, length:].clone(), v[:, length:].clone()) for k, v in node.states], node)
        rest.owner = node.owner
        first = [(k[:, :length].clone(), v[:, :length].clone()) for k, v in node.states]
        rest.used, rest.children = node.used, node.children
        for child in rest.children.values():
            child.parent = rest
        node.keys, node.states, node.children = node.keys[:length], first, {rest.keys[0]: rest}

    def _nodes(self) -> Iterator[_Node]:
        todo = list(self._root.children.values())
        while todo:
            node = todo.pop()
            todo += node.children.values()
            yield node


# --- One row times a bfloat16 matrix on a CPU, by PyTorch's own code in place of oneDNN's.
#
# To write a token is to read each of the LLM's matrices once, for one row. oneDNN, which PyTorch takes for bfloat16
# where there is AVX-512, needs about twice the time of PyTorch's own product then (`benchmarks/full_size.py`); for
# more rows than two it is far faster.


_ONEDNN: Any = torch.backends.mkldnn


class _Aside:
    """oneDNN put aside for as long as anyone wants it. The setting is the whole process's, so users are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = bool(_ONEDNN.enabled)
                _ONEDNN.enabled = False
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _ONEDNN.enabled = self._before


_aside = _Aside()


@contextmanager
def one_row(embeds: Tensor) -> Iterator[None]:
    """Around the reading of embeddings (B, T, H): puts oneDNN aside where there is one row, in bfloat16 on a CPU.

    What another thread multiplies meanwhile is right, but slower.
    """
    if embeds.device.type == "cpu" and embeds.dtype == torch.bfloat16 and embeds.shape[0] * embeds.shape[1] == 1:
        with _aside:
            yield
    else:
        yield


# --- Attention of one new token of each row, on a CPU, in 16 bits: as plain matrix products.
#
# PyTorch's scaled dot product attention is made for many queries. For one, with keys of its own for each head, it needs
# two to four times what two batched products do (`benchmarks/engine.py --dtype bfloat16`). Where heads share keys,
# transformers lets their queries be one matrix, and it is as fast.


_NAME = "minichat_one_query"


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Queries (B, H, 1, D), keys and values (B, H, L, D), a mask to be added (B, 1, 1, L) → (B, 1, H, D)."""
    other = any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    if query.shape[2] != 1 or query.shape[1] != key.shape[1] or other or scaling is None or attention_mask is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scores = torch.matmul(key, (query * scaling).transpose(2, 3)).transpose(2, 3)  # (B, H, 1, L)
    weights = (scores + attention_mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)


@contextmanager
def one_query(config: PretrainedConfig, embeds: Tensor) -> Iterator[None]:
    """Around an LLM's pass over embeddings (B, T, H), by one thread at a time: takes this way where it is the faster.

    `config` is the LLM's own, by which its layers choose how to attend.
    """
    heads = getattr(config, "num_attention_heads", 0)
    shared = heads != getattr(config, "num_key_value_heads", heads)
    if (
        embeds.shape[1] != 1
        or embeds.device.type != "cpu"
        or embeds.dtype == torch.float32
        or shared
        or config._attn_implementation != "sdpa"
    ):
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
