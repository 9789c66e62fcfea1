"""Published weights, and the vision side of Hugging Face's BLIP-2 → a folder that `minichat.load` opens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from minichat.errors import ModelError, SettingsError, sentence
from minichat.fileio import new_folder, write_json
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.prompt.processor import MODEL_FILE, MiniChatImageProcessor, MiniChatProcessor
from minichat.prompt.template import OWN, TEMPLATES, get_template
from minichat.weights.check_config import building, check_parts, check_values
from minichat.weights.checkpoint_io import Checkpoint, Entry, read_checkpoint, write_tensors
from minichat.weights.hub import WEIGHTS, find_folder, quiet, read_json, verify, weight_files, weight_map
from minichat.weights.key_map import (
    HUGGING_FACE_BLIP2,
    HUGGING_FACE_VIT,
    OUR_VISION_SIDE,
    OUR_VIT,
    Account,
    Sizes,
    add_bridge,
    add_vision,
    bridge_sizes,
    open_part,
    projection_sizes,
    resize_positions,
)
from minichat.weights.llm import RECORD, RECORDED, Adapter, Llm, find_llm, hashes

# --- The vision side of a Hugging Face BLIP-2, or of a model of ours: only the files that hold it are fetched and
# read.


_INDEX = f"{WEIGHTS}.index.json"
CONFIGS = ("config.json", _INDEX)
_OWN = ("*.json", "*.safetensors")  # of a model of ours on the hub
RETRIEVAL = "Blip2ForImageTextRetrieval"


def add_vision_side(
    account: Account, name: str, sizes: Sizes, qformer: bool = True, what: str = "The BLIP-2 model"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take in a vision encoder, Q-Former and queries; returns the configurations of the first two.

    `name`: a BLIP-2's folder or hub id, what stage 1 left, or the folder or hub id of a model of ours. A BLIP-2's
    last norm is the originals' `ln_vision`; here it has their eps of 1e-5, as MiniGPT-4 was trained, not the 1e-6 that
    transformers gives it. Without `qformer` the vision encoder alone is taken, and no configuration of the other.
    `what` was looked for, where nothing is found.

    Raises `ModelError` for another model or one that is not whole, or a file that did not come as it was published.
    """
    folder = find_folder(name, what, CONFIGS)
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if kind not in ("blip-2", "minichat"):
        raise ModelError(f"{folder.name!r} holds a model of type {kind!r}, not 'blip-2' or 'minichat'.")
    check_values(config, f"config.json in {folder.name!r}")
    if kind == "minichat":
        folder = find_folder(name, what, _OWN)
        keys, files = OUR_VISION_SIDE if qformer else OUR_VIT, weight_files(folder)
    else:
        keys, files = HUGGING_FACE_BLIP2 if qformer else HUGGING_FACE_VIT, vision_files(folder, qformer)
        folder = find_folder(name, what, [*CONFIGS, *files])
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise ModelError(f"The BLIP-2 model {folder.name!r} has no {missing[0]}: some of its weights are missing.")
        verify(folder, files)
    for file in files:
        account.add(read_checkpoint(folder / file), keys)
    check_parts(config, account.names(), f"config.json in {folder.name!r}")
    with building(f"config.json in {folder.name!r}"):
        vision, known = _configs(account, config, sizes)
    return vision, known if qformer else {}


def vision_files(folder: Path, qformer: bool = True) -> list[str]:
    """The files of a BLIP-2 that hold what is taken of it, by its index. Raises `ModelError` for a damaged one."""
    if not (folder / _INDEX).is_file():
        return [WEIGHTS]
    keys = HUGGING_FACE_BLIP2 if qformer else HUGGING_FACE_VIT
    return sorted({file for name, file in weight_map(folder, _INDEX).items() if keys.target(name) is not None})


