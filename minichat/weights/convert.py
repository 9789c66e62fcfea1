"""Published weights, and the vision side of Hugging Face's BLIP-2 → a folder that `minichat.load` opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from minichat.errors import ModelError, SettingsError, sentence
from minichat.fileio import new_folder, write_json
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.model.config import BRIDGE_KINDS
from minichat.model.minichat import build_bridge
from minichat.prompt.processor import MODEL_FILE, QFORMER, MiniChatImageProcessor, MiniChatProcessor
from minichat.prompt.template import OWN, TEMPLATES, Template, get_template
from minichat.prompt.tokenizer import SentencePieceTokenizer, encode_inside
from minichat.weights.account import (
    Account,
    Sizes,
    add_bridge,
    add_vision,
    bridge_sizes,
    open_part,
    open_trained,
    projection_sizes,
)
from minichat.weights.adapter import Adapter, split_lora, write_adapter
from minichat.weights.checkpoint_io import Checkpoint, Entry, write_tensors
from minichat.weights.hub import find_folder, quiet
from minichat.weights.key_map import LAVIS_PROJECTIONS
from minichat.weights.llm import RECORD, RECORDED, Llm, find_llm, hashes

# --- Published weights → a folder that `minichat.load` opens: `minichat convert`.


_SPARE_ROWS = 1024  # an LLM's embedding may be padded so far beyond its tokenizer
_INSTRUCTION = 128  # word pieces of a question that a Q-Former reads (max_txt_len in lavis/configs/models/blip2)


def convert(
    out: Path,
    *,
    llm: str | None = None,
    template: str | None = None,
    projection: Path | None = None,
    vit: Path | None = None,
    qformer: Path | None = None,
    blip2: str | None = None,
    bridge: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    merge: bool = False,
    vision_heads: int | None = None,
    vision_layers: int | None = None,
    qformer_heads: int | None = None,
    image_size: int | None = None,
    instruction_tokens: int | None = None,
    lora_alpha: float | None = None,
    tidy: bool = False,
    allow_unused: Iterable[str] = (),
    verify: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write a model's folder from published files, whole or not at all.

    Args:
        out: a new folder.
        llm: a Hugging Face folder, a GGUF file, a hub id or the name of a packaged LLM; referred to, or copied with
            `merge`. None: that of `blip2`, with its projection.
        template: the prompt template that the weights were trained with; "tokenizer": the LLM's own `chat_template`;
            a YAML file with the fields of a `Template`. None: that of a BLIP-2 or InstructBLIP, or where the projection
            is new, the LLM's own.
        projection: what a training run of MiniGPT-4 (`llama_proj.*`) or LAVIS (`opt_proj.*`, `t5_proj.*`, `llm_proj.*`,
            and the Q-Former with it) saved. LoRA matrices among it (MiniGPT-v2) become an adapter in the folder, or are
            merged with `merge`. None: a random one, always the same, for training to begin with.
        vit, qformer: EVA's ViT and BLIP-2's Q-Former as the originals published them; or `blip2`, which holds both: a
            Hugging Face BLIP-2 or InstructBLIP, what stage 1 alone left (`write_stage1`), a model of ours that
            another LLM is put behind, or a vision encoder that transformers knows (`minichat.weights.vision`).
        bridge: "qformer", a new one where none is given; "patch_merge" or "pool", and of `blip2` the vision encoder
            alone. None: a Q-Former that is given, or patches are joined (MiniGPT-4 with Llama-2).
        tokenizer: where LAVIS's Q-Former reads the question (InstructBLIP): the folder or hub id of BERT's vocabulary.
        vision_heads, vision_layers, qformer_heads, image_size: what shapes do not tell; default: as published.
        instruction_tokens: word pieces of a question that such a Q-Former reads, the last of them; default: 128.
        lora_alpha: by which LoRA matrices are scaled, where the file does not say.
        tidy: questions are read with a capital first and "I" for "i", those all in capitals in sentence case, and runs
            of blanks as one, for an LLM that learned little of such.
        allow_unused: globs of tensors that may be left out although nothing is known of them; recorded in the folder.
        verify: record hashes of all that was written and of the LLM, which `load(..., verify=True)` holds them against.
        progress: is told what is being done.

    Raises:
        ModelError: for a file that is damaged, unsafe or not what it should be, and for parts that do not belong
            together; nothing is left behind then.
        SettingsError: for a size that is impossible, or that nothing tells.
        PromptError: for a template that does not exist, or that cannot be spelled piece by piece.
    """
    template, own = _chosen(template)
    account = Account(allow_unused)
    trained, name, eyes = (None, "", None) if projection is None else open_trained(projection)
    lora, trained = (None, None) if trained is None else split_lora(trained, lora_alpha)
    sizes = Sizes(vision_heads, vision_layers, qformer_heads, image_size or _recorded_size(trained))
    parts = _Parts(vit, eyes, qformer, blip2, bridge, whole=llm is None)
    parts.check(trained)
    whole = parts.whole
    if trained is not None:
        _check_template(trained, name, template)
    progress("Reading the vision side")
    vision, joint, pixels = _vision_side(account, trained, parts, sizes)
    progress("Looking at the LLM")
    words = find_llm(str(blip2 if whole else llm))
    if trained is not None or whole:
        _check_width(account, words)
    words.verify()
    if words.adapter is not None:
        progress(f"Adding the LoRA adapter {words.adapter.folder.name!r} to the LLM")
    _check_lora(lora, words)
    if template is None:
        template = _family_template(words, name, joint, blip2 if whole else None)
    config = MiniChatConfig(
        vision_config=vision,
        bridge_config=joint,
        text_config=words.config,
        template=template,
        llm=None if merge else words.reference(),
        architectures=[MiniChatForConditionalGeneration.__name__],
    )
    if whole or name in LAVIS_PROJECTIONS:
        _as_published(words, config, padded=name == "llm_proj")
    if trained is None and not whole:
        _init_projection(account, config)
    if made := joint["kind"] == "qformer" and "bridge.query_tokens" not in account:
        progress("Making a new Q-Former, which has to be trained, too")
        _init_qformer(account, config)
    account.check(_wanted(config), config.to_dict())
    processor = _processor(words, config, own, pixels, instruction_tokens, tidy)
    _read_word_pieces(processor, tokenizer, blip2)
    entries = [Entry(name, account.bytes(name), _maker(account, name)) for name in sorted(account.names())]
    entries += _of_llm(words, config, merge, lora)
    record = _record(account, words, trained, whole) | ({"qformer": "random"} if made else {})
    with new_folder(out, ModelError) as folder:
        progress("Writing")
        _write(folder, entries, config, processor, words)
        if lora is not None and not merge:
            write_adapter(folder, lora)
        if verify:
            progress("Computing hashes")
            record[RECORDED] = hashes(folder, out.name)
        write_json(folder / RECORD, record)
    return out


