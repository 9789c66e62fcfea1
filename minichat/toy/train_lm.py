"""The toy's language model: a tokenizer and a LLaMA from text alone, with scenes in words in a picture's place."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sentencepiece
import torch
from torch import Tensor
from torch.nn.functional import embedding
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from minichat.data.dataset import Renderer, Row
from minichat.data.example import StoredPicture, Where
from minichat.errors import DataError, SettingsError
from minichat.fileio import write_json
from minichat.model.loss import only_at, set_trainable, supervised, token_loss
from minichat.prompt.processor import MODEL_FILE, MiniChatProcessor
from minichat.prompt.render import IGNORED
from minichat.prompt.template import BOS, get_template
from minichat.prompt.tokenizer import ContentTokenizer, SentencePieceTokenizer
from minichat.toy.captions import LEVELS, NONE, OUTSIDE, SYMBOLS, TOKENS, WORDS, Bag, description, outside_description
from minichat.toy.dataset import SyntheticPicture
from minichat.toy.dialogues import ORDINALS, vocabulary_corpus
from minichat.toy.speech.lessons import spoken_corpus
from minichat.train.checkpoint import TRAINING
from minichat.train.config import Config, NewLanguage
from minichat.train.stages import OF_A_MODEL, Batch, Stage
from minichat.weights.checkpoint_io import Entry, write_tensors
from minichat.weights.hub import WEIGHTS, quiet, read_json

# --- Where something is, as numbers to begin with: neighbours are alike, and all are in order.


def sinusoidal_positions(places: int, rates: int) -> Tensor:
    """Codes of `places` in a row (places, 2 · rates): sines, then cosines, of half a wave over them to eleven."""
    speeds = torch.pi * 2.0 ** torch.linspace(0, 4.5, rates)
    angles = ((torch.arange(places) + 0.5) / places)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], -1)


# --- The built-in language model's tokenizer: LLaMA's kind, for the words of the synthetic world.


_LINES = 60_000  # of dialogue that it is trained on
_SPOKEN_LINES = 30_000  # of dialogue in people's words, which are longer


def train_tokenizer(size: int, template: str, seed: int = 0, *, people: bool = False) -> SentencePieceTokenizer:
    """A tokenizer of `size` pieces; bytes spell what it has never read.

    The template's delimiters are part of what it reads, so that they cost few tokens. Each of `description.WORDS` is
    one piece. Raises `SettingsError` where there are too few pieces for that.

    Args:
        people: it reads dialogues in people's words (`minichat.toy.speech`), not those of templates.
    """
    rng = random.Random(seed)
    corpus = spoken_corpus(rng, _SPOKEN_LINES) if people else vocabulary_corpus(rng, _LINES)
    model = io.BytesIO()
    spelled = get_template(template)
    question = spelled.user_prefix.removeprefix(BOS)
    delimiters = (question + spelled.picture_prefix, spelled.picture_suffix, question, spelled.user_suffix)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain(corpus, delimiters * 2_000),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            user_defined_symbols=list(SYMBOLS),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            character_coverage=1.0,
            minloglevel=2,
        )
        tokenizer = SentencePieceTokenizer(model.getvalue())
        word_ids(tokenizer)
    except (RuntimeError, KeyError):
        raise SettingsError(
            f"language.vocab_size is {size}, which is no number of pieces for the words of scenes: use 1024."
        ) from None
    return tokenizer


def word_ids(tokenizer: SentencePieceTokenizer) -> dict[str, int]:
    """The id of each of `description.WORDS` and `training.ORDINALS`, as it is spelled after another word.

    `KeyError` where one has none.
    """
    ids = {piece: number for number, (piece, _) in enumerate(tokenizer.pieces())}
    return {word: ids[word if word in SYMBOLS else f"▁{word}"] for word in (*WORDS, *ORDINALS)}


# --- Descriptions of scenes (`minichat.toy.captions`) as numbers, and what they sum to in a model's embeddings.


WORDS_AT_MOST = 6  # in one place
_RATES = 8  # of the sinusoidal codes of places
_EMPTY = -1


def synthetic(picture: StoredPicture, where: Where | str, stage: str) -> SyntheticPicture:
    """The same picture. Raises `DataError` for one of which nobody knows what it shows."""
    if not isinstance(picture, SyntheticPicture):
        raise DataError(f"{where}: the stage {stage} learns from synthetic data alone: use `format: synthetic`.")
    return picture


def in_numbers(descriptions: Sequence[Sequence[Bag]], numbers: Mapping[str, int]) -> Tensor:
    """The numbers of the words of I descriptions (I, 32, 6); -1 where a place has no further word."""
    told = np.full((len(descriptions), TOKENS, WORDS_AT_MOST), _EMPTY, np.int64)
    for picture, bags in enumerate(descriptions):
        for place, bag in enumerate(bags):
            told[picture, place, : len(bag)] = [numbers[word] for word in bag]
    return torch.from_numpy(told)


def summed(weight: Tensor, words: Tensor) -> Tensor:
    """The sum of each place's words: embeddings (V, H), numbers (I, 32, 6) → (I, 32, H)."""
    told = embedding(words.clamp(min=0), weight) * words.ge(0).unsqueeze(-1)
    return told.sum(2)


