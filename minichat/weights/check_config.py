"""`config.json` before anything is built from it: a value that no model can have is named by its key.

What transformers builds of such a value fails late, in words of its own, or never ends: a billion layers are made one
by one. So values are looked at as they are stored, and how deep a part is against the tensors that are there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.device import DTYPES
from minichat.errors import MiniChatError, ModelError
from minichat.weights.hub import quiet, read_json

if TYPE_CHECKING:
    from minichat.model import MiniChatConfig

_MOST = 10_000_000  # no published model has a larger size, and no machine could hold one
#: Sizes, which every model of their kind has.
_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "image_size",
    "patch_size",
    "num_query_tokens",
    "merge",
    "pool_side",
    "encoder_hidden_size",
    "cross_attention_frequency",
    "image_text_hidden_size",
    "d_model",
    "d_ff",
    "d_kv",
    "num_layers",
    "num_heads",
    "n_embd",
    "n_layer",
    "n_head",
    "ffn_dim",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
#: Sizes that may be null, where they follow from others.
_OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "num_patches",
    "mlp_ratio",
    "num_decoder_layers",
    "n_inner",
    "n_positions",
    "max_position_embeddings",
    "word_embed_proj_dim",
)
_SIZES = (*_NEEDED, *_OPTIONAL)
_FLAGS = (
    "tie_word_embeddings",
    "qkv_bias",
    "attention_bias",
    "mlp_bias",
    "ln_vision",
    "is_encoder_decoder",
    "use_cache",
    "use_qformer_text_input",
    "instructed",
)
_ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
#: Of `generation_config.json`, and of old configurations.
_COUNTS = ("num_beams", "max_new_tokens", "max_length", "num_return_sequences")
_NUMBERS = ("temperature", "top_p", "repetition_penalty", "length_penalty")
_DTYPES = (*DTYPES, "float64", "auto")
_ROPE = ("rope_parameters", "rope_scaling")
_PARTS = ("vision_config", "text_config", "bridge_config", "qformer_config", "qformer")
_KINDS = {
    "bridge_config": ("minichat_bridge",),
    "qformer": ("blip_2_qformer",),
    "qformer_config": ("blip_2_qformer", "instructblip_qformer"),
}
#: Whole models of transformers' that hold an LLM beside their eyes.
WITH_EYES = ("blip-2", "instructblip")
_LAYER = re.compile(r"(.*?(?:^|\.)(?:layers?|h|blocks?))\.(\d+)\.")
_READING = re.compile(r"bridge\.qformer\.encoder\.layer\.(\d+)\.crossattention\.")
#: The parts of a configuration that tensors follow from, by the beginnings of our names; its own part first.
_RELEVANT = {
    "vision_model.": ("vision_config",),
    "bridge.qformer.": ("bridge_config.qformer", "qformer_config"),
    "bridge.": ("bridge_config", "bridge_config.qformer", "qformer_config", "vision_config", ""),
    "projection.": ("bridge_config", "bridge_config.qformer", "vision_config", "text_config"),
    "language_model.": ("text_config",),
}
#: Keys whose numbers a shape is made of, and does not show.
_BY_NAME = {
    "position_embedding": ("image_size", "patch_size"),
    r"\.[kv]_proj\.": ("num_key_value_heads", "head_dim"),
    r"\.[qo]_proj\.": ("num_attention_heads", "head_dim"),
}
_DECIDED = {
    r"qkv\.bias": "vision_config.qkv_bias",
    r"bridge\.ln_vision": "bridge_config.ln_vision",
    r"bridge\.embeddings|qformer.*layer\.\d+\.(intermediate|output)\.": "bridge_config.instructed",
    r"bridge\.(qformer|query_tokens)": "bridge_config.kind",
    r"lm_head": "tie_word_embeddings",
    r"[qkvo]_proj\.bias": "attention_bias",
    r"(gate|up|down)_proj\.bias": "mlp_bias",
    r"language_model.*(layers|h|block)\.\d": "text_config.model_type",
}
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def check_values(stored: Mapping[str, Any], where: str) -> None:
    """Raise `ModelError`, naming the key, for a value that no model can have. `where` says which file it is in."""
    parts = dict(_parts(stored, where))
    for part, held in parts.items():
        for key, value in held.items():
            if key not in _PARTS and (wanted := _wanted(key, value)):
                _refuse(where, _join(part, key), value, wanted)
        _check_quantized(held, where, part)
        _check_heads(held, where, part)
        rows, pad = held.get("vocab_size"), held.get("pad_token_id")
        if isinstance(rows, int) and isinstance(pad, int) and pad >= rows:
            _refuse(where, _join(part, "pad_token_id"), pad, f"below the vocab_size of {rows}")
    for part, held in parts.items():  # last, since transformers' tables take seconds to import
        _check_names(held, where, part)


def _parts(stored: Mapping[str, Any], where: str, part: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration and those in it, each by the keys that lead to it."""
    yield part, stored
    for key in _PARTS:
        held = stored.get(key)
        if isinstance(held, Mapping):
            yield from _parts(held, where, _join(part, key))
        elif held is not None:
            _refuse(where, _join(part, key), held, "a JSON object")
    for key, held in stored.items():  # there may be one for each kind of attention
        if isinstance(held, Mapping) and (key in _ROPE or part.rpartition(".")[2] in _ROPE):
            yield from _parts(held, where, _join(part, key))


