"""Values in JSON files that no model can have, and tensors of a wrong kind: refused by name before a model is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import minichat
from minichat.errors import ModelError
from minichat.inference.load import load_processor
from minichat.weights.convert import convert
from minichat.weights.export import export
from minichat.weights.llm import find_llm
from minichat.weights.qformer import Stage1, read_stage1, read_vision, write_stage1
from tests.published_files import LLM, PROJECTION, QFORMER, VIT, arguments, publish, publish_blip2
from tests.tiny import tiny_bot
from tests.tiny_stage1 import tiny_pretraining, vocabulary
from tests.tiny_t5 import publish_t5

NAN, HUGE = float("nan"), 10**9
WEIGHTS = "model.safetensors"

#: Key, and what no model can have there.
TEXT: list[tuple[str, Any]] = [
    ("num_hidden_layers", 0),
    ("num_hidden_layers", HUGE),
    ("num_hidden_layers", 1),
    ("num_hidden_layers", None),
    ("hidden_size", -1),
    ("hidden_size", 80),
    ("hidden_size", "40"),
    ("hidden_size", [40]),
    ("hidden_size", HUGE),
    ("hidden_size", 1e12),
    ("vocab_size", 0),
    ("vocab_size", 300),
    ("intermediate_size", 63),
    ("intermediate_size", True),
    ("num_attention_heads", "abc"),
    ("num_attention_heads", 7),
    ("num_attention_heads", HUGE),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", 1),
    ("head_dim", 0),
    ("head_dim", 10),
    ("rms_norm_eps", -1e-6),
    ("rms_norm_eps", NAN),
    ("rms_norm_eps", "small"),
    ("attention_dropout", 2),
    ("attention_dropout", -0.1),
    ("initializer_range", float("inf")),
    ("hidden_act", "abc"),
    ("hidden_act", 3),
    ("model_type", "abc"),
    ("model_type", "gpt2"),
    ("model_type", "clip"),
    ("pad_token_id", 10_000),
    ("eos_token_id", "abc"),
    ("dtype", "abc"),
    ("dtype", "int8"),
    ("max_position_embeddings", -5),
    ("rope_parameters", "abc"),
    ("rope_parameters", {"rope_type": "abc", "rope_theta": 1e4}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": -1.0}),
    ("tie_word_embeddings", "abc"),
    ("attention_bias", True),
    ("quantization_config", {"quant_method": "gptq", "bits": 4}),
]
VISION: list[tuple[str, Any]] = [
    ("image_size", 0),
    ("image_size", 84),
    ("image_size", 10),
    ("patch_size", 7),
    ("patch_size", None),
    ("hidden_size", 64),
    ("num_hidden_layers", 3),
    ("num_hidden_layers", HUGE),
    ("num_attention_heads", 5),
    ("intermediate_size", "abc"),
    ("layer_norm_eps", -1.0),
    ("attention_dropout", 1.5),
    ("hidden_act", "abc"),
    ("qkv_bias", False),
    ("model_type", "swin"),
]
BRIDGE: list[tuple[str, Any]] = [
    ("num_query_tokens", 0),
    ("num_query_tokens", 5),
    ("num_query_tokens", "abc"),
    ("kind", "magic"),
    ("merge", 0),
    ("ln_vision", False),
    ("ln_vision_eps", NAN),
    ("qformer", "abc"),
    ("qformer", None),
]
QFORMER_KEYS: list[tuple[str, Any]] = [
    ("hidden_size", 48),
    ("num_hidden_layers", 3),
    ("num_hidden_layers", HUGE),
    ("num_attention_heads", 7),
    ("intermediate_size", 33),
    ("cross_attention_frequency", 0),
    ("cross_attention_frequency", 1),
    ("hidden_dropout_prob", "abc"),
    ("layer_norm_eps", -1e-12),
    ("model_type", "bert"),
]
TOP: list[tuple[str, Any]] = [
    ("image_token_index", "abc"),
    ("image_token_index", -1),
    ("template", "abc"),
    ("template", 3),
    ("text_config", "abc"),
    ("vision_config", []),
    ("bridge_config", 3),
    ("llm", 3),
    ("dtype", "float8"),
    ("model_type", "llava"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values") / "model"
    bot = tiny_bot()
    bot.model.save_pretrained(folder)
    bot.processor.save_pretrained(folder)
    return folder


def edited(folder: Path, out: Path, change: Callable[[Any], Any], file: str = "config.json") -> Path:
    shutil.copytree(folder, out)
    content = json.loads((out / file).read_text())
    change(content)
    (out / file).write_text(json.dumps(content))
    return out


def refused(run: Callable[[], Any], *named: str) -> str:
    with pytest.raises(ModelError) as caught:
        run()
    said = str(caught.value)
    for name in named:
        assert name in said, said
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *(("text_config", *pair) for pair in TEXT),
        *(("vision_config", *pair) for pair in VISION),
        *(("bridge_config", *pair) for pair in BRIDGE),
        *(("bridge_config.qformer", *pair) for pair in QFORMER_KEYS),
        *(("", *pair) for pair in TOP),
    ],
    ids=str,
)
def test_values_of_a_model_of_ours(saved: Path, tmp_path: Path, part: str, key: str, value: Any) -> None:
    def change(config: Any) -> None:
        for step in filter(None, part.split(".")):
            config = config[step]
        config[key] = value

    folder = edited(saved, tmp_path / "copy", change)
    refused(lambda: minichat.load(folder, device="cpu"), key)


@pytest.mark.parametrize(("key", "value"), [pair for pair in TEXT if pair[1] not in ("gpt2", "clip")], ids=str)
def test_values_of_an_llm(saved: Path, tmp_path: Path, key: str, value: Any) -> None:
    export(str(saved), "llm", tmp_path / "llm")
    folder = edited(tmp_path / "llm", tmp_path / "copy", lambda config: config.update({key: value}))
    refused(lambda: find_llm(str(folder)), key)


def test_an_llm_that_does_not_write(saved: Path, tmp_path: Path) -> None:
    export(str(saved), "llm", tmp_path / "llm")
    for kind in ("clip", "gpt2", None):
        folder = edited(tmp_path / "llm", tmp_path / str(kind), lambda config: config.update(model_type=kind))  # noqa: B023
        with pytest.raises(ModelError):
            find_llm(str(folder))


def test_an_encoder_decoder_and_other_llms(tmp_path: Path) -> None:
    publish_t5(tmp_path / "t5")
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=20)).save_pretrained(
        tmp_path / "gpt2"
    )
    wrong = [
        *(("t5", key, value) for key, value in (("num_layers", 9), ("num_decoder_layers", HUGE), ("d_model", -1))),
        *(("t5", key, value) for key, value in (("d_ff", 65), ("dropout_rate", "abc"), ("layer_norm_epsilon", -1))),
        *(("gpt2", key, value) for key, value in (("n_layer", HUGE), ("n_embd", 0), ("n_head", 3), ("resid_pdrop", 3))),
        *(("gpt2", key, value) for key, value in (("activation_function", "abc"), ("vocab_size", NAN))),
    ]
    for number, (kind, key, value) in enumerate(wrong):
        folder = edited(tmp_path / kind, tmp_path / str(number), lambda config: config.update({key: value}))  # noqa: B023
        refused(lambda: find_llm(str(folder)), key)  # noqa: B023


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip2")
    publish_blip2(publish(folder / "files"), folder / "blip2")
    return folder


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *(("vision_config", *pair) for pair in VISION if pair[0] not in ("qkv_bias", "image_size") or pair[1] == 0),
        *(("qformer_config", *pair) for pair in QFORMER_KEYS),
        ("", "num_query_tokens", 0),
        ("", "num_query_tokens", 7),
        ("", "vision_config", "abc"),
    ],
    ids=str,
)
def test_values_of_a_blip2(blip2: Path, tmp_path: Path, part: str, key: str, value: Any) -> None:
    def change(config: Any) -> None:
        (config[part] if part else config)[key] = value

    folder = edited(blip2 / "blip2", tmp_path / "copy", change)
    given = {**arguments(blip2 / "files"), "vit": None, "qformer": None, "blip2": str(folder)}
    if (key, value) == ("num_query_tokens", 7):  # how many there are, their own tensor tells
        assert convert(tmp_path / "out", **given)
        return
    refused(lambda: convert(tmp_path / "out", **given), key)
    refused(lambda: read_vision(str(folder)), key) if part != "qformer_config" else None


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *(("vision_config", *pair) for pair in VISION if pair[0] not in ("qkv_bias",)),
        *(("qformer_config", *pair) for pair in QFORMER_KEYS),
        ("", "num_query_tokens", 9),
        ("", "image_text_hidden_size", 9),
        ("", "ln_vision_eps", -1),
    ],
    ids=str,
)
def test_values_of_stage_1(tmp_path: Path, part: str, key: str, value: Any) -> None:
    from minichat.prompt.tokenizer import read_wordpiece

    words = read_wordpiece(vocabulary(tmp_path / "words"))
    write_stage1(tmp_path / "model", Stage1(tiny_pretraining(), words).model, words)

    def change(config: Any) -> None:
        (config[part] if part else config)[key] = value

    folder = edited(tmp_path / "model", tmp_path / "copy", change)
    refused(lambda: read_stage1(str(folder)), key)


# --- the other files


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("generation_config.json", {"eos_token_id": "abc"}, "eos_token_id"),
        ("generation_config.json", {"temperature": NAN}, "temperature"),
        ("generation_config.json", {"num_beams": "abc"}, "generation_config.json"),
        ("processor_config.json", {"num_image_tokens": "abc"}, "num_image_tokens"),
        ("processor_config.json", {"num_image_tokens": -1}, "num_image_tokens"),
        ("processor_config.json", {"num_image_tokens": HUGE}, "num_image_tokens"),
        ("processor_config.json", {"image_token_id": "abc"}, "image_token_id"),
        ("processor_config.json", {"template": "abc"}, "abc"),
        ("processor_config.json", {"image_processor": {"size": 0}}, "size"),
        ("processor_config.json", {"image_processor": {"size": "abc"}}, "size"),
        ("processor_config.json", {"image_processor": {"size": 64}}, "picture size"),
        ("processor_config.json", {"image_processor": {"size": 56, "image_mean": "abc"}}, "image_mean"),
        ("processor_config.json", {"image_processor": {"size": 56, "image_std": [0, 1, 1]}}, "image_std"),
        ("processor_config.json", {"image_processor": {"size": 56, "image_mean": [NAN, 1, 1]}}, "image_mean"),
    ],
    ids=str,
)
def test_values_beside_the_configuration(
    saved: Path, tmp_path: Path, file: str, change: dict[str, Any], named: str
) -> None:
    folder = edited(saved, tmp_path / "copy", lambda content: content.update(change), file)
    refused(lambda: minichat.load(folder, device="cpu"), named)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"a": \xff}', b"[" * 10_000], ids=lambda c: repr(c[:9])
)
@pytest.mark.parametrize(
    "file",
    ["config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"],
)
def test_damaged_json_is_named(saved: Path, tmp_path: Path, file: str, content: bytes) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    (folder / file).write_bytes(content)
    refused(lambda: minichat.load(folder, device="cpu"), "copy")
    if file != "generation_config.json":
        refused(lambda: load_processor(folder), "copy")


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [0, -1]), ("shape", "abc"), ("template", 3), ("base", []), ("fingerprints", None)],
    ids=str,
)
def test_values_of_a_trained_projection(saved: Path, tmp_path: Path, key: str, value: Any) -> None:
    export(str(saved), "projection", tmp_path / "trained")
    folder = edited(tmp_path / "trained", tmp_path / "copy", lambda facts: facts.update({key: value}), "minichat.json")
    refused(lambda: minichat.load(folder, device="cpu"), "minichat.json")


# --- what tensors are made of

KINDS = [torch.int8, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]


def recast(tensors: dict[str, torch.Tensor], part: str, dtype: torch.dtype) -> str:
    name = next(name for name in sorted(tensors) if part in name)
    tensors[name] = tensors[name].to(dtype)
    return name


def recast_file(path: Path, part: str, dtype: torch.dtype) -> str:
    """Change a tensor's dtype in a file, of safetensors or a pickle."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        name = recast(tensors, part, dtype)
        save_file(tensors, path, metadata={"format": "pt"})
        return name
    content = torch.load(path, weights_only=True)
    name = recast(content.get("model", content), part, dtype)
    torch.save(content, path)
    return name