_THIRDS = {"x": ("left", "center", "right"), "y": ("top", "middle", "bottom")}


def has_words(tokenizer: ContentTokenizer) -> bool:
    """Whether each of `captions.WORDS` is one token, as the stage `language` makes them."""
    with contextlib.suppress(KeyError):
        return isinstance(tokenizer, SentencePieceTokenizer) and bool(word_ids(tokenizer))
    return False


def word_vectors(tokenizer: ContentTokenizer, embeddings: Tensor) -> Tensor:
    """What each of `captions.WORDS` is in an LLM's embeddings (V, H), as (W, H).

    The LLaMA of the stage `language` has a token for each. Another LLM has words: a word is the mean of its pieces, as
    it is spelled after another one. A level of a place is the LLM's word for that third of the picture and a sinusoidal
    code along random directions, which are the same in every run, so that neighbours are alike. Nothing and no drawn
    world are random directions. Codes and symbols are as long as its words are on average.
    """
    if has_words(tokenizer):
        ids = word_ids(tokenizer)  # type: ignore[arg-type]
        return embeddings[torch.tensor([ids[word] for word in WORDS], device=embeddings.device)]

    def spelled(word: str) -> Tensor:
        pieces = tokenizer.encode(_after_another(tokenizer, word))
        return embeddings[torch.tensor(pieces, device=embeddings.device)].mean(0)

    vectors = {word: spelled(word) for word in WORDS if word not in SYMBOLS}
    length = torch.stack(list(vectors.values())).norm(dim=-1).mean()
    random = torch.Generator().manual_seed(0)

    def as_long(directions: Tensor) -> Tensor:
        return (directions / directions.norm(dim=-1, keepdim=True)).to(embeddings) * length

    code = sinusoidal_positions(LEVELS, _RATES)  # (L, 2 · rates)
    for axis, thirds in _THIRDS.items():
        codes = as_long(code @ torch.randn(code.shape[1], embeddings.shape[1], generator=random))
        third = torch.stack([spelled(word) for word in thirds])
        for level in range(LEVELS):
            vectors[f"<{axis}{level}>"] = codes[level] + third[level * len(thirds) // LEVELS]
    for symbol in (NONE, OUTSIDE):
        vectors[symbol] = as_long(torch.randn(embeddings.shape[1], generator=random))
    return torch.stack([vectors[word] for word in WORDS])


def _after_another(tokenizer: ContentTokenizer, word: str) -> str:
    """A word as it stands after another; SentencePiece begins every text so."""
    return word if isinstance(tokenizer, SentencePieceTokenizer) else f" {word}"


# --- A language model from text alone: what is said about scenes, given in words where a picture will be.
#
# The 32 places of a picture hold its description (`minichat.toy.captions`), each place the sum of its words'
# embeddings. So the model learns to look up what it is asked about, and a Q-Former can learn later to fill these
# places from pixels, through the frozen model.


_ROUND = 32  # lengths of rows: oneDNN keeps a product for each shape; with 2,000 a run of the small model took 6 GiB


class Language(Stage):
    """The next token of replies about described scenes; of a LLaMA that begins with nothing."""

    trainable: ClassVar[tuple[str, ...]] = ("model",)
    lighter: ClassVar[tuple[str, ...]] = ("run.micro_batch_size", "data.max_length")
    unused: ClassVar[tuple[str, ...]] = OF_A_MODEL

    def __init__(self, config: Config, device: torch.device) -> None:
        """Raises `SettingsError` for sizes that cannot be, and for a `start` that this stage did not write."""
        sizes = config.language or NewLanguage()
        self._tokenizer = _tokenizer(sizes, config.seed)
        self._words = word_ids(self._tokenizer)
        self._processor = MiniChatProcessor.from_tokenizer_model(
            self._tokenizer.serialized,
            image_size=1,
            template=sizes.template,
            num_image_tokens=TOKENS,
            tidy=True,  # as the model that it becomes a part of
        )
        self._noise = sizes.noise
        torch.manual_seed(config.seed)
        self.model = self._init_model(sizes).to(device)
        set_trainable(self.model, config.trainable or self.trainable)
        context = self.model.config.max_position_embeddings
        self.longest = min(config.data.max_length or context, context)
        self.render = Renderer(self._processor, max_length=self.longest)

    def _init_model(self, sizes: NewLanguage) -> Any:
        model: Any
        if sizes.initialize_from is None:
            model = LlamaForCausalLM._from_config(_llama(sizes, self._tokenizer), attn_implementation="eager")
            prepare = _spread_places
        else:
            with quiet():
                model = LlamaForCausalLM.from_pretrained(
                    sizes.initialize_from, dtype=torch.float32, attn_implementation="eager", local_files_only=True
                )
            prepare = _part_unused
        with torch.no_grad():
            prepare(model.get_input_embeddings().weight, self._words)
        return model

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows → `input_ids`, `attention_mask` (B, T), `words` (I, 32, 6) and what is supervised at which positions."""
        longest = -(-max(len(row.ids) for row in rows) // _ROUND) * _ROUND
        ids = np.zeros((len(rows), longest), np.int64)
        labels = np.full((len(rows), longest), IGNORED, np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], labels[number, : len(row.ids)] = row.ids, row.labels
        filled = np.arange(longest) < np.array([len(row.ids) for row in rows])[:, None]
        after = np.roll(labels, -1, 1)
        after[:, -1] = IGNORED
        positions, targets = supervised(torch.from_numpy(after.flatten()))
        told = [bags for row in rows for bags in _bags([synthetic(p, row.where, "language") for p in row.pictures])]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(filled.astype(np.int64)),
            "words": in_numbers(told, self._words),
            "positions": positions,
            "targets": targets,
        }

    def count(self, batch: Batch) -> int:
        """The tokens of replies and their ends."""
        return int(batch["targets"].ne(IGNORED).sum())

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the next-token cross-entropies of the targets."""
        ids, weight = batch["input_ids"], self.model.get_input_embeddings().weight
        slots = ids.eq(self._processor.image_token_id)  # (B, T)
        embeds = embedding(ids.masked_fill(slots, 0), weight)  # (B, T, H)
        places = self._places(weight, batch["words"])  # (I, 32, H)
        embeds = embeds.masked_scatter(slots.unsqueeze(-1), places.to(embeds.dtype))
        with only_at(self.model.get_output_embeddings(), batch["positions"]):
            logits = self.model(inputs_embeds=embeds, use_cache=False).logits  # (1, N, V)
        return token_loss(logits, batch["targets"], 1)

    def _places(self, weight: Tensor, words: Tensor) -> Tensor:
        """The sum of each place's words, and some noise: (I, 32, 6) → (I, 32, H)."""
        places = summed(weight, words)
        if self.model.training and self._noise:
            places = places + self._noise * weight.detach().square().mean().sqrt() * torch.randn_like(places)
        return places

    def write(self, out: Path, base: str, facts: Mapping[str, Any]) -> None:
        """A folder that transformers opens, and that `minichat convert --llm` takes; config.json comes last."""
        (out / MODEL_FILE).write_bytes(self._tokenizer.serialized)
        self._processor.tokenizer.save_pretrained(out)
        write_json(out / TRAINING, dict(facts))
        model = self.model.to(torch.bfloat16)
        tied = "lm_head.weight"  # the embeddings
        entries = [Entry(name, t.nbytes, lambda t=t: t) for name, t in model.state_dict().items() if name != tied]  # type: ignore[misc]
        write_tensors(out, entries)
        # The words of descriptions are read by the model alone.
        unsaid = [self._tokenizer.encode(symbol)[-1] for symbol in SYMBOLS]
        control: Any = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "suppress_tokens": unsaid}
        GenerationConfig(**control).save_pretrained(out)
        model.config.architectures, model.config.dtype = [type(model).__name__], torch.bfloat16
        model.config.save_pretrained(out)


