"""The names of published tensors, where each belongs, and an account of every one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minichat.errors import ModelError, SettingsError, some
from minichat.weights.check_config import asked_by, decided_by
from minichat.weights.checkpoint_io import Checkpoint, read_checkpoint

# --- The names of published tensors, and where each belongs in `MiniChatForConditionalGeneration`. Data.
#
# In a name, `#` is one number, the same on both sides. A target that ends in `[i]` is the i-th third of a tensor;
# thirds that no tensor fills are zeros. `unused` are globs of what a published file is known to hold besides.


@dataclass(frozen=True)
class KeyMap:
    """What the tensors of one kind of file are for."""

    used: Mapping[str, str]
    unused: tuple[str, ...] = ()
    #: Beginnings of names that stand for a part whose names are otherwise ours.
    parts: Mapping[str, str] = field(default_factory=dict)
    _patterns: list[tuple[re.Pattern[str], str]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        for theirs, ours in self.used.items():
            self._patterns.append((re.compile(re.escape(theirs).replace(r"\#", r"(\d+)")), ours))

    def target(self, name: str) -> str | None:
        """Our name of a published tensor; None for one that has no place in the network."""
        for pattern, ours in self._patterns:
            if found := pattern.fullmatch(name):
                return ours.replace("#", found[1]) if pattern.groups else ours
        part = next((part for part in self.parts if name.startswith(part)), None)
        return None if part is None or self.known_unused(name) else self.parts[part] + name.removeprefix(part)

    def known_unused(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.unused)


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """Modules with a weight and a bias."""
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for theirs, ours in names.items() for leaf in ("weight", "bias")}


# Buffers that transformers 4 saved and that follow from the configuration.
_BUFFERS = ("*.position_ids", "*.rotary_emb.inv_freq")

# EVA-CLIP's ViT-g as LAVIS and MiniGPT-4 load it (minigpt4/models/eva_vit.py). There the key has no bias.
_LAYER = "vision_model.encoder.layers.#"
EVA_VIT = KeyMap(
    used={
        "cls_token": "vision_model.embeddings.class_embedding",
        "pos_embed": "vision_model.embeddings.position_embedding",
        "blocks.#.attn.qkv.weight": f"{_LAYER}.self_attn.qkv.weight",
        "blocks.#.attn.q_bias": f"{_LAYER}.self_attn.qkv.bias[0]",
        "blocks.#.attn.v_bias": f"{_LAYER}.self_attn.qkv.bias[2]",
        **_modules(
            {
                "patch_embed.proj": "vision_model.embeddings.patch_embedding",
                "blocks.#.norm1": f"{_LAYER}.layer_norm1",
                "blocks.#.norm2": f"{_LAYER}.layer_norm2",
                "blocks.#.attn.proj": f"{_LAYER}.self_attn.projection",
                "blocks.#.mlp.fc1": f"{_LAYER}.mlp.fc1",
                "blocks.#.mlp.fc2": f"{_LAYER}.mlp.fc2",
            }
        ),
    },
    # The encoder's own end, which MiniGPT-4 and BLIP-2 leave out. So is the last block; see `published`.
    unused=("norm.*", "fc_norm.*", "head.*"),
)

_THEIRS, _OURS = "Qformer.bert.encoder.layer.#", "bridge.qformer.encoder.layer.#"
_BRIDGE = {
    "query_tokens": "bridge.query_tokens",
    **_modules(
        {
            "ln_vision": "bridge.ln_vision",
            "Qformer.bert.embeddings.LayerNorm": "bridge.qformer.layernorm",
            f"{_THEIRS}.attention.self.query": f"{_OURS}.attention.attention.query",
            f"{_THEIRS}.attention.self.key": f"{_OURS}.attention.attention.key",
            f"{_THEIRS}.attention.self.value": f"{_OURS}.attention.attention.value",
            f"{_THEIRS}.attention.output.dense": f"{_OURS}.attention.output.dense",
            f"{_THEIRS}.attention.output.LayerNorm": f"{_OURS}.attention.output.LayerNorm",
            f"{_THEIRS}.crossattention.self.query": f"{_OURS}.crossattention.attention.query",
            f"{_THEIRS}.crossattention.self.key": f"{_OURS}.crossattention.attention.key",
            f"{_THEIRS}.crossattention.self.value": f"{_OURS}.crossattention.attention.value",
            f"{_THEIRS}.crossattention.output.dense": f"{_OURS}.crossattention.output.dense",
            f"{_THEIRS}.crossattention.output.LayerNorm": f"{_OURS}.crossattention.output.LayerNorm",
            f"{_THEIRS}.intermediate_query.dense": f"{_OURS}.intermediate_query.dense",
            f"{_THEIRS}.output_query.dense": f"{_OURS}.output_query.dense",
            f"{_THEIRS}.output_query.LayerNorm": f"{_OURS}.output_query.LayerNorm",
        }
    ),
}

# BLIP-2 as LAVIS saved it, after stage 1 or 2 (lavis/models/blip2_models).
BLIP2 = KeyMap(
    used=_BRIDGE,
    unused=(
        *_BUFFERS,
        # Another LLM's projection.
        *(f"{llm}_proj.*" for llm in ("t5", "opt", "llm", "llama")),
        # Stage 1: the Q-Former's text branch, its word prediction, and the heads of its losses.
        "Qformer.bert.embeddings.word_embeddings.*",
        "Qformer.bert.embeddings.position_embeddings.*",
        "Qformer.bert.encoder.layer.*.intermediate.*",
        "Qformer.bert.encoder.layer.*[0-9].output.*",
        "Qformer.cls.*",
        *(f"{head}.*" for head in ("vision_proj", "text_proj", "itm_head")),
        "temp",
    ),
)

# A training run of MiniGPT-4 (minigpt4/runners/runner_base.py, _save_checkpoint): what trained, and buffers. What
# else of the bridge trained is in it too, and comes after the Q-Former's file.
MINIGPT4 = KeyMap(used={**_BRIDGE, **_modules({"llama_proj": "projection"})}, unused=_BUFFERS)

# A Hugging Face BLIP-2. Its vision encoder ends in what the originals call ln_vision.
HUGGING_FACE_BLIP2 = KeyMap(
    used={
        "query_tokens": "bridge.query_tokens",
        **_modules(
            {"vision_model.post_layernorm": "bridge.ln_vision", "qformer.layernorm": "bridge.qformer.layernorm"}
        ),
    },
    unused=(
        "language_model.*",
        "language_projection.*",
        # After stage 1 (Blip2ForImageTextRetrieval): the Q-Former's text branch, and the heads of its losses.
        "embeddings.*",
        "qformer.encoder.layer.*.intermediate.*",
        "qformer.encoder.layer.*[0-9].output.*",
        *(f"{head}.*" for head in ("vision_projection", "text_projection", "itm_head")),
        *_BUFFERS,
    ),
    parts={"vision_model.": "vision_model.", "qformer.": "bridge.qformer."},
)

# Its vision encoder alone, for patches that are joined: ln_vision is then an identity.
HUGGING_FACE_VIT = KeyMap(
    used={},
    unused=("vision_model.post_layernorm.*", "qformer.*", "query_tokens", *HUGGING_FACE_BLIP2.unused),
    parts={"vision_model.": "vision_model."},
)

# The vision encoder of a model of ours.
OUR_VIT = KeyMap(
    used={},
    unused=("bridge.*", "projection.*", "language_model.*"),
    parts={"vision_model.": "vision_model."},
)

# The whole vision side of one, where it has a Q-Former.
OUR_VISION_SIDE = KeyMap(
    used={},
    unused=("projection.*", "language_model.*"),
    parts={"vision_model.": "vision_model.", "bridge.": "bridge."},
)

# BLIP-2 after stage 1, with all that stage 2 leaves out (lavis/models/blip2_models/blip2_qformer.py).
BLIP2_STAGE1 = KeyMap(
    used={
        **_BRIDGE,
        "Qformer.bert.embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
        "Qformer.bert.embeddings.position_embeddings.weight": "embeddings.position_embeddings.weight",
        "Qformer.cls.predictions.bias": "cls.predictions.bias",
        "temp": "temp",
        **_modules(
            {
                f"{_THEIRS}.intermediate.dense": f"{_OURS}.intermediate.dense",
                f"{_THEIRS}.output.dense": f"{_OURS}.output.dense",
                f"{_THEIRS}.output.LayerNorm": f"{_OURS}.output.LayerNorm",
                "Qformer.cls.predictions.transform.dense": "cls.predictions.transform.dense",
                "Qformer.cls.predictions.transform.LayerNorm": "cls.predictions.transform.LayerNorm",
                "Qformer.cls.predictions.decoder": "cls.predictions.decoder",
                "vision_proj": "vision_projection",
                "text_proj": "text_projection",
                "itm_head": "itm_head",
            }
        ),
    },
    unused=_BUFFERS,
)

# A Hugging Face Blip2ForImageTextRetrieval, and what it has no place for, which we write beside it.
HUGGING_FACE_RETRIEVAL = KeyMap(
    used=HUGGING_FACE_BLIP2.used,
    unused=_BUFFERS,
    parts={
        **HUGGING_FACE_BLIP2.parts,
        **{f"{part}.": f"{part}." for part in ("embeddings", "vision_projection", "text_projection", "itm_head")},
    },
)
STAGE1_BESIDE = KeyMap(used={"temp": "temp"}, parts={"cls.": "cls."})

# BERT, from which a Q-Former's words and their self-attention start; queries start with the words' feed-forward parts.
_BERT_LAYER = "bert.encoder.layer.#"
BERT = KeyMap(
    used={
        "bert.embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight": "embeddings.position_embeddings.weight",
        "cls.predictions.bias": "cls.predictions.bias",
        **_modules(
            {
                "bert.embeddings.LayerNorm": "bridge.qformer.layernorm",
                f"{_BERT_LAYER}.attention.self.query": f"{_OURS}.attention.attention.query",
                f"{_BERT_LAYER}.attention.self.key": f"{_OURS}.attention.attention.key",
                f"{_BERT_LAYER}.attention.self.value": f"{_OURS}.attention.attention.value",
                f"{_BERT_LAYER}.attention.output.dense": f"{_OURS}.attention.output.dense",
                f"{_BERT_LAYER}.attention.output.LayerNorm": f"{_OURS}.attention.output.LayerNorm",
                f"{_BERT_LAYER}.intermediate.dense": f"{_OURS}.intermediate.dense",
                f"{_BERT_LAYER}.output.dense": f"{_OURS}.output.dense",
                f"{_BERT_LAYER}.output.LayerNorm": f"{_OURS}.output.LayerNorm",
                "cls.predictions.transform.dense": "cls.predictions.transform.dense",
                "cls.predictions.transform.LayerNorm": "cls.predictions.transform.LayerNorm",
                "cls.predictions.decoder": "cls.predictions.decoder",
            }
        ),
    },
    # What the Q-Former has none of: kinds of sentences, and BERT's second objective.
    unused=("bert.embeddings.token_type_embeddings.*", "bert.pooler.*", "cls.seq_relationship.*", *_BUFFERS),
)

#: An LLM's own file.
LLM_UNUSED = ("*.rotary_emb.inv_freq",)


# --- Every tensor of the files that are read: where it goes, or that it is known to go nowhere.


@dataclass(frozen=True)
class Piece:
    """A published tensor: the file that holds it, and its name there."""

    checkpoint: Checkpoint
    name: str

    @property
    def plain(self) -> Tensor:
        return self.checkpoint.plain(self.name)

    def __str__(self) -> str:
        return f"{self.name} in {self.checkpoint.file}"


class Account:
    """Our tensors by name, each from one published tensor or from its thirds.

    `allowed`: globs of tensors that may be left over although nothing is known of them.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self.allowed = tuple(allowed)
        self.left_over: dict[str, list[str]] = {}  # file → what the globs allowed
        self.unused: dict[str, list[str]] = {}  # file → what is known to be unused
        self._whole: dict[str, Piece] = {}
        self._thirds: dict[str, dict[int, Piece]] = {}
        self._made: dict[str, Callable[[], Tensor]] = {}

    def add(self, checkpoint: Checkpoint, keys: KeyMap, beyond: Callable[[str], bool] = lambda name: False) -> None:
        """Take a file's tensors in; a later file's replace an earlier one's. `beyond`: what is deeper than the network.

        Raises `ModelError`, naming them, for tensors that nothing is known of.
        """
        unknown = []
        for name in checkpoint:
            ours = keys.target(name)
            if ours is not None and not beyond(name):
                self._place(ours, Piece(checkpoint, name))
            elif ours is not None or keys.known_unused(name):
                self.unused.setdefault(checkpoint.file, []).append(name)
            elif any(fnmatchcase(name, glob) for glob in self.allowed):
                self.left_over.setdefault(checkpoint.file, []).append(name)
            else:
                unknown.append(name)
        if unknown:
            raise ModelError(
                f"{checkpoint.file} holds {some(unknown)}, which this network has no place for: give another file, or "
                f"leave tensors out on purpose with --allow-unused."
            )

    def _place(self, ours: str, piece: Piece) -> None:
        if ours.endswith("]"):
            name, _, third = ours[:-1].rpartition("[")
            self._thirds.setdefault(name, {})[int(third)] = piece
        else:
            self._whole[ours] = piece

    def replace(self, name: str, make: Callable[[], Tensor]) -> None:
        """Make this tensor of ours in another way."""
        self._whole.pop(name, None)
        self._made[name] = make

    def __contains__(self, name: str) -> bool:
        return name in self._whole or name in self._thirds or name in self._made

    def piece(self, name: str) -> Piece:
        """The one published tensor that ours comes from. Raises `KeyError` where there is none."""
        return self._whole[name]

    def names(self) -> set[str]:
        return {*self._whole, *self._thirds, *self._made}

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._thirds:
            shapes = {tuple(piece.plain.shape) for piece in self._thirds[name].values()}
            if len(shapes) != 1 or len(width := shapes.pop()) != 1:
                raise ModelError(f"{self.source(name)} do not have one width: the file is damaged.")
            return (3 * width[0],)
        return tuple(self._made[name]().shape if name in self._made else self._whole[name].plain.shape)

    def source(self, name: str) -> str:
        """Where a tensor of ours comes from, for an error."""
        if name in self._thirds:
            return " and ".join(map(str, self._thirds[name].values()))
        return str(self._whole[name]) if name in self._whole else name

    def bytes(self, name: str) -> int:
        whole = self._whole[name].plain if name in self._whole else None
        return whole.nbytes if whole is not None else 4 * torch.Size(self.shape(name)).numel()

    def tensor(self, name: str) -> Tensor:
        """The tensor itself. Raises `ModelError` for one that is not finite."""
        if name in self._made:
            return self._made[name]()
        if name in self._whole:
            piece = self._whole[name]
            return piece.checkpoint[piece.name]
        given = {third: piece.checkpoint[piece.name] for third, piece in self._thirds[name].items()}
        zeros = torch.zeros_like(next(iter(given.values())))
        return torch.cat([given.get(third, zeros) for third in range(3)])

    def check(self, wanted: dict[str, tuple[int, ...]], stored: Mapping[str, Any] | None = None) -> None:
        """Raise `ModelError` unless the account holds exactly these tensors, in these shapes.

        `stored`: the `config.json` that the shapes follow from, if there is one: its keys are named.
        """
        files = ", ".join(dict.fromkeys(piece.checkpoint.file for piece in self._whole.values()))
        if missing := wanted.keys() - self.names():
            raise ModelError(f"Nothing in {files} gives {some(missing)}: a file is missing, or is not a whole one.")
        for name in sorted(self.names()):
            if name not in wanted:
                raise ModelError(
                    f"The tensor {self.source(name)} has no place beside the others{decided_by([name])}: give another "
                    "file."
                )
            if self.shape(name) != wanted[name]:
                by = "" if stored is None else f" by {asked_by(stored, name, self.shape(name), wanted[name])}"
                raise ModelError(
                    f"The tensor {self.source(name)} has the shape {self.shape(name)}, but beside the others it must "
                    f"have {wanted[name]}{by}: the files do not belong together."
                )


