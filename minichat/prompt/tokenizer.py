"""Content to ids: a person's words never become a control id, whatever they spell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from minichat.errors import ModelError, PromptError


class ContentTokenizer(Protocol):
    """What the renderer needs of a tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """None: there is no such token, and no template may spell it."""
        ...

    eos_id: int
    pad_id: int
    vocab_size: int

    def control_id(self, token: str) -> int:
        """The id of a control token, by its own name. Raises PromptError where there is none of this name."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text` standing by itself; never a control id."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control ids, image slots and ids outside of the vocabulary are skipped."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece `tokenizer.model`, as LLaMA's slow tokenizer used it: each text with its own leading space.

    `model` is the file's path or its bytes. Raises ModelError where it cannot be read or has no begin or end symbol.
    """

    def __init__(self, model: str | Path | bytes) -> None:
        name = "The tokenizer model" if isinstance(model, bytes) else f"The tokenizer model “{Path(model).name}”"
        try:
            data = model if isinstance(model, bytes) else Path(model).read_bytes()
        except OSError as error:
            raise ModelError(f"{name} cannot be read ({error.strerror}): check the path.") from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError:
            raise ModelError(f"{name} is not a SentencePiece model: put the LLM's own tokenizer.model there.") from None
        #: The file's bytes, so that a saved processor keeps them.
        self.serialized = data
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ModelError(f"{name} has no begin or no end symbol: train it with both.")
        # A padded position is masked, so any id of the vocabulary serves where the model names none.
        self.pad_id: int = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos_id
        # As with skip_special_tokens: the unknown symbol is no text either.
        self._silent = {i for i in range(self.vocab_size) if self._model.is_control(i) or self._model.is_unknown(i)}

    def control_id(self, token: str) -> int:
        number = self._model.piece_to_id(token)
        if not self._model.is_control(number) or self._model.id_to_piece(number) != token:
            raise PromptError(f"The tokenizer has no control token {token!r}, which the template spells.")
        return int(number)

    def encode(self, text: str) -> list[int]:
        # SentencePiece reads no control symbol from text: "<s>" gives the pieces of its letters.
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([i for i in ids if 0 <= i < self.vocab_size and i not in self._silent])

    def pieces(self) -> list[tuple[str, float]]:
        """Every piece of the vocabulary with its score, in the order of their ids."""
        return [(self._model.id_to_piece(i), self._model.get_score(i)) for i in range(self.vocab_size)]

    def __reduce__(self) -> tuple[Any, ...]:
        return (SentencePieceTokenizer, (self.serialized,))

    def __deepcopy__(self, memo: dict[int, Any]) -> SentencePieceTokenizer:
        return self  # it never changes


# Texts that keep to themselves in most vocabularies: a line break is a byte of its own in LLaMA's.
_ANCHORS = ("\n", ".")


def encode_inside(tokenizer: ContentTokenizer, text: str) -> list[int]:
    """The ids of `text` as they are in the middle of a line: without a leading space of their own.

    LLaMA's "###" by itself is one id (835, with a leading space), after other text two (2277, 29937). Tokenisers have
    no call for the second, so the text is encoded behind an anchor whose own ids are then dropped; where none of the
    anchors stays apart from the text, the text is encoded by itself.
    """
    for anchor in _ANCHORS:
        head = tokenizer.encode(anchor)
        ids = tokenizer.encode(anchor + text)
        if head and ids[: len(head)] == head:
            return ids[len(head) :]
    return tokenizer.encode(text)
