"""What is computed from a configuration is what a model then holds."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaForCausalLM

import minichat
from benchmarks.memory import measure
from benchmarks.random_model import SIZES, write_random_model
from minichat.device.memory import GIB, Needs, cache_per_token, estimate, gib, training_needs
from minichat.errors import SettingsError
from minichat.inference.doctor import read_config
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration, set_trainable
from minichat.weights.known_models import KNOWN
from tests.tiny_network import KINDS, row, tiny_config, tiny_network
from tests.tiny_t5 import t5_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WITHIN = 0.15
TINY = tiny_config()


def full(**changes) -> MiniChatConfig:
    return MiniChatConfig(**SIZES["full"], **changes)


# --- weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_bytes_that_a_network_has(kind, text, dtype):
    network = tiny_network(kind, text=text).to(DTYPES[dtype])
    network.projection.float()
    held = {name: sum(t.nbytes for t in part.parameters()) for name, part in network.named_children()}
    assert estimate(network.config, dtype=dtype).weights == held


@pytest.mark.parametrize(("quantize", "dtype"), [("8bit", "bfloat16"), ("4bit", "float32")])
def test_quantized_weights_are_the_bytes_that_bitsandbytes_holds(quantize, dtype):
    model = minichat.load("minichat-tiny", device="cpu", dtype=dtype, quantize=quantize).model
    held = {}
    for name, part in model.named_children():
        held[name] = sum(weight.nbytes for weight in part.parameters())
        for weight in part.parameters():
            if quantize == "8bit" and getattr(weight, "SCB", None) is not None:
                held[name] += weight.SCB.nbytes
            if quantize == "4bit" and getattr(weight, "quant_state", None) is not None:
                held[name] += weight.quant_state.absmax.nbytes
    assert estimate(model.config, dtype=dtype, quantize=quantize).weights == held


def test_published_sizes():
    """Parameters that the LLaMA and Llama 2 papers' 7B and 13B have, in their published vocabularies."""
    parameters = {name: estimate(model.config()).weights["language_model"] // 2 for name, model in KNOWN.items()}
    assert parameters == {
        "minigpt4-vicuna-7b": 6_738_415_616 + 2 * 4096,  # one id more
        "minigpt4-vicuna-13b": 13_015_864_320 + 2 * 5120,
        "minigpt4-llama2-7b": 6_738_415_616,
    }


def test_fewer_bits_are_fewer_bytes():
    forms = [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"quantize": "8bit"}, {"quantize": "4bit"}]
    sizes = [sum(estimate(full(), **form).weights.values()) for form in forms]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


# --- the key-value cache