def _write(
    folder: Path,
    entries: list[Entry],
    config: MiniChatConfig,
    processor: MiniChatProcessor,
    words: Llm,
) -> None:
    theirs = _generation(words)
    ids = _control_ids(words, theirs, processor)
    config.text_config.update(ids)
    write_tensors(folder, entries)
    config.save_pretrained(folder)
    GenerationConfig(**ids, suppress_tokens=theirs.suppress_tokens).save_pretrained(folder)
    processor.save_pretrained(folder)


def _chosen(template: str | None) -> tuple[str | None, Template | None]:
    """The template's name; and one of a person's own, which a model holds in the place of the tokenizer's."""
    if template is not None and Path(template).suffix in (".yaml", ".yml"):
        from minichat.prompt.chat_template import read_template

        return OWN, read_template(Path(template))
    if template not in (OWN, None):
        get_template(template)
    return template, None


@dataclass(frozen=True)
class _Parts:
    """Where the vision side is: in EVA's file or with what LAVIS trained, and a Q-Former's; or in a BLIP-2."""

    vit: Path | None
    eyes: Checkpoint | None
    qformer: Path | None
    blip2: str | None
    bridge: str | None
    whole: bool

    @property
    def read_qformer(self) -> bool:
        return self.bridge in (None, "qformer")

    def check(self, trained: Checkpoint | None) -> None:
        """Raise `SettingsError` for parts that are given twice or not at all."""
        if (self.vit is None and not self.eyes) == (self.blip2 is None):
            raise SettingsError("Give the vision encoder once: --vit for the original file, or --blip2.")
        if self.bridge not in (None, *BRIDGE_KINDS):
            raise SettingsError(f"bridge is {self.bridge!r}; it must be one of {', '.join(BRIDGE_KINDS)}.")
        if not self.read_qformer and self.qformer is not None:
            raise SettingsError(f"--qformer contradicts the bridge {self.bridge!r} (--no-qformer): drop one of them.")
        if self.whole and (self.blip2 is None or trained is not None or not self.read_qformer):
            raise SettingsError(
                "Give --llm: only a Hugging Face BLIP-2 or InstructBLIP, taken whole, has one of its own."
            )


