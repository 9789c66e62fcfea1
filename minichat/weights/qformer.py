"""A pre-trained Q-Former with its text branch, read and written; and what a new one begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, Blip2Config, Blip2VisionConfig, Blip2VisionModel, PreTrainedTokenizerBase

from minichat.errors import ModelError, SettingsError
from minichat.fileio import new_folder, write_json
from minichat.images import CLIP_MEAN, CLIP_STD
from minichat.model.config import BridgeConfig, PretrainingConfig
from minichat.model.qformer_pretrain import QFormerPretraining
from minichat.prompt.tokenizer import read_wordpiece
from minichat.weights.account import Account, Sizes, add_vision, open_part, qformer_sizes, split_vision
from minichat.weights.check_config import building, check_parts, check_values
from minichat.weights.checkpoint_io import Checkpoint, Entry, read_checkpoint, write_tensors
from minichat.weights.hub import WEIGHTS, find_folder, quiet, read_json, weight_files
from minichat.weights.key_map import BERT, BLIP2_STAGE1, HUGGING_FACE_RETRIEVAL, STAGE1_BESIDE
from minichat.weights.projection import vision_source
from minichat.weights.registry import BUILT_IN, BUILT_IN_STAGE1, find
from minichat.weights.vision import add_vision_side

# --- A pre-trained Q-Former with its text branch: BLIP-2's own file, and folders in Hugging Face's layout.


#: What `Blip2ForImageTextRetrieval` has no place for: `cls.*`, which predicts words, and `temp`.
BESIDE = "stage1.safetensors"
_FILES = ["*.json", "*.safetensors", "vocab.txt"]
_RENAMED = {"bridge.ln_vision.": "vision_model.post_layernorm.", "bridge.": ""}
_DECODER = "cls.predictions.decoder.weight"
_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class Stage1:
    """A model, the tokenizer of its texts, and the tensors that no file gave it: they are as they were made."""

    model: QFormerPretraining
    tokenizer: PreTrainedTokenizerBase
    made: tuple[str, ...] = ()


def read_blip2(
    checkpoint: Path,
    *,
    tokenizer: Path,
    vit: Path | None = None,
    vision_heads: int | None = None,
    vision_layers: int | None = None,
    qformer_heads: int | None = None,
    image_size: int | None = None,
    allow_unused: Iterable[str] = (),
) -> Stage1:
    """Read what BLIP-2's first stage saved (lavis/models/blip2_models/blip2_qformer.py), in float32.

    Args:
        checkpoint: the `.pth` with `Qformer.*`, its `cls` head included, and the heads of the three losses.
        tokenizer: a folder with BERT's `vocab.txt`.
        vit: EVA's ViT as it was published, unless the checkpoint holds the vision encoder.
        vision_heads, vision_layers, qformer_heads, image_size: what shapes do not tell; default: as published.
        allow_unused: globs of tensors that may be left out although nothing is known of them.

    Raises:
        ModelError: for a file that is damaged, unsafe, not whole or not what it should be, and for files that do not
            belong together.
        SettingsError: for a size that is impossible, or that nothing tells, and for a vision encoder that is missing.
    """
    sizes = Sizes(vision_heads, vision_layers, qformer_heads, image_size)
    account = Account(allow_unused)
    needed = ("query_tokens", "vision_proj.weight", "itm_head.weight", "Qformer.bert.embeddings.word_embeddings.weight")
    trained = open_part(checkpoint, "Q-Former of BLIP-2's first stage", *needed)
    vision, rest = split_vision(trained)
    if len(vision) == 0 and vit is None:
        raise SettingsError(f"{trained.file} holds no vision encoder: give EVA's file, too.")
    if len(vision) == 0:
        names = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        vision = open_part(Path(vit or ""), "EVA vision encoder", *names)
    elif vision_layers is None:  # it holds no block that is not used
        layers = sum(name.endswith(".attn.qkv.weight") for name in vision)
        sizes = Sizes(vision_heads, layers, qformer_heads, image_size)
    vision_config = add_vision(account, vision, sizes)
    account.add(rest, BLIP2_STAGE1)
    bridge = qformer_sizes(account, vision_config["hidden_size"], sizes)
    bridge["qformer"]["vocab_size"] = account.shape(_WORDS)[0]
    bridge["qformer"]["max_position_embeddings"] = account.shape("embeddings.position_embeddings.weight")[0]
    words = read_wordpiece(tokenizer)
    config = PretrainingConfig(
        vision_config=vision_config,
        bridge_config=bridge,
        contrast_size=account.shape("vision_projection.weight")[0],
        decoder_start_token_id=words.bos_token_id,
        tie_word_embeddings=_tied(account),
    )
    return _load(account, config, words)


def is_stage1(folder: Path) -> bool:
    """Whether a folder says of itself that it holds what `read_stage1` reads."""
    stored = read_json(folder, "config.json") if (folder / "config.json").is_file() else {}
    return stored.get("model_type") == "blip-2" and stored.get("architectures") == ["Blip2ForImageTextRetrieval"]


def read_stage1(name: str) -> Stage1:
    """Read a built-in name, a folder or a hub id that holds a `Blip2ForImageTextRetrieval`, in float32.

    What Hugging Face's has not, the `cls` head and the temperature, is in `stage1.safetensors` if the folder has it,
    and else as made, which the result tells. Raises `ModelError`, naming the file, for a folder that is another model
    or not whole.
    """
    built_in = name in (*BUILT_IN, *BUILT_IN_STAGE1)
    folder = find(name) if built_in else find_folder(name, "The stage-1 model", _FILES)
    stored = read_json(folder, "config.json")
    if not is_stage1(folder):
        what = (stored.get("architectures") or [stored.get("model_type")])[0]
        raise ModelError(
            f"{folder.name!r} holds a {what}, not a Blip2ForImageTextRetrieval: give what stage 1 left, such as "
            "minichat-tiny-stage1."
        )
    where = f"config.json in {folder.name!r}"
    check_values(stored, where)
    account = Account()
    for file in weight_files(folder):
        if not (folder / file).is_file():
            raise ModelError(f"The stage-1 model {folder.name!r} has no {file}: some of its weights are missing.")
        account.add(read_checkpoint(folder / file), HUGGING_FACE_RETRIEVAL)
    beside = (folder / BESIDE).is_file()
    if beside:
        account.add(read_checkpoint(folder / BESIDE), STAGE1_BESIDE)
    words = read_wordpiece(folder)
    check_parts(stored, account.names(), where)
    with building(where), quiet():
        theirs = Blip2Config(**stored)
        config = PretrainingConfig(
            vision_config=theirs.vision_config,
            bridge_config=BridgeConfig(
                num_query_tokens=theirs.num_query_tokens,
                qformer=theirs.qformer_config,
                ln_vision_eps=stored.get("ln_vision_eps", BridgeConfig.ln_vision_eps),
            ),
            contrast_size=theirs.image_text_hidden_size,
            decoder_start_token_id=words.bos_token_id,
            tie_word_embeddings=_tied(account) if beside else True,
        )
    return _load(account, config, words, may_lack=() if beside else ("cls.", "temp"), stored=stored)


def write_stage1(out: Path, model: QFormerPretraining, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write a folder that `transformers.Blip2ForImageTextRetrieval` loads, and `read_stage1`, whole or not at all.

    What we call `ln_vision` has transformers' eps of 1e-6 there, not 1e-5. Raises `ModelError` where `out` is there.
    """
    config = model.config
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    beside = {name for name in state if name == "temp" or name.startswith("cls.")}
    theirs = Blip2Config(
        vision_config=config.vision_config.to_dict(),
        qformer_config=config.bridge_config.qformer.to_dict(),
        num_query_tokens=config.bridge_config.num_query_tokens,
        image_text_hidden_size=config.contrast_size,
        architectures=["Blip2ForImageTextRetrieval"],
        ln_vision_eps=config.bridge_config.ln_vision_eps,
    )
    with new_folder(out, ModelError) as folder:
        write_tensors(folder, [_entry(_renamed(name), state[name]) for name in sorted(state.keys() - beside)])
        write_tensors(folder, [_entry(name, state[name]) for name in sorted(beside)], BESIDE)
        theirs.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", pixels(config.vision_config.image_size))
    return out


