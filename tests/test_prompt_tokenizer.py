"""Content tokenizers make no control ids, and a `tokenizer.model` gives the original program's ids."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from prompt_samples import hostile_text, tokenizer, tokenizer_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minichat.errors import ModelError, PromptError
from minichat.prompt.tokenizer import FastTokenizer, SentencePieceTokenizer, encode_inside, to_hugging_face
from tests.conftest import reference_folders

TYPED = "</s> <s> <unk> <0x0A> </s><s>"


@given(text=hostile_text)
@settings(max_examples=100, deadline=None)
def test_content_makes_no_control_id_and_comes_back(text: str) -> None:
    fast = FastTokenizer(to_hugging_face(tokenizer()))
    for content in (tokenizer(), fast):
        ids = content.encode(text)
        assert not {0, tokenizer().bos_id, tokenizer().eos_id} & set(ids)
        # Hugging Face's takes a first space for its own leading one; SentencePiece keeps both.
        strip = str if content is tokenizer() else str.lstrip
        assert strip(content.decode(ids)) == strip(text)


def test_a_typed_byte_token_is_letters() -> None:
    assert tokenizer().decode([13]) == "\n"
    assert tokenizer().encode("<0x0A>") != tokenizer().encode("\n")
    assert tokenizer().decode(tokenizer().encode(TYPED)) == TYPED


def test_decoding_skips_what_is_no_text() -> None:
    ids = tokenizer().encode("A red circle")
    assert tokenizer().decode([1, *ids, 0, 2, -5, 100_000]) == "A red circle"
    assert FastTokenizer(to_hugging_face(tokenizer())).decode([1, *ids, 2, -5, 100_000]) == "A red circle"


def test_encoding_inside_a_line_has_no_space_of_its_own() -> None:
    own, inside = tokenizer().encode("###"), encode_inside(tokenizer(), "###")
    assert own != inside
    assert tokenizer().encode("is it?###") == tokenizer().encode("is it?") + inside
    assert encode_inside(tokenizer(), "") == []


def test_encoding_inside_falls_back_where_no_anchor_stays_apart() -> None:
    class Joined:
        bos_id, eos_id, pad_id, vocab_size = 1, 2, 3, 10

        def encode(self, text: str) -> list[int]:
            return [len(text)]

        def decode(self, ids: object) -> str:
            return ""

    assert encode_inside(Joined(), "abc") == [3]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_hugging_face_tokenizer_means_the_same(kind: str) -> None:
    content = SentencePieceTokenizer(tokenizer_model(kind))
    theirs = to_hugging_face(content)
    assert theirs.convert_tokens_to_ids([piece for piece, _ in content.pieces()]) == list(range(content.vocab_size))
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 2, content.vocab_size)
    for text in ("There are two small stars, left of it.", "ünïcödé 你好  two  spaces\nand a line"):
        ids = content.encode(text)
        assert theirs.decode(ids) == text
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids


def test_a_copy_is_not_a_second_model() -> None:
    assert copy.deepcopy(tokenizer()) is tokenizer()


def test_a_tokenizer_whose_added_words_match_in_plain_text_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    content = FastTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>", eos_token="</s>")
    )
    assert content.encode("a a") == [3, 3]
    with pytest.raises(PromptError, match="control id 2"):
        content.encode("a </s>")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        SentencePieceTokenizer(b"<html>")
    with pytest.raises(ModelError) as error:
        SentencePieceTokenizer(tmp_path / "missing.model")
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(ModelError, match="bos_token"):
        FastTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))


def test_llamas_own_encodings() -> None:
    """Encodings of prompt pieces by the original slow tokenizer; control ids in them are spelled by templates alone."""
    folders = [folder / "llama-tokenizer" for folder in reference_folders()]
    model = next((folder / "tokenizer.model" for folder in folders if (folder / "tokenizer.model").is_file()), None)
    if model is None:
        pytest.skip("LLaMA's tokenizer is not among the reference cases")
    llama = SentencePieceTokenizer(model)
    cases = [case for folder in folders for file in folder.glob("*.json") for case in json.loads(file.read_text())]
    plain = [case for case in cases if not {llama.bos_id, llama.eos_id} & set(case["ids"])]
    assert len(plain) > 8
    for case in plain:
        assert llama.encode(case["text"]) == case["ids"]
    assert encode_inside(llama, "###") == [2277, 29937]
    assert (llama.encode("###"), llama.decode([835])) == ([835], "###")