def _tokenizer(sizes: NewLanguage, seed: int) -> SentencePieceTokenizer:
    if sizes.initialize_from is None:
        return train_tokenizer(sizes.vocab_size, sizes.template, seed, people=sizes.corpus == "people")
    folder = Path(sizes.initialize_from)
    if not all((folder / name).is_file() for name in (MODEL_FILE, TRAINING, WEIGHTS)) or _stage(folder) != "language":
        raise SettingsError(
            f"language.initialize_from is {sizes.initialize_from}, where the stage language has not written its model: "
            "name the folder of a finished run, or leave it out to begin with nothing."
        )
    return SentencePieceTokenizer((folder / MODEL_FILE).read_bytes())


def _stage(folder: Path) -> Any:
    """What wrote the model in a folder: another stage's would be read as a LLaMA of the default sizes."""
    return read_json(folder, TRAINING).get("training", {}).get("config", {}).get("stage")


def _llama(sizes: NewLanguage, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=sizes.width,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.context_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=0,
    )


def _bags(pictures: Sequence[SyntheticPicture]) -> Iterator[list[Bag]]:
    """The descriptions of a row's pictures.

    Of two, half the time each place also tells which of them it is in. A model that was never told found no way to the
    answer to "in which picture is …?": it has to mark the places itself, and to look the mark up, and the one is of no
    use without the other. What it is told, it can look up; and then it pays to tell itself.
    """
    numbered = 1 < len(pictures) <= len(ORDINALS) and random.Random(pictures[0].seed).random() < 0.5
    for number, picture in enumerate(pictures):
        mark = (ORDINALS[number],) if numbered else ()
        yield [(*bag, *mark) for bag in _told(picture)]