# --- The originals' files → an account of our tensors, and the sizes that their shapes tell.


#: What shapes do not tell, by the width of the published part: attention heads, and how many blocks are used.
VISION_HEADS = {1408: 16}
VISION_LAYERS = {1408: 39}
QFORMER_HEADS = {768: 12}
MERGE = 4  # patches that are joined where there is no Q-Former

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_QUERIES = "bridge.query_tokens"
_POSITIONS = "vision_model.embeddings.position_embedding"


@dataclass(frozen=True)
class Sizes:
    """What shapes do not tell, where it is not as published."""

    vision_heads: int | None = None
    vision_layers: int | None = None
    qformer_heads: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("vision_heads", "vision_layers", "qformer_heads", "image_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingsError(f"{name} is {value!r}; it must be a whole number of at least 1.")


def open_part(path: Path, what: str, *names: str) -> Checkpoint:
    """A file that must hold tensors of these names. Raises `ModelError`, saying what it was taken for."""
    checkpoint = read_checkpoint(path)
    for name in names:
        if name not in checkpoint:
            raise ModelError(f"{checkpoint.file} is no {what}: it has no tensor {name}.")
    return checkpoint


def add_vision(account: Account, checkpoint: Checkpoint, sizes: Sizes) -> dict[str, Any]:
    """Take in an EVA ViT; returns the vision encoder's configuration.

    The originals use one block less than the published file holds: all but the last, unless the width is a published
    one or `vision_layers` says how many.
    """
    width = checkpoint.plain("cls_token").shape[-1]
    blocks = {int(found[1]) for name in checkpoint if (found := _BLOCK.match(name))}
    held = len(blocks)
    layers = sizes.vision_layers or VISION_LAYERS.get(width, held - 1)
    if blocks != set(range(held)) or not 1 <= layers <= held:
        raise ModelError(f"{checkpoint.file} holds {held} blocks, and {layers} are needed: it is not a whole encoder.")
    account.add(checkpoint, EVA_VIT, lambda name: (found := _BLOCK.match(name)) is not None and int(found[1]) >= layers)
    patch = checkpoint.plain("patch_embed.proj.weight").shape[-1]
    side = math.isqrt(max(0, checkpoint.plain("pos_embed").shape[1] - 1))
    size = sizes.image_size or side * patch
    if size % patch:
        raise SettingsError(f"image_size is {size}; it must be a multiple of the patch size {patch}.")
    resize_positions(account, size // patch)
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads("vision", width, sizes.vision_heads, VISION_HEADS),
        "intermediate_size": checkpoint.plain("blocks.0.mlp.fc1.weight").shape[0],
        "image_size": size,
        "patch_size": patch,
    }


def resize_positions(account: Account, side: int) -> None:
    """Have `side` × `side` patches: position embeddings for another number are interpolated."""
    piece = account.piece(_POSITIONS)
    if piece.plain.shape[1] != 1 + side * side:
        account.replace(_POSITIONS, lambda: _resized(piece.checkpoint[piece.name], side))


def _resized(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + P, W) → (1, 1 + side², W) (minigpt4/models/eva_vit.py, interpolate_pos_embed)."""
    head, grid = positions.float().split([1, positions.shape[1] - 1], dim=1)
    old = math.isqrt(grid.shape[1])
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, W, √P, √P)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([head, grid.flatten(2).transpose(1, 2)], dim=1)


def heads(part: str, width: int, given: int | None, published: dict[int, int]) -> int:
    """How many attention heads a part of this width has. Raises `SettingsError` where nothing tells."""
    count = given or published.get(width)
    if count is None:
        known = ", ".join(map(str, published))
        raise SettingsError(f"A {part} part of width {width} is not a published one ({known}): give --{part}-heads.")
    if width % count:
        raise SettingsError(f"{part}_heads is {count}, which does not divide the width {width}.")
    return count


def add_bridge(account: Account, qformer: Checkpoint | None, projection: Checkpoint | None) -> None:
    """Take in the Q-Former's file, then what a training run saved, which comes later and replaces it."""
    if qformer is not None:
        account.add(qformer, BLIP2)
    if projection is not None:
        account.add(projection, MINIGPT4)


def bridge_sizes(account: Account, vision: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The bridge's configuration: a Q-Former where one was taken in, else patches joined.

    A projection that was taken in must fit; where there is none, it is to be trained, and four patches are joined.
    """
    patches = vision["hidden_size"]
    trained = "projection.weight" in account
    if _QUERIES not in account:
        merge = _merge(account, patches) if trained else MERGE
        if "bridge.ln_vision.weight" not in account:  # the original leaves it as it was made
            account.replace("bridge.ln_vision.weight", lambda: torch.ones(patches))
            account.replace("bridge.ln_vision.bias", lambda: torch.zeros(patches))
        return {"kind": "patch_merge", "merge": merge}
    _, _, width = _shape(account, _QUERIES, 3)
    if trained and projection_sizes(account)[1] != width:
        asked, taken = projection_sizes(account)
        raise ModelError(
            f"{asked} takes features of width {taken}, but {account.source(_QUERIES)} has the width {width}: they do "
            "not belong together."
        )
    return qformer_sizes(account, patches, sizes)


def _merge(account: Account, patches: int) -> int:
    """How many patches the projection takes as one."""
    asked, taken = projection_sizes(account)
    merge, rest = divmod(taken, patches)
    if rest or not merge:
        raise ModelError(
            f"{asked} takes features of width {taken}, but patches have the width {patches}: give --qformer, or "
            "another vision encoder."
        )
    return merge


def qformer_sizes(account: Account, patches: int, sizes: Sizes) -> dict[str, Any]:
    """The configuration of the Q-Former that was taken in; it must read patches of the width `patches`."""
    _, count, width = _shape(account, _QUERIES, 3)
    layer = "bridge.qformer.encoder.layer"
    reading = [number for number in range(512) if f"{layer}.{number}.crossattention.attention.key.weight" in account]
    if not reading or f"{layer}.0.intermediate_query.dense.weight" not in account:
        raise ModelError(f"The Q-Former of {account.source(_QUERIES)} has no layers: it is not a whole one.")
    reader = f"{layer}.{reading[0]}.crossattention.attention.key.weight"
    if (read := _shape(account, reader, 2)[1]) != patches:
        raise ModelError(
            f"{account.source(reader)} reads patches of width {read}, but the vision encoder's have the width "
            f"{patches} (hidden_size): they do not belong together."
        )
    layers = sum(f"{layer}.{number}.output_query.dense.weight" in account for number in range(512))
    return {
        "kind": "qformer",
        "num_query_tokens": count,
        "qformer": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads("qformer", width, sizes.qformer_heads, QFORMER_HEADS),
            "intermediate_size": _shape(account, f"{layer}.0.intermediate_query.dense.weight", 2)[0],
            "cross_attention_frequency": reading[1] - reading[0] if len(reading) > 1 else layers,
        },
    }


def projection_sizes(account: Account) -> tuple[str, int]:
    """How to speak of the projection, and the width that it takes."""
    return account.source("projection.weight"), _shape(account, "projection.weight", 2)[1]


def _shape(account: Account, name: str, dimensions: int) -> tuple[int, ...]:
    shape = account.shape(name)
    if len(shape) != dimensions:
        raise ModelError(f"The tensor {account.source(name)} has the shape {shape}: it is not what its name says.")
    return shape
