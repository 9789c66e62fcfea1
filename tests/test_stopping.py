"""What ends a reply in a history spelled as text: the originals' ids, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from minichat.inference.sampling import ReplyText, Stops


class Tokenizer:
    """LLaMA's two ways with "###", in small: 9 begins a text, 7 goes on after other words."""

    words = {1: "a", 3: "b", 6: "\n", 7: "###", 8: "US", 9: " ###", 10: "ER"}

    def encode(self, text: str) -> list[int]:
        return {"###": [9], "\n###": [5, 6, 7]}[text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[i] for i in ids)


def read(stops: Stops, ids: list[int]) -> ReplyText:
    reply = ReplyText(Tokenizer(), stops)
    reply.read(ids)
    return reply


def test_only_the_originals_ids_end_a_reply() -> None:
    stops = Stops(("###",), ((2,),))
    assert stops.as_published(Tokenizer()).sequences == ((2,), (9,), (6, 7))
    ended = read(stops, [1, 7, 3, 9])
    assert (ended.finished, ended.text, ended.generated) == (True, "a", [1, 7])
    went_on = read(stops.as_published(Tokenizer()), [1, 7, 3, 9, 3])
    assert (went_on.finished, went_on.text, went_on.generated, went_on.ids()) == (True, "a", [1, 7, 3, 9], (1, 7, 3))
    line = read(stops.as_published(Tokenizer()), [1, 6, 7, 3])
    assert (line.finished, line.text, line.ids()) == (True, "a", (1,))


def test_a_stop_of_white_space_ends_a_reply_as_text() -> None:
    stops = Stops(("\n",), ((2,),))
    assert stops.as_published(Tokenizer()) == stops


@pytest.mark.parametrize("strings", [("###", "USER"), ("USER", "###")], ids=" then ".join)
@pytest.mark.parametrize(("ids", "text"), [([1, 7, 3], "a"), ([3, 8, 10, 1], "b")])
def test_each_of_several_texts_ends_a_reply_and_none_is_shown_in_part(
    strings: tuple[str, ...], ids: list[int], text: str
) -> None:
    reply = ReplyText(Tokenizer(), Stops(strings))
    shown = [reply.push(token) for token in ids[:2]]
    assert "".join(shown) == text  # "US" may be the beginning of a stop: it waits
    reply.read(ids[2:])
    assert (reply.finished, reply.text) == (True, text)
    assert Stops(strings).found_in("US ### USER") == 3
