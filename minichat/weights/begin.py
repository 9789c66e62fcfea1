"""What a Q-Former's pre-training begins with: random weights, BERT's words, a vision encoder that sees already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, Blip2VisionConfig, Blip2VisionModel, PreTrainedTokenizerBase

from minichat.errors import ModelError, SettingsError
from minichat.model.pretraining import QFormerPretraining
from minichat.model.pretraining_config import PretrainingConfig
from minichat.weights.account import Account
from minichat.weights.blip2 import add_vision_side
from minichat.weights.files import WEIGHTS, find_folder, quiet, read_json, weight_files
from minichat.weights.keys import BERT
from minichat.weights.projection import vision_source
from minichat.weights.published import Sizes, add_vision, open_part
from minichat.weights.reading import Checkpoint, read_checkpoint
from minichat.weights.stage1 import Stage1
from minichat.weights.values import building, check_values

_PICKLES = "pytorch_model.bin"
_DECODER = "cls.predictions.decoder."  # the embedding's own rows, where words are tied
_FILES = ["*.json", "*.safetensors", "vocab.txt"]
_VOCABULARY = ("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
_BIASES = ("cls.predictions.bias", "cls.predictions.decoder.bias")


def begin(
    config: PretrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vision: Mapping[str, Tensor] | None = None,
    bert: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Stage1:
    """A model to pre-train, in float32; the result tells which of its tensors are random.

    Args:
        config: its sizes; see `read_vit` and `read_bert` for those of their parts.
        tokenizer: of its texts, with `[DEC]`.
        vision: the vision encoder's tensors, from `read_vit` or by `Blip2VisionModel`'s names.
        bert: from `read_bert`. Words start with all of it, queries with its self-attention and with its feed-forward
            parts; the cross-attention stays random, and so do rows for word pieces that BERT has not, such as `[DEC]`.
        seed: of all that is random.

    Raises `ModelError`, with both values, for tensors that have no place or another shape.
    """
    if len(tokenizer) > (rows := config.bridge_config.qformer.vocab_size):
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} word pieces, but qformer.vocab_size is {rows}: they do not belong "
            "together."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QFormerPretraining(config)
    given = {f"vision_model.{name}": tensor for name, tensor in (vision or {}).items()} | dict(bert or {})
    held = model.state_dict()
    tied = set(filter(lambda name: name.startswith(_DECODER), held)) if config.tie_word_embeddings else set()
    for name in given.keys() - tied:
        _copy(name, given[name], held)
    return Stage1(model.eval(), tokenizer, tuple(sorted(held.keys() - given.keys() - tied)))


def _copy(name: str, tensor: Tensor, held: dict[str, Tensor]) -> None:
    """Into the model's own tensor, or into the first rows of one with a row for each word piece."""
    if name not in held:
        raise ModelError(f"The tensor {name} has no place in this model: the parts do not belong together.")
    place = held[name][: tensor.shape[0]] if name in (*_VOCABULARY, *_BIASES) else held[name]
    if place.shape != tensor.shape:
        raise ModelError(
            f"The tensor {name} has the shape {tuple(tensor.shape)}, but this model needs {tuple(held[name].shape)}: "
            "the parts do not belong together."
        )
    place.copy_(tensor)