@pytest.mark.parametrize("part", ["vision_model.", "bridge.", "projection.", "language_model."])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_other_numbers_in_a_model(saved: Path, tmp_path: Path, part: str, dtype: torch.dtype) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    name = recast_file(folder / WEIGHTS, part, dtype)
    refused(lambda: minichat.load(folder, device="cpu"), name, str(dtype).removeprefix("torch."), WEIGHTS)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        (VIT, "mlp.fc1.weight"),
        (VIT, "q_bias"),
        (QFORMER, "crossattention.self.key.weight"),
        (PROJECTION, "llama_proj.weight"),
        (f"{LLM}/{WEIGHTS}", "mlp.up_proj.weight"),
    ],
)
@pytest.mark.parametrize("dtype", KINDS[:1] + KINDS[-2:], ids=str)
@pytest.mark.parametrize("merge", [False, True])
def test_other_numbers_in_published_files(
    blip2: Path, tmp_path: Path, file: str, part: str, dtype: torch.dtype, merge: bool
) -> None:
    files = Path(shutil.copytree(blip2 / "files", tmp_path / "files"))
    name = recast_file(files / file, part, dtype)
    refused(lambda: convert(tmp_path / "out", merge=merge, **arguments(files)), name, str(dtype).removeprefix("torch."))