@pytest.mark.parametrize("text", [{}, {"num_key_value_heads": 1}, {"head_dim": 12}], ids=str)
def test_the_cache_is_as_large_as_it_becomes(text):
    network = tiny_network(text=text)
    cache = DynamicCache(config=network.config.text_config)
    with torch.inference_mode():
        network.language_model(input_ids=torch.ones(3, 7, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_per_token(network.config.text_config, 4) * 3 * 7 == held
    assert estimate(network.config, dtype="float32", context=7, batch=3).cache == held


@settings(max_examples=25, deadline=None)
@given(context=st.integers(1, 4096), batch=st.integers(1, 64))
def test_more_is_never_cheaper(context, batch):
    config = TINY
    needs = estimate(config, context=context, batch=batch)
    for more in ({"context": context + 1, "batch": batch}, {"context": context, "batch": batch + 1}):
        larger = estimate(config, **more)
        assert larger.cache > needs.cache
        assert larger.working >= needs.working
        assert larger.weights == needs.weights


def test_the_libraries_are_those_that_are_here(monkeypatch):
    """PyTorch's build for CUDA is larger, bitsandbytes is added, and nothing of either is in a GPU's memory."""
    needed = {}
    for build in (None, "13.0"):
        monkeypatch.setattr(torch.version, "cuda", build)
        for quantize in (None, "8bit", "4bit"):
            needed[build, quantize] = estimate(TINY, quantize=quantize).base
    assert needed[None, None] < needed[None, "8bit"] == needed[None, "4bit"]
    larger = {quantize: needed["13.0", quantize] - needed[None, quantize] for quantize in (None, "8bit", "4bit")}
    assert len(set(larger.values())) == 1
    assert larger[None] > 0
    assert estimate(TINY, device="cuda").base == estimate(TINY, quantize="8bit", device="cuda").base


def test_a_prompt_in_8_bits_takes_copies_on_the_processor():
    whole, eight = (estimate(full(), context=2048, quantize=quantize).working for quantize in (None, "8bit"))
    assert eight > 2 * whole
    assert estimate(full(), context=2048, quantize="8bit", device="cuda").working == whole


def test_encoder_decoders_are_estimated():
    tiny = tiny_config()
    config = MiniChatConfig(vision_config=tiny.vision_config, bridge_config=tiny.bridge_config, text_config=t5_config())
    network = MiniChatForConditionalGeneration(config)
    held = sum(weight.nbytes for weight in network.language_model.parameters())
    assert estimate(config, dtype="float32").weights["language_model"] == held
    assert estimate(config, context=2048).working > 4 * estimate(config, context=512).working


# --- training


@pytest.mark.parametrize("text", [{}, {"num_key_value_heads": 1}, {"num_hidden_layers": 5}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(text, dtype):
    """For a LLaMA that is wide enough for what is counted in heads, and not in widths, not to matter."""
    wide = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4}
    config = tiny_config(text={**wide, **text})
    llm = LlamaForCausalLM(config.text_config).to(DTYPES[dtype]).requires_grad_(False)
    weights = {weight.untyped_storage().data_ptr() for weight in llm.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    embeds = torch.randn(2, 64, 256, dtype=DTYPES[dtype], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        llm.model(inputs_embeds=embeds, use_cache=False)
    held = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)
    assert training_needs(config, 2, 64, False, dtype=dtype).activations == pytest.approx(held, rel=0.05)


def test_the_optimizer_is_a_gradient_and_two_moments():
    network = tiny_network()
    set_trainable(network)
    learned = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned)
    ids = torch.tensor([row(1, "picture", 5, 6)])
    pictures = torch.zeros(1, 3, 56, 56)
    network(input_ids=ids, pixel_values=pictures, labels=torch.where(ids < 50, ids, -100)).loss.backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    held = sum(t.nbytes for t in [*moments, *(weight.grad for weight in learned)])
    assert training_needs(network.config, 1, 4, False).optimizer == held


def test_checkpointing_saves_activations_alone():
    plain, saving = (training_needs(full(), 4, 256, checkpointing) for checkpointing in (False, True))
    assert saving.activations < plain.activations / 4
    assert saving.total - saving.activations == plain.total - plain.activations


# --- what is said, and what is refused


def test_it_can_be_read():
    needs = Needs({"vision_model": GIB, "language_model": 11 * GIB}, cache=GIB // 2, working=0, base=GIB // 4)
    assert str(needs) == (
        "12.8 GiB: weights 12.0 GiB (vision_model 1.00 GiB, language_model 11.0 GiB), key-value cache 0.50 GiB, "
        "libraries 0.25 GiB"
    )
    assert needs.as_dict()["total"] == needs.total == needs.model + GIB // 4
    assert gib(GIB * 9.5) == "9.50 GiB"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"quantize": "2bit"}, "quantize is '2bit'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"context": 0}, "context is 0"),
        ({"context": 2.5}, "context is 2.5"),
        ({"batch": -1}, "batch is -1"),
        ({"batch": True}, "batch is True"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(wrong, field):
    with pytest.raises(SettingsError, match=field):
        estimate(tiny_config(), **wrong)


# --- against what is measured


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is read from /proc")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(size)`: the folder of a random model."""
    folder = tmp_path_factory.mktemp("models")

    def model(size: str):
        if not (folder / size).exists():
            write_random_model(size, folder / size)
        return folder / size

    return model


@on_linux
@pytest.mark.parametrize(
    ("size", "dtype", "quantize"),
    [
        ("small", "float32", None),
        ("small", "bfloat16", None),
        ("small", "bfloat16", "8bit"),
        ("small", "bfloat16", "4bit"),
        pytest.param("medium", "bfloat16", None, marks=pytest.mark.long),
        pytest.param("medium", "float32", None, marks=pytest.mark.long),
        pytest.param("medium", "bfloat16", "8bit", marks=pytest.mark.long),
        pytest.param("medium", "bfloat16", "4bit", marks=pytest.mark.long),
    ],
)
def test_the_estimate_is_near_the_measured_peak(models, size, dtype, quantize):
    folder = models(size)
    estimated = estimate(read_config(str(folder)), dtype=dtype, quantize=quantize, context=256).total
    assert estimated == pytest.approx(measure(folder, dtype, quantize, context=256).total, rel=WITHIN)
