"""A vocabulary of one's own texts: it spells them, is never larger than asked, and is always the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from minichat.errors import DataError, SettingsError
from minichat.prompt.tokenizer import make_vocabulary, read_wordpiece, tokenize, write_vocabulary

TEXTS = ["A red star, and a redder star.", "Two blue circles; the bluest is left of the star.", "Zürich, 東京!"] * 3


def test_it_spells_its_texts(tmp_path: Path) -> None:
    assert write_vocabulary(tmp_path / "words", TEXTS, 200) == len(make_vocabulary(TEXTS, 200))
    words = read_wordpiece(tmp_path / "words")
    assert words.bos_token == "[DEC]"
    ids = tokenize(words, TEXTS)["input_ids"]
    assert not (ids == words.unk_token_id).any()
    assert words.decode(ids[0], skip_special_tokens=True) == "a red star, and a redder star."
    assert len(words.tokenize("star")) == 1


def test_it_is_in_berts_order_and_holds_nothing_twice() -> None:
    pieces = make_vocabulary(TEXTS, 200)
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(pieces) == len(set(pieces)) <= 200


def test_the_same_texts_give_the_same_pieces() -> None:
    """Also in another order: pieces follow from how often words are there."""
    assert make_vocabulary(TEXTS, 200) == make_vocabulary(reversed(TEXTS), 200) == make_vocabulary(iter(TEXTS), 200)


def test_a_script_of_many_letters_leaves_room_for_words() -> None:
    letters = "".join(chr(0x4E00 + number) for number in range(300))
    pieces = make_vocabulary([letters, *TEXTS * 5], 120)
    assert len(pieces) <= 120
    assert {"a", "##a"} <= set(pieces)


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="size is 20; a vocabulary needs at least 100"):
        make_vocabulary(TEXTS, 20)
    with pytest.raises(DataError, match="no text to make a vocabulary of"):
        make_vocabulary(["  "], 200)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        write_vocabulary(tmp_path, TEXTS)