def test_other_numbers_in_an_llm_that_is_referred_to(blip2: Path, tmp_path: Path) -> None:
    files = Path(shutil.copytree(blip2 / "files", tmp_path / "files"))
    out = convert(tmp_path / "out", **arguments(files))
    name = recast_file(files / LLM / WEIGHTS, "mlp.up_proj", torch.int8)
    refused(lambda: minichat.load(out, device="cpu"), name, "int8")


def test_other_numbers_in_a_trained_projection_and_in_stage_1(saved: Path, tmp_path: Path) -> None:
    from minichat.prompt.tokenizer import read_wordpiece

    export(str(saved), "projection", tmp_path / "trained")
    name = recast_file(tmp_path / "trained" / "projection.safetensors", "weight", torch.int32)
    refused(lambda: minichat.load(tmp_path / "trained", device="cpu"), name, "int32")
    words = read_wordpiece(vocabulary(tmp_path / "words"))
    write_stage1(tmp_path / "stage1", tiny_pretraining(), words)
    name = recast_file(tmp_path / "stage1" / WEIGHTS, "itm_head.weight", torch.uint8)
    refused(lambda: read_stage1(str(tmp_path / "stage1")), name, "uint8")


def test_buffers_of_whole_numbers_are_no_weights(blip2: Path, tmp_path: Path) -> None:
    """Old LLMs save masks and positions with their weights."""
    files = Path(shutil.copytree(blip2 / "files", tmp_path / "files"))
    content = torch.load(files / QFORMER, weights_only=True)
    assert content["model"]["Qformer.bert.embeddings.position_ids"].dtype == torch.int64
    assert convert(tmp_path / "out", **arguments(files))


def test_quantized_weights_are_refused_by_what_quantized_them(blip2: Path, tmp_path: Path) -> None:
    """As GPTQ, AWQ and bitsandbytes store them, also where config.json does not say so."""
    files = Path(shutil.copytree(blip2 / "files", tmp_path / "files"))
    tensors = load_file(files / LLM / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.qweight"] = tensors.pop("model.layers.0.mlp.up_proj.weight").int()
    save_file(tensors, files / LLM / WEIGHTS, metadata={"format": "pt"})
    said = refused(lambda: convert(tmp_path / "out", **arguments(files)), "qweight", "int32")
    assert "quantize='8bit'" in said
    for method in ("gptq", "awq", "bitsandbytes"):
        path = files / LLM / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": method}}))
        refused(lambda: convert(tmp_path / "out", **arguments(files)), "quantization_config", method, "float16")


def test_the_four_kinds_of_floating_point_are_read(saved: Path, tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        folder = Path(shutil.copytree(saved, tmp_path / str(dtype)))
        recast_file(folder / WEIGHTS, "mlp.up_proj", dtype)
        assert minichat.load(folder, device="cpu")