def read_vit(
    path: Path, heads: int | None = None, layers: int | None = None, image_size: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """EVA's ViT as it was published → the vision encoder's configuration and tensors.

    `heads`, `layers`, `image_size`: what shapes do not tell; default: as published. Raises `ModelError` and
    `SettingsError` as `minichat convert` does.
    """
    account = Account()
    names = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    config = add_vision(account, open_part(path, "EVA vision encoder", *names), Sizes(heads, layers, None, image_size))
    return config, {name.removeprefix("vision_model."): account.tensor(name) for name in account.names()}


def read_vision(
    name: str, heads: int | None = None, image_size: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A vision encoder from wherever there is one → its configuration and tensors, as from `read_vit`.

    `name` is EVA's original file; a MiniChat model or a trained projection, as `minichat.load` finds them; or the
    folder or hub id of a BLIP-2, what stage 1 left among them. `heads`: of an EVA file that is not the published one.
    With another `image_size` the position embeddings are interpolated. Raises `ModelError` and `SettingsError`.
    """
    file = Path(name).expanduser()
    if file.is_file():
        return read_vit(file, heads, image_size=image_size)
    if heads is not None:
        raise SettingsError(f"vision_heads is of an EVA file, but {name!r} is none: it tells its heads itself.")
    account = Account()
    source, sizes = vision_source(name), Sizes(image_size=image_size)
    config, _ = add_vision_side(account, source, sizes, qformer=False, what="The vision encoder")
    account.check(_wanted_vision(config), {"vision_config": config})
    return config, {name.removeprefix("vision_model."): account.tensor(name) for name in account.names()}


def _wanted_vision(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a vision encoder's tensors."""
    with torch.device("meta"):
        model = Blip2VisionModel(Blip2VisionConfig(**config))
    shapes = {f"vision_model.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if not name.startswith("vision_model.post_layernorm.")}


def read_bert(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A BERT's folder or hub id → the sizes of a Q-Former that can start from it, and the tensors it starts with.

    The sizes count one word piece more than BERT has, `[DEC]`; the tensors have the names of `QFormerPretraining`, and
    those of the feed-forward parts come twice, for words and for queries. Raises `ModelError`, naming the file, for
    another model and for one that is not whole.
    """
    folder = find_folder(name, "The BERT model", _FILES)
    stored = read_json(folder, "config.json")
    if stored.get("model_type") != "bert":
        raise ModelError(f"{folder.name!r} holds a model of type {stored.get('model_type')!r}, not 'bert'.")
    where = f"config.json in {folder.name!r}"
    check_values(stored, where)
    with building(where), quiet():
        theirs = BertConfig(**stored)
    account = Account()
    base = _PICKLES if (folder / _PICKLES).is_file() and not (folder / WEIGHTS).is_file() else WEIGHTS
    for file in weight_files(folder, base):
        if not (folder / file).is_file():
            raise ModelError(f"The BERT model {folder.name!r} has no {file}: some of its weights are missing.")
        account.add(_named(read_checkpoint(folder / file)), BERT)
    tensors = {name: account.tensor(name) for name in account.names()}
    if missing := _wanted(theirs) - tensors.keys():
        raise ModelError(f"The BERT model {folder.name!r} lacks {min(missing)}: its weights are not whole.")
    tensors |= {_for_queries(name): tensor for name, tensor in tensors.items() if _for_queries(name) != name}
    sizes = {
        "vocab_size": theirs.vocab_size + 1,
        "hidden_size": theirs.hidden_size,
        "num_hidden_layers": theirs.num_hidden_layers,
        "num_attention_heads": theirs.num_attention_heads,
        "intermediate_size": theirs.intermediate_size,
        "hidden_act": theirs.hidden_act,
        "layer_norm_eps": theirs.layer_norm_eps,
        "max_position_embeddings": theirs.max_position_embeddings,
        "pad_token_id": theirs.pad_token_id,
    }
    return sizes, tensors


def _named(checkpoint: Checkpoint) -> Checkpoint:
    """By today's names: a BERT without heads has no `bert.` before them, and layer norms once had gamma and beta."""
    bare = not any(name.startswith("bert.") for name in checkpoint)
    names = {}
    for name in checkpoint:
        now = f"bert.{name}" if bare else name
        now = now.removesuffix("gamma") + "weight" if now.endswith(".LayerNorm.gamma") else now
        now = now.removesuffix("beta") + "bias" if now.endswith(".LayerNorm.beta") else now
        names[now] = checkpoint.raw[name]
    return Checkpoint(checkpoint.file, names, {})


def _wanted(config: BertConfig) -> set[str]:
    """What every BERT holds; it may have been saved without heads."""
    layers = range(config.num_hidden_layers)
    names = {ours for ours in BERT.used.values() if not ours.startswith("cls.")}
    return {name.replace("#", str(layer)) for name in names for layer in layers}


def _for_queries(name: str) -> str:
    """The queries' tensor that starts as this one of words does."""
    layer, found, rest = name.partition(".intermediate.dense.")
    if found:
        return f"{layer}.intermediate_query.dense.{rest}"
    head, found, rest = name.partition(".output.")
    if found and not head.endswith("attention"):
        return f"{head}.output_query.{rest}"
    return name