def convert_stage1(out: Path, checkpoint: Path, **options: Any) -> Path:
    """What BLIP-2's first stage saved → the new folder `out`. Options and errors are those of `read_blip2`."""
    stage1 = read_blip2(checkpoint, **options)
    return write_stage1(out, stage1.model, stage1.tokenizer)


def shapes(config: PretrainingConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model of these sizes."""
    with torch.device("meta"):
        model = QFormerPretraining(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _tied(account: Account) -> bool:
    """Whether words are predicted with their embedding's rows, as BERT does, or by rows of their own."""
    return _DECODER not in account or torch.equal(account.tensor(_DECODER), account.tensor(_WORDS))


def _load(
    account: Account,
    config: PretrainingConfig,
    words: PreTrainedTokenizerBase,
    may_lack: tuple[str, ...] = (),
    stored: dict[str, Any] | None = None,
) -> Stage1:
    rows = config.bridge_config.qformer.vocab_size
    if (last := max(words.bos_token_id, words.vocab_size - 1)) >= rows:
        raise ModelError(
            f"The tokenizer has a word piece {last}, but the Q-Former's vocabulary has {rows}: they do not belong "
            "together."
        )
    with building("The configuration" if stored is None else "config.json"):
        wanted = shapes(config)
    made = {name for name in wanted if may_lack and name.startswith(may_lack)} - account.names()
    tied = {_DECODER, "cls.predictions.decoder.bias"} - account.names() if config.tie_word_embeddings else set()
    account.check({name: shape for name, shape in wanted.items() if name not in made | tied}, stored)
    state = {name: account.tensor(name) for name in account.names()}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = QFormerPretraining.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    model.config.name_or_path = ""
    return Stage1(model.eval(), words, tuple(sorted(made - tied)))


def _entry(name: str, tensor: Tensor) -> Entry:
    make: Callable[[], Tensor] = lambda: tensor  # noqa: E731
    return Entry(name, tensor.nbytes, make)


def _renamed(name: str) -> str:
    start = next((old for old in _RENAMED if name.startswith(old)), "")
    return _RENAMED.get(start, "") + name.removeprefix(start)


def pixels(side: int) -> dict[str, Any]:
    """How transformers makes pixels of a picture, as we do."""
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "Blip2Processor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }


# --- What a Q-Former's pre-training begins with: random weights, BERT's words, a vision encoder that sees already.


_PICKLES = "pytorch_model.bin"
_DECODER_PARTS = "cls.predictions.decoder."  # the embedding's own rows, where words are tied
_VOCABULARY = ("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
_BIASES = ("cls.predictions.bias", "cls.predictions.decoder.bias")


def init_stage1(
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
    tied = set(filter(lambda name: name.startswith(_DECODER_PARTS), held)) if config.tie_word_embeddings else set()
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
    config = add_vision_side(account, source, sizes, qformer=False).vision
    if kind := config.get("model_type"):
        raise ModelError(f"A Q-Former is pre-trained with BLIP-2's vision encoder, not one of type {kind!r}.")
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