def _check_quantized(stored: Mapping[str, Any], where: str, part: str) -> None:
    held = stored.get("quantization_config")
    if held:
        method = held.get("quant_method", "unknown") if isinstance(held, Mapping) else held
        raise ModelError(
            f"{_join(part, 'quantization_config')} in {where} says that the weights are stored quantized ({method}): "
            "give them in float32, bfloat16 or float16; MiniChat quantizes an LLM itself when it is loaded "
            "(quantize='8bit' or '4bit')."
        )


def _wanted(key: str, value: Any) -> str:
    """What a value must be, where it is not; nothing where it may be what it is."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    checks = (
        (
            key in _NEEDED or (key in _OPTIONAL and value is not None),
            lambda: whole and 1 <= value <= (2**31 if "position" in key else _MOST),
            f"a whole number from 1 to {_MOST}",
        ),
        (
            "dropout" in key or "layerdrop" in key or key.endswith("_pdrop"),
            lambda: value is None or (number and 0 <= value < 1),
            "a number from 0 to below 1",
        ),
        (key.endswith(("_eps", "_epsilon")), lambda: number and 0 <= value < 1, "a number from 0 to below 1"),
        (key.startswith("initializer_"), lambda: number and 0 <= value < math.inf, "a number of at least 0"),
        (key in _FLAGS, lambda: value is None or isinstance(value, bool), "true or false"),
        (key in _ACTIVATIONS, lambda: value is None or isinstance(value, str), "the name of an activation"),
        (key in _COUNTS, lambda: value is None or (whole and value >= 1), "a whole number of at least 1"),
        (key in _NUMBERS, lambda: value is None or (number and math.isfinite(value)), "a finite number"),
        (key in _TOKENS, lambda: _is_token(value), "a token's id, a list of ids, or null"),
        (
            key in ("dtype", "torch_dtype"),
            lambda: value is None or str(value).removeprefix("torch.") in _DTYPES,
            f"one of {', '.join(_DTYPES)}",
        ),
        (
            key in _ROPE,
            lambda: value is None or isinstance(value, Mapping),
            "a JSON object",
        ),
        (
            key == "suppress_tokens",
            lambda: value is None or (isinstance(value, list) and all(map(_is_token, value))),
            "a list of tokens' ids, or null",
        ),
        (key == "image_token_index", lambda: value is None or (whole and value >= 0), "an id of at least 0"),
        (
            key in ("rope_theta", "factor"),
            lambda: value is None or (number and 0 < value < math.inf),
            "a number above 0",
        ),
        (isinstance(value, float), lambda: math.isfinite(value), "a finite number"),
    )
    return next((words for concerned, right, words in checks if concerned and not right()), "")


def _check_names(stored: Mapping[str, Any], where: str, part: str) -> None:
    """Types and activations: those of the vision side are fixed, the LLM's must be ones that transformers knows."""
    kind, last = stored.get("model_type"), part.rpartition(".")[2]
    if kind is not None and last in _KINDS and kind not in _KINDS[last]:
        _refuse(where, f"{part}.model_type", kind, " or ".join(map(repr, _KINDS[last])))
    from minichat.model.vision import KINDS

    if last == "vision_config" and kind not in (None, *KINDS, "instructblip_vision_model"):
        _refuse(where, f"{part}.model_type", kind, " or ".join(map(repr, KINDS)))
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    llms = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    if kind is not None and last == "text_config" and kind not in llms:
        _refuse(where, f"{part}.model_type", kind, "a type of LLM that transformers knows, such as 'llama'")
    rope = stored.get("rope_type", stored.get("type"))
    if rope is not None and any(step in _ROPE for step in part.split(".")):
        known = {*ROPE_INIT_FUNCTIONS, "default", "mrope", "su"}
        if rope not in known:
            _refuse(where, _join(part, "rope_type"), rope, f"one of {', '.join(sorted(known))}")
    for key in _ACTIVATIONS:
        if stored.get(key) is not None and stored[key] not in ACT2FN:
            _refuse(where, _join(part, key), stored[key], "an activation that transformers knows, such as 'gelu'")