def _vision_side(
    account: Account, trained: Checkpoint | None, parts: _Parts, sizes: Sizes
) -> tuple[dict[str, Any], dict[str, Any], MiniChatImageProcessor]:
    """Take in everything but the LLM; returns the vision encoder's and the bridge's configuration, and how pictures
    become pixels."""
    queries = ("query_tokens", "ln_vision.weight", "Qformer.bert.embeddings.LayerNorm.weight")
    original = None if parts.qformer is None else open_part(parts.qformer, "BLIP-2 Q-Former", *queries)
    known: dict[str, Any] = {}
    pixels: MiniChatImageProcessor | None = None
    if parts.eyes:  # it holds no block that is not used
        layers = sum(name.endswith(".attn.qkv.weight") for name in parts.eyes)
        vision = add_vision(account, parts.eyes, replace(sizes, vision_layers=sizes.vision_layers or layers))
    elif parts.vit is not None:
        names = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        vision = add_vision(account, open_part(parts.vit, "EVA vision encoder", *names), sizes)
    else:
        from minichat.weights.vision import add_vision_side

        vision, known, pixels = add_vision_side(
            account, str(parts.blip2), sizes, parts.read_qformer, "The vision model", parts.whole
        )
        sizes = replace(sizes, qformer_heads=known.get("num_attention_heads", sizes.qformer_heads))
    add_bridge(account, original, trained)
    bridge = bridge_sizes(account, vision, sizes, parts.bridge)
    if known and "qformer" in bridge:
        bridge["qformer"] |= known  # where tensors have other sizes than it says, it is refused below
    return vision, bridge, pixels or MiniChatImageProcessor(vision["image_size"])


def _family_template(words: Llm, projection: str, bridge: dict[str, Any], whole: str | None) -> str:
    """The template of a published BLIP-2 or InstructBLIP; the LLM's own where the projection is new."""
    if whole is None and not projection:
        return OWN
    from minichat.weights.vision import FAMILY

    kind = "instructblip" if bridge.get("instructed") else "blip-2"
    if (found := FAMILY[kind].get(words.config.model_type)) is None:
        raise SettingsError(
            f"No {kind} was published with an LLM of type {words.config.model_type!r}: give the --template that it was "
            "trained with."
        )
    return found


def _as_published(words: Llm, config: MiniChatConfig, padded: bool) -> None:
    """What LAVIS changes in its LLMs when it loads them."""
    text = config.text_config
    if text.model_type == "t5":  # blip2_t5.py: dense_act_fn "gelu", exact where FLAN-T5's own is the tanh form
        text.dense_act_fn = "gelu"
    if padded:  # blip2_vicuna_instruct.py adds [PAD] to the tokenizer, and a row for it
        rows = 1 + SentencePieceTokenizer(words.folder / MODEL_FILE).vocab_size
        text.vocab_size = max(text.vocab_size, rows)
        config.image_token_index = text.vocab_size


def _read_word_pieces(
    processor: MiniChatProcessor, tokenizer: str | os.PathLike[str] | None, blip2: str | None
) -> None:
    """Take in the word pieces of an instructed Q-Former. Raises `SettingsError` where nothing tells, or reads, them."""
    if not processor.instructed:
        if tokenizer is not None:
            raise SettingsError("--tokenizer is for a Q-Former that reads the question, and this one reads none.")
    elif tokenizer is not None:
        files = ["vocab.txt", "tokenizer*.json"]
        processor.read_word_pieces(find_folder(os.fspath(tokenizer), "The BERT tokenizer", files))
    elif blip2 is not None:
        processor.read_word_pieces(find_folder(blip2, "The BLIP-2 model", [f"{QFORMER}/*"]) / QFORMER)
    else:
        raise SettingsError(
            "This Q-Former reads the question, too: give --tokenizer, the folder with BERT's vocab.txt (bert-base-"
            "uncased) to which LAVIS adds [DEC]."
        )


