"""GGUF files: the LLM that comes out is the one that went in; what would be lost on the way is refused by name."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from minichat.errors import ModelError
from minichat.prompt.tokenizer import SentencePieceTokenizer, to_hugging_face
from minichat.weights import gguf_llm
from minichat.weights.gguf import GgufFile
from minichat.weights.gguf_llm import unpack
from minichat.weights.known_models import unpacked
from minichat.weights.llm import find_llm, referred_llm
from tests.gguf_files import CHATML, CONTROLS, F16, F32, Q4_1, Q8_0, TOKENS, tiny_llm, write_gguf
from tests.tiny import tokenizer_model

IDS = torch.tensor([[1, 50, 60, 70, 99, 2, 30, 45]])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINICHAT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_llm())


@pytest.mark.parametrize(("kind", "tied"), [(F32, False), (F16, True), (Q8_0, False), (Q4_1, True)])
def test_the_same_llm_comes_out(tmp_path: Path, kind: GGMLQuantizationType, tied: bool) -> None:
    """Bit for bit what the file holds, and what plain transformers reads from it."""
    before = tiny_llm(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "tiny.gguf", before, kind)
    out = unpack(path, tmp_path / "out")
    after = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    for name, tensor in before.state_dict().items():
        held = tensor.numpy()
        if held.ndim == 2 and kind != F32:
            held = dequantize(quantize(held, kind), kind).reshape(held.shape)
        if held.ndim == 2 and kind in (Q8_0, Q4_1) and ("q_proj" in name or "k_proj" in name):
            continue  # rows were quantized in another order, with the same values: compared below
        assert np.array_equal(after.state_dict()[name].numpy(), held), name
    if kind in (F32, F16):
        torch.testing.assert_close(after(IDS).logits, before(IDS).logits, atol=1e-4 if kind == F32 else 1e-1, rtol=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    assert all(torch.equal(t, after.state_dict()[n]) for n, t in theirs.state_dict().items())
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 32}),  # heads that are wider than their share of the width
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
    ],
)
def test_other_architectures_come_out_the_same(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    before = tiny_llm(model_type, **changes)
    out = unpack(write_gguf(tmp_path / "tiny.gguf", before), tmp_path / "out")
    after = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(t, after.state_dict()[n]) for n, t in before.state_dict().items())
    assert torch.equal(before(IDS).logits, after(IDS).logits)


def test_a_large_llm_takes_half_the_room(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "large.gguf", tiny_llm(), Q8_0)
    exact = AutoModelForCausalLM.from_pretrained(unpack(path, tmp_path / "exact"), dtype=torch.float32).state_dict()
    monkeypatch.setattr(gguf_llm, "_EXACT", 1000)
    out = unpack(path, tmp_path / "out")
    assert (out / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "exact/model.safetensors").stat().st_size
    half = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert all(torch.equal(half[n], t.half().float() if t.dim() == 2 else t) for n, t in exact.items())


def test_the_tokenizer_comes_out_whole(tmp_path: Path, file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(unpack(file, tmp_path / "out"))
    assert len(tokenizer) == len(TOKENS)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.chat_template == CHATML

    def spelled(text: str, **settings: Any) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False, **settings)["input_ids"])

    assert spelled("<|im_start|>hello") == ["<|im_start|>", "hello"]
    assert "<file>" not in spelled("<file>", split_special_tokens=True)
    # "smollm" cuts digits from all else, also from the blanks before them; GPT-2's way would give Ġ Ġ 12.
    assert spelled(" hello  12") == ["Ġhello", "ĠĠ", "1", "2"]
    for text in ("héllo wörld", " two  blanks ", "a\n\nb\t", "数字 3.14"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_sentencepiece_tokenizer_comes_out_whole(tmp_path: Path) -> None:
    """Pieces and scores, as LLaMA's files hold them; merges follow from the scores."""
    pieces = SentencePieceTokenizer(tokenizer_model()).pieces()
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece for piece, _ in pieces],
        "tokenizer.ggml.scores": [float(score) for _, score in pieces],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6 if p.startswith("<0x") else 1 for p, _ in pieces[3:]],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.add_space_prefix": None,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
        "llama.vocab_size": len(pieces),
    }
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llm(vocab_size=len(pieces)), keys=keys)
    ours = AutoTokenizer.from_pretrained(unpack(path, tmp_path / "out"))
    theirs = to_hugging_face(SentencePieceTokenizer(tokenizer_model()))
    for text in ("What is this?", "two  blanks", "héllo\n", "</s> is text"):
        assert (
            ours(text, split_special_tokens=True)["input_ids"] == theirs(text, split_special_tokens=True)["input_ids"]
        )


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [("gpt-2", ["Ġ", "Ġ", "12"]), ("qwen2", ["Ġ", "Ġ", "1", "2"]), ("smollm", ["ĠĠ", "1", "2"])],
)
def test_a_text_is_cut_as_the_llm_learnt_it(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llm(), keys={"tokenizer.ggml.pre": pre})
    tokenizer = AutoTokenizer.from_pretrained(unpack(path, tmp_path / "out"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("  12")["input_ids"]) == pieces


@pytest.mark.parametrize(("pre", "count"), [("llama-bpe", 1), ("qwen2", 3)])
def test_a_word_that_is_a_token_is_one_where_the_llm_learnt_it_so(tmp_path: Path, pre: str, count: int) -> None:
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": [*TOKENS, "xyz"]}
    keys["tokenizer.ggml.token_type"] = [3] * len(CONTROLS) + [1] * (len(TOKENS) + 1 - len(CONTROLS))
    tokenizer = AutoTokenizer.from_pretrained(
        unpack(write_gguf(tmp_path / "tiny.gguf", tiny_llm(), keys=keys), tmp_path / "out")
    )
    assert len(tokenizer("xyz")["input_ids"]) == count


def test_every_id_that_ends_a_reply_is_kept(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 2}
    out = unpack(write_gguf(tmp_path / "tiny.gguf", tiny_llm(), keys=keys), tmp_path / "out")
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 3]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"llama.rope.scaling.type": "linear"}, "rope.scaling.type = 'linear'"),
        ({"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8"),
        ({"llama.attention.value_length": 32}, "attention.value_length = 32"),
        ({"llama.attention.sliding_window": 128}, "llama.attention.sliding_window"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.block_count": None}, "llama.block_count = None"),
        ({"llama.attention.head_count": [4, 4]}, "llama.attention.head_count"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count = 0"),
        ({"llama.attention.key_length": "64"}, "llama.attention.key_length = '64'"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "layer_norm_rms_epsilon = 0.0"),
        ({"llama.attention.head_count_kv": 3}, "blk.0.attn_q.weight|attn_k.weight"),
        ({"llama.block_count": 3}, "blk.2"),
        ({"llama.block_count": 1}, "blk.1.* no place"),
        ({"llama.embedding_length": 32}, "shape"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"general.architecture": "gemma3"}, "'gemma3'"),
        ({"tokenizer.ggml.pre": "poro-chat"}, "'poro-chat'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre = None"),
        ({"tokenizer.ggml.model": "t5"}, "'t5'"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix = True"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id"),
        ({"tokenizer.ggml.eot_token_id": 9999}, "eot_token_id = 9999"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "<|im_end|>"]}, "'<.im_end.>' twice"),
        ({"tokenizer.ggml.merges": ["h", "l l"]}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["never there"]}, "tokenizer in"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "token_type"),
    ],
)
def test_what_would_be_lost_is_named(tmp_path: Path, keys: dict[str, Any], named: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llm(), keys=keys)
    with pytest.raises(ModelError, match=f"tiny.gguf.*({named})|({named}).*tiny.gguf"):
        unpack(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["tiny.gguf"]


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.ones(8, np.float32)}
    for given, named in (
        ({"tensors": factors}, "rope_freqs.weight"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "blk.0"),
        ({"leave_out": "blk.1.ffn_norm.weight"}, "blk.1.ffn_norm.weight"),
        ({"leave_out": "token_embd.weight"}, "token_embd.weight"),
        ({"tensors": {"output_norm.weight": np.full(64, np.nan, np.float32)}}, "output_norm.weight .* not finite"),
        ({"tensors": {"output_norm.weight": np.ones(32, np.float32)}}, r"output_norm.weight .* shape \(32,\)"),
    ):
        path = write_gguf(tmp_path / "tiny.gguf", tiny_llm(), **given)
        with pytest.raises(ModelError, match=named):
            unpack(path, tmp_path / "out")
        assert os.listdir(tmp_path) == ["tiny.gguf"]


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path, file: Path) -> None:
    """Cut anywhere, or with counts that the file cannot hold: no crash, no search without end."""
    whole = file.read_bytes()
    spoilt = tmp_path / "spoilt.gguf"
    for length in (0, 3, 4, 10, 24, 40, 200, 2000, len(whole) // 2, len(whole) - 1000):
        spoilt.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"spoilt\.gguf .*(damaged|no GGUF|cannot be read|empty)"):
            GgufFile(spoilt)
    for head, word in ((b"<!DOCTYPE html>", "web page"), (b"version https://git-lfs", "LFS"), (b"x", "does not begin")):
        spoilt.write_bytes(head)
        with pytest.raises(ModelError, match=word):
            find_llm(str(spoilt))
    place = whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    for count in (2**63, 2**40, len(whole)):
        spoilt.write_bytes(whole[:place] + count.to_bytes(8, "little") + whole[place + 8 :])
        with pytest.raises(ModelError, match="damaged"):
            GgufFile(spoilt)
    for version, word in ((1, "version 1"), (2**24 * 3, "little-endian")):
        spoilt.write_bytes(whole[:4] + version.to_bytes(4, "little") + whole[8:])
        with pytest.raises(ModelError, match=word):
            GgufFile(spoilt)
    generator = np.random.default_rng(0)
    for _ in range(60):  # a changed byte of the header gives the same file, or an error of ours
        changed = bytearray(whole)
        changed[int(generator.integers(8, 3000))] ^= int(generator.integers(1, 256))
        spoilt.write_bytes(changed)
        try:
            GgufFile(spoilt)
        except ModelError:
            pass