def _told(picture: SyntheticPicture) -> list[Bag]:
    if picture.scene is None:
        return outside_description()
    rng = random.Random(picture.seed)
    return description(picture.scene, rng if rng.random() < 0.7 else None)


def _spread_places(weight: Tensor, words: Mapping[str, int]) -> None:
    """Words for places begin as sines and cosines of their levels: neighbours alike, in order along each axis."""
    code = weight.std() * sinusoidal_positions(LEVELS, weight.shape[1] // 2)  # (levels, width)
    for axis in "xy":
        order = torch.randperm(code.shape[1])
        for level in range(LEVELS):
            weight[words[f"<{axis}{level}>"], : code.shape[1]] = code[level, order]


_ALIKE = 0.8  # cosine: of rows that differ at all, few come near


def _part_unused(weight: Tensor, words: Mapping[str, int]) -> None:
    """Give each piece that no text has used yet half a vector of its own; `weight` (V, H) changes in place.

    The softmax pushes all that is never said the same way, until it has one vector, `<unk>`'s: no one could tell two
    such pieces apart, read or written. The half that they share keeps them unsaid until they are learned.
    """
    common = weight[0].clone()
    alike = torch.cosine_similarity(weight, common[None], dim=1) > _ALIKE
    alike[list(words.values())] = False
    if alike.sum() > 1:
        own = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
        own *= common.norm() / own.norm(dim=1, keepdim=True)
        weight[alike] = (weight[alike] + own[alike]) / 2