def _check_heads(stored: Mapping[str, Any], where: str, part: str) -> None:
    """Heads must divide the width that they share, and share out keys and values evenly."""
    for width, heads in (("hidden_size", "num_attention_heads"), ("n_embd", "n_head")):
        held, count = stored.get(width), stored.get(heads)
        if isinstance(held, int) and isinstance(count, int) and stored.get("head_dim") is None and held % count:
            _refuse(where, _join(part, heads), count, f"a divisor of the {width} of {held}")
    count, shared = stored.get("num_attention_heads"), stored.get("num_key_value_heads")
    if isinstance(count, int) and isinstance(shared, int) and count % shared:
        _refuse(where, _join(part, "num_key_value_heads"), shared, f"a divisor of the num_attention_heads of {count}")
    side, patch = stored.get("image_size"), stored.get("patch_size")
    if isinstance(side, int) and isinstance(patch, int) and side < patch:
        _refuse(where, _join(part, "image_size"), side, f"at least the patch_size of {patch}")


def check_depth(
    stored: Mapping[str, Any], names: Iterable[str], where: str, part: str = "", exact: bool = True
) -> None:
    """Raise `ModelError`, with both numbers, unless a part is as deep as its tensors `names` are.

    `exact`: not less deep either.
    """
    depths: dict[str, int] = {}
    for name in names:
        if found := _LAYER.match(name):
            depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    for stem, held in depths.items():
        side = next((side for side in ("encoder", "decoder") if side in stem.split(".")), "")
        keys = [f"{side}_layers", f"num_{side}_layers"] * bool(side) + [*_DEPTHS]
        key = next((key for key in keys if isinstance(stored.get(key), int)), None)
        asked = held if key is None else stored[key]
        if asked > held or (exact and asked != held):
            raise ModelError(
                f"{_join(part, str(key))} in {where} is {asked}, but the weights hold {held} layers: they do not "
                "belong together."
            )