def _configs(account: Account, config: dict[str, Any], sizes: Sizes) -> tuple[dict[str, Any], dict[str, Any]]:
    from transformers import Blip2QFormerConfig, Blip2VisionConfig

    vision = Blip2VisionConfig(**(config.get("vision_config") or {})).to_diff_dict()
    vision.setdefault("hidden_size", Blip2VisionConfig().hidden_size)
    bridge = config.get("bridge_config") or {"qformer": config.get("qformer_config")}
    qformer = Blip2QFormerConfig(**(bridge.get("qformer") or {})).to_diff_dict()
    if config.get("architectures") == [RETRIEVAL]:  # what stage 1 left: its text branch ends here
        qformer |= {"use_qformer_text_input": False, "vocab_size": Blip2QFormerConfig().vocab_size}
    if qformer.get("use_qformer_text_input"):
        raise ModelError("The Q-Former of this BLIP-2 reads text, too: MiniChat's does not.")
    given = Blip2VisionConfig(**vision)
    size = sizes.image_size or given.image_size
    if size % given.patch_size:
        raise SettingsError(f"image_size is {size}; it must be a multiple of the patch size {given.patch_size}.")
    resize_positions(account, size // given.patch_size)
    drop = ("model_type", "transformers_version", "dtype", "torch_dtype", "architectures")
    vision = {key: value for key, value in {**vision, "image_size": size}.items() if key not in drop}
    return vision, {key: value for key, value in qformer.items() if key not in drop}


# --- Published weights → a folder that `minichat.load` opens: `minichat convert`.


_SPARE_ROWS = 1024  # an LLM's embedding may be padded so far beyond its tokenizer


def convert(
    out: Path,
    *,
    llm: str,
    template: str = OWN,
    projection: Path | None = None,
    vit: Path | None = None,
    qformer: Path | None = None,
    blip2: str | None = None,
    no_qformer: bool = False,
    merge: bool = False,
    vision_heads: int | None = None,
    vision_layers: int | None = None,
    qformer_heads: int | None = None,
    image_size: int | None = None,
    allow_unused: Iterable[str] = (),
    verify: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write a model's folder from published files, whole or not at all.

    Args:
        out: a new folder.
        llm: a Hugging Face folder, a GGUF file, a hub id or the name of a packaged LLM; referred to, or copied with
            `merge`.
        template: the prompt template that the weights were trained with; "tokenizer": the LLM's own `chat_template`.
        projection: what a training run of MiniGPT-4 saved (`llama_proj.*`). None: a random one, always the same, for
            training to begin with.
        vit, qformer: EVA's ViT and BLIP-2's Q-Former as the originals published them; or `blip2`, which holds both: a
            Hugging Face BLIP-2, what stage 1 alone left (`write_stage1`), or a model of ours that another LLM is put
            behind. Without a Q-Former, patches are joined (MiniGPT-4 with Llama-2).
        no_qformer: take the vision encoder alone from `blip2`.
        vision_heads, vision_layers, qformer_heads, image_size: what shapes do not tell; default: as published.
        allow_unused: globs of tensors that may be left out although nothing is known of them; recorded in the folder.
        verify: record hashes of all that was written and of the LLM, which `load(..., verify=True)` holds them against.
        progress: is told what is being done.

    Raises:
        ModelError: for a file that is damaged, unsafe or not what it should be, and for parts that do not belong
            together; nothing is left behind then.
        SettingsError: for a size that is impossible, or that nothing tells.
        PromptError: for a template that does not exist, or that cannot be spelled piece by piece.
    """
    if template != OWN:
        get_template(template)
    if (vit is None) == (blip2 is None):
        raise SettingsError("Give the vision encoder once: --vit for the original file, or --blip2.")
    if no_qformer and qformer is not None:
        raise SettingsError("--qformer and --no-qformer contradict each other: drop one of them.")
    sizes = Sizes(vision_heads, vision_layers, qformer_heads, image_size)
    account = Account(allow_unused)
    trained = None
    if projection is not None:
        trained = open_part(projection, "MiniGPT-4 projection", "llama_proj.weight", "llama_proj.bias")
        _check_template(trained, template)
    progress("Reading the vision side")
    vision, bridge = _vision_side(account, trained, vit, qformer, blip2, sizes, not no_qformer)
    progress("Looking at the LLM")
    words = find_llm(llm)
    if trained is not None:
        _check_width(account, words)
    words.verify()
    if words.adapter is not None:
        progress(f"Adding the LoRA adapter {words.adapter.folder.name!r} to the LLM")
    config = MiniChatConfig(
        vision_config=vision,
        bridge_config=bridge,
        text_config=words.config,
        template=template,
        llm=None if merge else words.reference(),
        architectures=[MiniChatForConditionalGeneration.__name__],
    )
    if trained is None:
        _init_projection(account, config)
    account.check(_wanted(config), config.to_dict())
    processor = _processor(words, config)
    ids = _control_ids(words, processor)
    config.text_config.update(ids)
    entries = [Entry(name, account.bytes(name), _maker(account, name)) for name in sorted(account.names())]
    if merge:
        entries += _copied(words)
    with new_folder(out, ModelError) as folder:
        progress("Writing")
        write_tensors(folder, entries)
        config.save_pretrained(folder)
        GenerationConfig(**ids).save_pretrained(folder)
        processor.save_pretrained(folder)
        record = _record(account, words, trained)
        if verify:
            progress("Computing hashes")
            record[RECORDED] = hashes(folder, out.name)
        write_json(folder / RECORD, record)
    return out


def _vision_side(
    account: Account,
    trained: Checkpoint | None,
    vit: Path | None,
    qformer: Path | None,
    blip2: str | None,
    sizes: Sizes,
    read_qformer: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take in everything but the LLM; returns the vision encoder's and the bridge's configuration."""
    queries = ("query_tokens", "ln_vision.weight", "Qformer.bert.embeddings.LayerNorm.weight")
    original = None if qformer is None else open_part(qformer, "BLIP-2 Q-Former", *queries)
    known: dict[str, Any] = {}
    if vit is not None:
        names = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        vision = add_vision(account, open_part(vit, "EVA vision encoder", *names), sizes)
    else:
        vision, known = add_vision_side(account, str(blip2), sizes, read_qformer)
        sizes = Sizes(sizes.vision_heads, sizes.vision_layers, known.get("num_attention_heads", sizes.qformer_heads))
    add_bridge(account, original, trained)
    bridge = bridge_sizes(account, vision, sizes)
    if known and "qformer" in bridge:
        bridge["qformer"] |= known
    return vision, bridge


def _check_template(trained: Checkpoint, template: str) -> None:
    """What a training run recorded of its prompts must be what the template's training form spells."""
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


def _processor(words: Llm, config: MiniChatConfig) -> MiniChatProcessor:
    """Content is tokenised by the LLM's own SentencePiece model where it has one, as the originals did."""
    common: dict[str, Any] = {
        "template": config.template,
        "num_image_tokens": config.num_image_tokens,
        "image_token_id": config.image_token_index,
    }
    size, model = config.vision_config.image_size, words.folder / MODEL_FILE
    if model.is_file() and config.template != OWN:
        processor = MiniChatProcessor.from_tokenizer_model(model, image_size=size, **common)
    else:
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(words.folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            raise ModelError(
                f"The LLM {words.folder.name!r} has no tokenizer that can be used ({sentence(error)}): put its "
                f"{MODEL_FILE} there."
            ) from None
        processor = MiniChatProcessor(MiniChatImageProcessor(size=size), tokenizer, **common)
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


def _copied(words: Llm) -> list[Entry]:
    def maker(checkpoint: Checkpoint, name: str) -> Callable[[], torch.Tensor]:
        return lambda: checkpoint[name]

    return [
        Entry(f"language_model.{name}", checkpoint.plain(name).nbytes, maker(checkpoint, name))
        for name, checkpoint in words.tensors().items()
    ]


def _control_ids(words: Llm, processor: MiniChatProcessor) -> dict[str, Any]:
    """Begin, end and padding: the tokenizer's, which spells the prompts, and what else ends a reply.

    An LLM's own files may be wrong: Vicuna v0's, as MiniGPT-4 publishes it, name 0, 1 and -1, but its tokenizer has 1
    and 2. How to sample is asked for, never inherited.
    """
    tokenizer = processor.content_tokenizer
    with quiet():
        try:
            theirs = GenerationConfig.from_pretrained(words.folder, local_files_only=True)
        except (OSError, ValueError, TypeError):
            theirs = GenerationConfig.from_model_config(words.config)
    listed = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    known = range(words.config.vocab_size)
    others = (end for end in listed if end in known and end != tokenizer.bos_id)
    ends = dict.fromkeys([processor.end_id, tokenizer.eos_id, *others])
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": processor.end_id if len(ends) == 1 else list(ends),
        "pad_token_id": theirs.pad_token_id if theirs.pad_token_id in known else tokenizer.pad_id,
    }


def _record(account: Account, words: Llm, trained: Checkpoint | None) -> dict[str, Any]:
    """Where everything came from, and what was left out."""
    allowed = {
        glob: sorted(n for names in account.left_over.values() for n in names if fnmatchcase(n, glob))
        for glob in account.allowed
    }
    adapter = {} if words.adapter is None else {"adapter": _about(words.adapter)}
    return {
        "llm": words.shown,
        **adapter,
        "projection": "random" if trained is None else trained.file,
        "known_to_be_unused": {file: sorted(names) for file, names in account.unused.items()},
        "allow_unused": allowed,
    }


def _about(adapter: Adapter) -> dict[str, Any]:
    """The LoRA adapter that the LLM's matrices are read with."""
    settings = {key: adapter.config.get(key) for key in ("peft_type", "r", "lora_alpha", "use_rslora")}
    return {"folder": adapter.folder.name, **settings, "changes": sorted(adapter.factors.keys() | adapter.whole)}
