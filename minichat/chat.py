"""The loaded bot: a model, its processor, and what they are used for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from PIL import Image
from torch import Tensor

from minichat.errors import PromptError, SettingsError
from minichat.generation import GenerationSettings, generate_rows
from minichat.hardware.spreading import entry_device
from minichat.history import check_fits
from minichat.images import Source
from minichat.prompt.conversation import Conversation
from minichat.session import ChatSession, sources
from minichat.stopping import Stops
from minichat.turnstile import Turnstile

if TYPE_CHECKING:
    from minichat.model import MiniChatForConditionalGeneration
    from minichat.prompt.processing import MiniChatProcessor

__all__ = ["Caption", "ChatSession", "MiniChat"]

CAPTION_PROMPT = "Describe this image in detail."
_PICTURES_AT_ONCE = 8


class Caption(str):
    """What was said of a picture. `finish` is "stop", or "length" where the limit of tokens cut it off."""

    finish: Literal["stop", "length"]

    def __new__(cls, text: str, finish: Literal["stop", "length"] = "stop") -> Self:
        made = super().__new__(cls, text)
        made.finish = finish
        return made


class MiniChat:
    """A model that is ready to talk. Any number of conversations and threads may use it at once."""

    def __init__(self, model: MiniChatForConditionalGeneration, processor: MiniChatProcessor, name: str = "") -> None:
        """Take over a model and its processor (`minichat.load` makes both). The model is put into evaluation mode."""
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.turnstile = Turnstile()  # one step of one reply at a time
        self.stops = _stops(model, processor)

    def __repr__(self) -> str:
        return f"MiniChat({self.name!r}, device={str(self.device)!r})"

    @property
    def device(self) -> torch.device:
        """Where the LLM's embedding is, and so where a prompt goes."""
        return entry_device(self.model)

    @property
    def context(self) -> int | None:
        """How many tokens a conversation may have, pictures and reply included; None if the LLM sets no limit."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def chat(
        self,
        *,
        history: Literal["ids", "text"] = "ids",
        conversation: Conversation | None = None,
        **defaults: Any,
    ) -> ChatSession:
        """Begin a conversation, or go on with `conversation`; `defaults` are settings for all its replies.

        Raises `SettingsError` for a setting that does not exist or is out of range.
        """
        return ChatSession(self, history=history, conversation=conversation, **defaults)

    def caption(
        self,
        images: Sequence[Source | Sequence[Source]],
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int | Sequence[int] = GenerationSettings.max_new_tokens,
        batch_size: int = 8,
        seed: int | Sequence[int | None] | None = None,
        **settings: Any,
    ) -> list[Caption]:
        """Describe each picture; `batch_size` of them at a time. A caption is a string that says how it ended.

        Args:
            images: what `minichat.images.load` takes, one or several pictures for each caption.
            prompt: the question, or one for each caption; by default a request for a detailed description. "" for a
                model that learnt from pictures and texts without a question.
            max_new_tokens: a caption is cut after so many, and its `finish` is then "length"; one for all, or one for
                each.
            seed: of sampled captions, one for all or one for each: it alone decides what is drawn for a picture.
            settings: as for `GenerationSettings`.

        Raises:
            ImageError: for the first picture that cannot be opened.
            SettingsError: for a setting out of range.
            ContextError: if a prompt is too long for the model.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= 4096:
            raise SettingsError(f"batch_size is {batch_size!r}; it must be a whole number from 1 to 4096.")
        rows = [sources(row) for row in sources(images)]
        if prompt is None:
            prompt = CAPTION_PROMPT
        prompts = [prompt] * len(rows) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(rows):
            raise PromptError(f"There are {len(prompts)} prompts for {len(rows)} captions: give one, or one for each.")
        base = GenerationSettings().updated(**settings)
        lengths, seeds = _each("max_new_tokens", max_new_tokens, len(rows)), _each("seed", seed, len(rows))
        chosen = [base.updated(max_new_tokens=most, seed=own) for most, own in zip(lengths, seeds, strict=True)]
        if not rows:
            base.updated(**{n: v for n, v in (("max_new_tokens", max_new_tokens), ("seed", seed)) if _is_one(v)})
        captions: dict[int, Caption] = {}
        for batch in _batches(chosen, batch_size):
            asked = [Conversation().user(prompts[place], rows[place]) for place in batch]
            captions |= zip(batch, self._answer_all(asked, [chosen[place] for place in batch]), strict=True)
        return [captions[place] for place in range(len(rows))]

    def _answer_all(
        self, conversations: Sequence[Conversation], settings: Sequence[GenerationSettings]
    ) -> list[Caption]:
        """`settings` differ in lengths and seeds alone."""
        rendered = [self.processor.render(c, add_generation_prompt=True) for c in conversations]
        for conversation, prompt, chosen in zip(conversations, rendered, settings, strict=True):
            check_fits(conversation, len(prompt.ids), chosen.max_new_tokens, self.context)
        batch = self.processor.batch(rendered, padding_side="left").to(self.device)
        with self.turnstile, torch.inference_mode():
            embeds = self.model.embed(batch["input_ids"], batch.get("pixel_values"))  # (B, T, H)
        lengths = [chosen.max_new_tokens for chosen in settings]
        replies = generate_rows(
            self.model,
            embeds,
            batch["attention_mask"],
            settings[0],
            self.processor.content_tokenizer,
            self.stops,
            seeds=[chosen.seed for chosen in settings],
            lengths=lengths if len(set(lengths)) > 1 else None,
            turnstile=self.turnstile,
        )
        return [Caption(reply.text, "stop" if reply.finished else "length") for reply in replies]

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures → their features (I, n, D) before the projection, a few at a time."""
        parts = []
        for start in range(0, len(pictures), _PICTURES_AT_ONCE):
            some = list(pictures[start : start + _PICTURES_AT_ONCE])
            pixels = self.processor.image_processor(some, return_tensors="pt")["pixel_values"]  # (I, 3, S, S)
            with self.turnstile, torch.inference_mode():
                parts.append(self.model.encode_features(pixels.to(self.model.device)))
        return torch.cat(parts)

    def state(self) -> tuple[Any, ...]:
        """Changes whenever a weight or the preprocessing does: what was computed before is then of no use."""
        # Of an LLM that is spread, parts are on the meta device until they are used, each time as other objects.
        here = (p for p in self.model.parameters() if not p.is_meta)
        weights = hash(tuple((id(p), 0 if p.is_inference() else p._version) for p in here))
        return weights, repr(self.processor.image_processor.to_dict())


def _is_one(value: Any) -> bool:
    """Whether a setting is for all, and no sequence of one for each."""
    return isinstance(value, str) or not isinstance(value, Sequence)


def _each(name: str, value: Any, count: int) -> list[Any]:
    """A setting for each of `count` captions: the one for all, or those that are given."""
    if _is_one(value):
        return [value] * count
    if len(value) != count:
        raise SettingsError(f"There are {len(value)} values of {name} for {count} captions: give one, or one for each.")
    return list(value)


def _batches(settings: Sequence[GenerationSettings], size: int) -> Iterator[list[int]]:
    """The places that are answered together: in order, and where beams are searched only those of one length."""
    groups: dict[int, list[int]] = {}
    for place, chosen in enumerate(settings):
        groups.setdefault(chosen.max_new_tokens if chosen.num_beams > 1 else 0, []).append(place)
    for places in groups.values():
        yield from (places[start : start + size] for start in range(0, len(places), size))


def _stops(model: MiniChatForConditionalGeneration, processor: MiniChatProcessor) -> Stops:
    """What ends a reply: the template's end and stop strings, the tokenizer's end token, the generation config's."""
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    sequences = [(int(end),) for end in (processor.end_id, processor.content_tokenizer.eos_id, *listed)]
    return Stops(processor.spelling.stops, tuple(sequences))