def check_parts(stored: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """`check_depth` of each part of a model, by our tensors' names, and which Q-Former layers read patches."""
    named = list(names)
    for prefix, parts in _RELEVANT.items():
        own = [name.removeprefix(prefix) for name in named if name.startswith(prefix)]
        for part in parts if prefix == "bridge.qformer." else parts[:1]:
            held = _at(stored, part)
            if held is not None and own and prefix not in ("bridge.", "projection."):
                exact = prefix != "language_model." or held.get("model_type", "llama") == "llama"
                check_depth(held, own, where, part, exact)
    for part in ("bridge_config.qformer", "qformer_config"):
        held = _at(stored, part) or {}
        every, depth = held.get("cross_attention_frequency"), held.get("num_hidden_layers")
        reading = {int(found[1]) for name in named if (found := _READING.match(name))}
        if reading and isinstance(every, int) and isinstance(depth, int) and reading != set(range(0, depth, every)):
            raise ModelError(
                f"{part}.cross_attention_frequency in {where} is {every}, but in the weights the layers "
                f"{', '.join(map(str, sorted(reading)))} read patches: they do not belong together."
            )


def asked_by(stored: Mapping[str, Any], name: str, held: Iterable[int], wanted: Iterable[int]) -> str:
    """Which keys ask for a tensor's shape `wanted` where the file has `held`: "text_config.hidden_size 64"."""
    parts = next((parts for prefix, parts in _RELEVANT.items() if name.startswith(prefix)), ("",))
    sizes = {
        _join(part, key): value
        for part in parts
        for key, value in (_at(stored, part) or {}).items()
        if key in _SIZES and isinstance(value, int)
    }
    pairs = [(had, asked) for had, asked in zip(held, wanted, strict=False) if had != asked]
    found = {
        key
        for key, size in sizes.items()
        if any(asked == size or (size > 1 and asked % size == 0 and had % size) for had, asked in pairs)
    }
    for pattern, ends in _BY_NAME.items():
        if re.search(pattern, name):
            found |= {key for key in sizes if key.endswith(ends)}
    return ", ".join(f"{key} {size}" for key, size in sizes.items() if key in (found or sizes))


def decided_by(names: Iterable[str]) -> str:
    """The keys that say whether there are tensors of these names: " (see qkv_bias)", or nothing."""
    keys = {key for name in names for pattern, key in _DECIDED.items() if re.search(pattern, name)}
    return f" (see {', '.join(sorted(keys))})" if keys else ""


def read_config(folder: Path) -> MiniChatConfig:
    """The configuration of a model of ours. Raises `ModelError`, naming the key, for a value that none can have."""
    from minichat.model import MiniChatConfig

    where = f"config.json in {folder.name!r}"
    check_values(read_json(folder, "config.json"), where)
    with building(where), quiet():
        config: MiniChatConfig = MiniChatConfig.from_pretrained(folder, local_files_only=True)
    return config


def whole_config(stored: Mapping[str, Any]) -> MiniChatConfig:
    """The sizes of a whole BLIP-2 or InstructBLIP of transformers', by its `config.json`, as a network of ours."""
    from minichat.model import MiniChatConfig

    def part(name: str) -> dict[str, Any]:
        return {key: value for key, value in (stored.get(name) or {}).items() if key != "model_type"}

    bridge = {"qformer": part("qformer_config"), "instructed": stored.get("model_type") == "instructblip"}
    return MiniChatConfig(
        vision_config=part("vision_config"),
        bridge_config={**bridge, "num_query_tokens": stored.get("num_query_tokens", 32)},
        text_config={"model_type": "opt", **(stored.get("text_config") or {})},
    )


def _at(stored: Mapping[str, Any], part: str) -> Mapping[str, Any] | None:
    held: Any = stored
    for key in filter(None, part.split(".")):
        held = held.get(key) if isinstance(held, Mapping) else None
    return held if isinstance(held, Mapping) else None


@contextmanager
def building(where: str) -> Iterator[None]:
    """Whatever transformers raises while a configuration or an empty network is made of it is a `ModelError`."""
    try:
        yield
    except (MiniChatError, MemoryError):
        raise
    except Exception as error:  # a strict dataclass, a table's KeyError, an assertion of PyTorch's, …
        said = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{where} cannot be used: {said[:300].rstrip('.:')}.") from None


def _refuse(where: str, name: str, value: Any, wanted: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise ModelError(f"{name} in {where} is {shown}; it must be {wanted}.")


def _join(part: str, key: str) -> str:
    return f"{part}.{key}" if part else key


def _is_token(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return all(i is None or (isinstance(i, int) and not isinstance(i, bool) and -1 <= i < 2**31) for i in ids)