def test_a_gguf_file_is_unpacked_once(tmp_path: Path, file: Path, home: Path) -> None:
    said: list[str] = []
    first = unpacked(file, said.append)
    assert unpacked(file, said.append) == first
    assert first.is_relative_to(home)
    assert len(said) == 1
    os.utime(file, (1, 1))
    assert unpacked(file, said.append) != first
    os.remove(file)
    with pytest.raises(ModelError, match=r"tiny\.gguf"):
        unpacked(file)


def test_two_that_want_it_unpack_it_once(file: Path) -> None:
    said: list[str] = []
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(unpacked(file, said.append))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert sum("Unpacking" in message for message in said) == 1


def test_a_model_may_refer_to_a_gguf_file(tmp_path: Path, file: Path, home: Path) -> None:
    llm = find_llm(str(file))
    reference = llm.reference()
    assert reference["path"] == str(file)
    assert llm.shown == "tiny.gguf"
    shutil.rmtree(home)  # a cache may be deleted
    assert referred_llm(reference, "mine").config.vocab_size == llm.config.vocab_size
    write_gguf(file, tiny_llm(seed=1))
    with pytest.raises(ModelError, match=r"'tiny\.gguf' of the fingerprint"):
        referred_llm(reference, "mine")
    os.remove(file)
    with pytest.raises(ModelError, match=r"refers to its LLM 'tiny\.gguf'"):
        referred_llm(reference, "mine")
    (tmp_path / "folder").mkdir()
    write_gguf(tmp_path / "folder" / "in.gguf", tiny_llm())
    with pytest.raises(ModelError, match=r"folder of GGUF files.*in\.gguf"):
        find_llm(str(tmp_path / "folder"))


def test_without_the_package_a_sentence_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'minichat\[gguf\]'"):
        GgufFile(file)
