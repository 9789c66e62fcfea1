"""Every tensor of the files that are read: where it goes, or that it is known to go nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from minichat.errors import ModelError, some
from minichat.weights.keys import KeyMap
from minichat.weights.reading import Checkpoint
from minichat.weights.values import asked_by, decided_by


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
