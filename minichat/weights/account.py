"""Every tensor of the files that are read: where it goes, or that it is known to go nowhere; and the sizes it tells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from minichat.errors import ModelError, SettingsError, some
from minichat.model.vision import EVA, KINDS, SIGLIP2, UNNORMED, grid_side, vision_config
from minichat.weights.check_config import asked_by, decided_by
from minichat.weights.checkpoint_io import Checkpoint, read_checkpoint
from minichat.weights.key_map import BLIP2, EVA_VIT, LAVIS, LAVIS_PROJECTIONS, MINIGPT4, KeyMap


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

    def maker(self, name: str) -> Callable[[], Tensor]:
        """What makes this tensor now, one of a file or one that was replaced."""
        if name in self._made:
            return self._made[name]
        piece = self._whole[name]
        return lambda: piece.checkpoint[piece.name]

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
_WORDS, _PLACES = (f"bridge.embeddings.{name}_embeddings.weight" for name in ("word", "position"))
_POSITIONS = {
    EVA: "vision_model.embeddings.position_embedding",
    **{
        f"{name}_vision_model": "vision_model.embeddings.position_embedding.weight"
        for name in ("clip", "siglip", "siglip2")
    },
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "vision_model.embeddings.position_embeddings"),
}
_INTERPOLATED: dict[str, dict[str, Any]] = {
    "dinov2_with_registers": {"antialias": True},
    SIGLIP2: {"mode": "bilinear", "antialias": True},
}


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


def resize_positions(account: Account, side: int, kind: str = EVA) -> None:
    """Have `side` × `side` patches: position embeddings for another number are interpolated.

    `kind`: of the vision encoder, as its program does it.
    """
    name = _POSITIONS.get(kind)
    if name is None or name not in account:  # a DINOv3's positions are angles
        return
    first = KINDS[kind]
    if account.shape(name)[-2] != first + side * side:
        account.replace(name, partial(_resized, account.maker(name), side, first, _INTERPOLATED.get(kind, {})))


def _resized(make: Callable[[], Tensor], side: int, first: int, how: Mapping[str, Any]) -> Tensor:
    """Position embeddings (…, first + P, W) → (…, first + side², W).

    EVA's are made so in minigpt4/models/eva_vit.py (interpolate_pos_embed), the others' in transformers.
    """
    positions = make().float()
    head, grid = positions.split([first, positions.shape[-2] - first], dim=-2)
    old = math.isqrt(grid.shape[-2])
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, W, √P, √P)
    grid = interpolate(grid, size=(side, side), align_corners=False, **{"mode": "bicubic", **how})
    return torch.cat([head, grid.flatten(2).transpose(1, 2).reshape(*head.shape[:-2], side * side, -1)], dim=-2)


def heads(part: str, width: int, given: int | None, published: dict[int, int]) -> int:
    """How many attention heads a part of this width has. Raises `SettingsError` where nothing tells."""
    count = given or published.get(width)
    if count is None:
        known = ", ".join(map(str, published))
        raise SettingsError(f"A {part} part of width {width} is not a published one ({known}): give --{part}-heads.")
    if width % count:
        raise SettingsError(f"{part}_heads is {count}, which does not divide the width {width}.")
    return count


def open_trained(path: Path) -> tuple[Checkpoint, str, Checkpoint | None]:
    """What a training run of MiniGPT-4 or LAVIS saved; what it calls its projection ("llama_proj", "opt_proj" …); and
    its vision encoder, where LAVIS trained that, too."""
    checkpoint = read_checkpoint(path)
    name = next((name for name in LAVIS_PROJECTIONS if f"{name}.weight" in checkpoint), None)
    if name is None:
        return open_part(path, "MiniGPT-4 projection", "llama_proj.weight", "llama_proj.bias"), "llama_proj", None
    vision, rest = split_vision(open_part(path, "BLIP-2 of LAVIS", f"{name}.weight", f"{name}.bias"))
    return rest, name, vision if len(vision) else None


def add_bridge(account: Account, qformer: Checkpoint | None, trained: Checkpoint | None) -> None:
    """Take in the Q-Former's file, then what a training run saved, which comes later and replaces it."""
    if qformer is not None:
        account.add(qformer, BLIP2)
    if trained is not None:
        account.add(trained, MINIGPT4 if "llama_proj.weight" in trained else LAVIS)


def split_vision(checkpoint: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """The vision encoder that a file of LAVIS's holds where it was trained, too, by EVA's names; and the rest."""
    prefix = "visual_encoder."
    vision = {name.removeprefix(prefix): value for name, value in checkpoint.raw.items() if name.startswith(prefix)}
    rest = {name: value for name, value in checkpoint.raw.items() if not name.startswith(prefix)}
    return Checkpoint(checkpoint.file, vision, {}), Checkpoint(checkpoint.file, rest, checkpoint.extras)


def bridge_sizes(account: Account, vision: dict[str, Any], sizes: Sizes, kind: str | None = None) -> dict[str, Any]:
    """The bridge's configuration: a Q-Former where one was taken in, else patches joined; or the `kind` asked for.

    A projection that was taken in must fit; where there is none, it is to be trained, and four patches are joined, or
    as many as divide them. Raises `ModelError` and `SettingsError` for what does not belong together.
    """
    patches = vision["hidden_size"]
    trained = "projection.weight" in account
    normed = vision.get("model_type", EVA) not in UNNORMED
    if _QUERIES not in account:
        if trained and kind in ("qformer", "pool"):
            raise SettingsError(f"The bridge {kind!r} would be new, and a projection is of the one that it was for.")
        if not normed and "bridge.ln_vision.weight" not in account:  # the original leaves it as it was made
            account.replace("bridge.ln_vision.weight", lambda: torch.ones(patches))
            account.replace("bridge.ln_vision.bias", lambda: torch.zeros(patches))
        bridge = {"ln_vision": False} if normed else {}
        if kind == "qformer":
            return {**bridge, "kind": kind, "qformer": _new_qformer(patches)}
        if kind == "pool":
            return {**bridge, "kind": kind}
        count = grid_side(vision_config(vision)) ** 2
        merge = _merge(account, patches) if trained else next(n for n in range(MERGE, 0, -1) if count % n == 0)
        return {**bridge, "kind": "patch_merge", "merge": merge}
    _, _, width = _shape(account, _QUERIES, 3)
    if trained and projection_sizes(account)[1] != width:
        asked, taken = projection_sizes(account)
        raise ModelError(
            f"{asked} takes features of width {taken}, but {account.source(_QUERIES)} has the width {width}: they do "
            "not belong together."
        )
    made = qformer_sizes(account, patches, sizes)
    return {**made, "ln_vision": "bridge.ln_vision.weight" in account} if normed else made


def _new_qformer(patches: int) -> dict[str, Any]:
    """BLIP-2's, as wide as BERT-base, or as the patches where those are narrower; heads of 64."""
    width = min(768, patches)
    heads = next(count for count in range(max(1, width // 64), 0, -1) if width % count == 0)
    return {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}


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
    words = {}
    if _WORDS in account:
        words = {"vocab_size": _shape(account, _WORDS, 2)[0], "max_position_embeddings": _shape(account, _PLACES, 2)[0]}
    return {
        "kind": "qformer",
        "num_query_tokens": count,
        "instructed": bool(words),
        "qformer": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads("qformer", width, sizes.qformer_heads, QFORMER_HEADS),
            "intermediate_size": _shape(account, f"{layer}.0.intermediate_query.dense.weight", 2)[0],
            "cross_attention_frequency": reading[1] - reading[0] if len(reading) > 1 else layers,
            **words,
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