def _recorded_size(trained: Checkpoint | None) -> int | None:
    """The side of the pictures that a run of MiniGPT-4 or MiniGPT-v2 says it was trained with."""
    config = None if trained is None else trained.extras.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    size = model.get("image_size") if isinstance(model, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def _check_lora(lora: Adapter | None, words: Llm) -> None:
    """An adapter that was trained with the projection must be of this LLM."""
    if lora is not None:
        shapes = {name: tuple(checkpoint.plain(name).shape) for name, checkpoint in words.tensors().items()}
        lora.check(shapes, tied=bool(words.config.tie_word_embeddings))


def _check_template(trained: Checkpoint, name: str, template: str | None) -> None:
    """What a training run recorded of its prompts must be what the template's training form spells."""
    if template is None:
        if name == "llama_proj":
            raise SettingsError("Give the --template that the projection was trained with.")
        return
    recorded = trained.extras.get("config")
    model = recorded.get("model") if isinstance(recorded, dict) else None
    spelled = model.get("prompt_template") if isinstance(model, dict) else None
    if not isinstance(spelled, str) or "{}" not in spelled:
        return

    def training_form(name: str) -> str | None:
        form = TEMPLATES.get(name if name.endswith("-train") else f"{name}-train")
        return None if form is None else f"{form.user_prefix}{{}}{form.user_suffix}{form.assistant_prefix}"

    wanted = training_form(template)
    if wanted is not None and wanted.split() != spelled.split():
        fitting = [name for name in TEMPLATES if (training_form(name) or "").split() == spelled.split()]
        hint = f"use --template {fitting[0]}" if fitting else "use the template it was trained with"
        raise ModelError(
            f"{trained.file} was trained with the prompt {spelled!r}, but the template {template!r} spells {wanted!r}: "
            f"{hint}."
        )


def _init_projection(account: Account, config: MiniChatConfig) -> None:
    """As the original begins: `nn.Linear`'s own random numbers, from a generator of ours."""
    size, width = config.image_feature_size, config.text_config.hidden_size

    def uniform(*shape: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        return (2 * torch.rand(*shape, generator=draw) - 1) / size**0.5

    account.replace("projection.weight", lambda: uniform(width, size))
    account.replace("projection.bias", lambda: uniform(width))


def _init_qformer(account: Account, config: MiniChatConfig) -> None:
    """As transformers makes one, and always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_bridge(config)
        torch.nn.init.normal_(made.get_parameter("query_tokens"), std=config.initializer_range)
    held = {f"bridge.{name}": tensor.detach() for name, tensor in made.state_dict().items()}
    for name in held.keys() - account.names():
        account.replace(name, partial(held.__getitem__, name))


def _check_width(account: Account, words: Llm) -> None:
    source, _ = projection_sizes(account)
    given, taken = account.shape("projection.weight")[0], words.config.hidden_size
    if given != taken:
        raise ModelError(
            f"{source} gives image tokens of width {given}, but the LLM {words.folder.name!r} takes {taken}: they do "
            "not belong together."
        )


def _wanted(config: MiniChatConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors but the LLM's."""
    with torch.device("meta"):
        model = MiniChatForConditionalGeneration(config)
    state = model.state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.startswith("language_model.")}


def _processor(
    words: Llm,
    config: MiniChatConfig,
    own: Template | None,
    pixels: MiniChatImageProcessor,
    instruction_tokens: int | None,
    tidy: bool,
) -> MiniChatProcessor:
    """Content is tokenised by the LLM's own SentencePiece model where it has one, as the originals did."""
    common: dict[str, Any] = {
        "template": config.template,
        "num_image_tokens": config.num_image_tokens,
        "image_token_id": config.image_token_index,
        "tidy": tidy,
    }
    if config.bridge_config.instructed:
        longest = config.bridge_config.qformer.max_position_embeddings
        common["max_instruction_tokens"] = asked = instruction_tokens or min(_INSTRUCTION, longest)
        if not 3 <= asked <= longest:
            raise SettingsError(f"instruction_tokens is {asked}; this Q-Former reads from 3 to {longest} word pieces.")
    elif instruction_tokens is not None:
        raise SettingsError("instruction_tokens is for a Q-Former that reads the question, and this one reads none.")
    model = words.folder / MODEL_FILE
    if model.is_file() and config.template != OWN:
        processor = MiniChatProcessor.from_tokenizer_model(model, image_size=pixels.size["height"], **common)
        processor.image_processor = pixels
    else:
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(words.folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            raise ModelError(
                f"The LLM {words.folder.name!r} has no tokenizer that can be used ({sentence(error)}): put its "
                f"{MODEL_FILE} there."
            ) from None
        if own is not None:
            from minichat.prompt.chat_template import fitted

            tokenizer, common["own_template"] = fitted(tokenizer, own), own.as_dict()
        processor = MiniChatProcessor(pixels, tokenizer, **common)
    count, rows = processor.content_tokenizer.vocab_size, words.config.vocab_size
    if not 0 <= rows - count <= _SPARE_ROWS:
        raise ModelError(
            f"The tokenizer in {words.folder.name!r} has {count} ids, but the LLM's vocabulary has {rows} "
            "(vocab_size): they do not belong together."
        )
    return processor


def _maker(account: Account, name: str) -> Callable[[], torch.Tensor]:
    """The projection is always in float32; all else stays as it was stored."""
    if name.startswith("projection."):
        return lambda: account.tensor(name).float()
    return lambda: account.tensor(name)


def _of_llm(words: Llm, config: MiniChatConfig, merge: bool, lora: Adapter | None) -> list[Entry]:
    """The LLM's tensors that the folder holds: all with `merge`, else those that get more rows than its files have."""

    def maker(checkpoint: Checkpoint, name: str, more: int) -> Callable[[], torch.Tensor]:
        if lora is not None and lora.changes(name):
            return lambda: lora.merged(name, checkpoint[name])
        if not more:
            return lambda: checkpoint[name]
        return lambda: torch.nn.functional.pad(checkpoint[name], (0, 0, 0, more))

    tensors = words.tensors()
    grown = {}
    if more := config.text_config.vocab_size - words.rows:
        grown = dict.fromkeys(words.vocabulary_tensors(), more)
    return [
        Entry(f"language_model.{name}", checkpoint.plain(name).nbytes, maker(checkpoint, name, grown.get(name, 0)))
        for name, checkpoint in tensors.items()
        if merge or name in grown
    ]


def _generation(words: Llm) -> GenerationConfig:
    """What an LLM's own files say of its replies."""
    with quiet():
        try:
            return GenerationConfig.from_pretrained(words.folder, local_files_only=True)
        except (OSError, ValueError, TypeError):
            return GenerationConfig.from_model_config(words.config)


def _control_ids(words: Llm, theirs: GenerationConfig, processor: MiniChatProcessor) -> dict[str, Any]:
    """Begin, end and padding: the tokenizer's, which spells the prompts, and what else ends a reply.

    An LLM's own files may be wrong: Vicuna v0's, as MiniGPT-4 publishes it, name 0, 1 and -1, but its tokenizer has 1
    and 2. How to sample is asked for, never inherited.
    """
    tokenizer = processor.content_tokenizer
    listed = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    known = range(words.config.vocab_size)
    others = (end for end in listed if end in known and end != tokenizer.bos_id)
    ends = dict.fromkeys([*_end_text(processor), processor.end_id, tokenizer.eos_id, *others])
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": processor.end_id if len(ends) == 1 else list(ends),
        "pad_token_id": theirs.pad_token_id if theirs.pad_token_id in known else tokenizer.pad_id,
    }


def _end_text(processor: MiniChatProcessor) -> list[int]:
    """The id of a line break that ends replies, where it has one, as BLIP-2 ends OPT's."""
    text, control = processor.spelling.end
    ids = encode_inside(processor.content_tokenizer, text) if control is None and not text.strip() else []
    return ids if len(ids) == 1 else []


def _record(account: Account, words: Llm, trained: Checkpoint | None, whole: bool) -> dict[str, Any]:
    """Where everything came from, and what was left out."""
    of_llm = "language_model." if whole else " "
    unused = {file: sorted(n for n in names if not n.startswith(of_llm)) for file, names in account.unused.items()}
    allowed = {
        glob: sorted(n for names in account.left_over.values() for n in names if fnmatchcase(n, glob))
        for glob in account.allowed
    }
    adapter = {} if words.adapter is None else {"adapter": _about(words.adapter)}
    return {
        "llm": words.shown,
        **adapter,
        "projection": trained.file if trained is not None else words.shown if whole else "random",
        "known_to_be_unused": {file: names for file, names in unused.items() if names},
        "allow_unused": allowed,
    }


def _about(adapter: Adapter) -> dict[str, Any]:
    """The LoRA adapter that the LLM's matrices are read with."""
    settings = {key: adapter.config.get(key) for key in ("peft_type", "r", "lora_alpha", "use_rslora")}
    return {"folder": adapter.folder.name, **settings, "changes": sorted(adapter.factors.keys() | adapter.whole)}
