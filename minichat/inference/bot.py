"""The loaded bot: a model, its processor, and what they are used for."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, Self

import torch
from PIL import Image
from torch import Tensor

from minichat.device.placement import entry_device
from minichat.errors import ImageError, ModelError, PromptError, SettingsError, shown
from minichat.images import Source, identity
from minichat.inference.engine import Engine
from minichat.inference.generate import generate_rows
from minichat.inference.kv_cache import shared
from minichat.inference.looked import Looked, looked
from minichat.inference.rank import log_probabilities
from minichat.inference.request import Prompt, Request, Sight, StepLock, check_context, prompt_keys
from minichat.inference.sampling import GenerationSettings, Stops
from minichat.inference.session import ChatSession, sources
from minichat.model import MiniChatForConditionalGeneration
from minichat.model.minichat import words_of
from minichat.prompt.conversation import Conversation

if TYPE_CHECKING:
    from minichat.prompt.processor import MiniChatProcessor
    from minichat.prompt.render import Rendered

_PICTURES_AT_ONCE = 8


class Caption(str):
    """What was said of a picture. `finish` is "stop", or "length" where the limit of tokens cut it off."""

    finish: Literal["stop", "length"]

    def __new__(cls, text: str, finish: Literal["stop", "length"] = "stop") -> Self:
        made = super().__new__(cls, text)
        made.finish = finish
        return made


class Adapters(Protocol):
    """The adapters by name beside a bot's model.

    They are what `minichat export RUN --format projection --out MODEL/adapters/NAME` writes.
    """

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        ...

    def use(self, name: str | os.PathLike[str] | None) -> None:
        """Let the bot answer with another adapter and its projection; `None`: as the model stands without them.

        `name`: one of these, or the folder of a run on the same model. The matrices are made of the model's files, so
        they are those of a fresh loading, to the bit. Chats stay as they are; what they hold is read anew.

        Raises:
            ModelError: where there is none of that name, it belongs to another model, or is damaged. The bot answers as
                before then, unless the model's own files could not be read to the end.
            SettingsError: where the LLM is quantized or spread over devices.
        """
        ...


class Sights:
    """Pictures as the model is shown them. Equal ones that are in use at a time are one. For any thread."""

    def __init__(self, bot: MiniChat, limit: int = 256 * 2**20) -> None:
        """`limit`: so many bytes are kept of pictures that nobody uses any more, the last ones."""
        self._bot, self._limit = bot, limit
        self._lock = threading.Lock()
        self._used: weakref.WeakValueDictionary[str, Sight] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[str, Sight] = OrderedDict()
        self._state: Any = None

    def of(self, pictures: Mapping[str, tuple[Image.Image, str]], *, keep: bool = True) -> dict[str, Sight]:
        """Each picture with its question, by the name of what the LLM is shown of it (`MiniChat.seen_as`).

        Those that are new are still to be encoded. `keep`: for whoever asks about the same pictures again.
        """
        state = self._bot.state()
        with self._lock:
            if state != self._state:  # other weights or preprocessing
                self._kept.clear()
                self._used.clear()
                self._state = state
            found = {name: self._used.get(name) for name in pictures}
        sights = {name: found[name] or self._bot.new_sight(*shown) for name, shown in pictures.items()}
        with self._lock:
            for name in sights if state == self._state else ():
                sights[name] = self._used.setdefault(name, sights[name])  # another thread may have been the first
                if keep:
                    self._kept[name] = sights[name]
                    self._kept.move_to_end(name)
            while sum(sight.nbytes for sight in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
        return sights


class MiniChat:
    """A model that is ready to talk. Any number of conversations and threads may use it at once."""

    def __init__(self, model: MiniChatForConditionalGeneration, processor: MiniChatProcessor, name: str = "") -> None:
        """Take over a model and its processor (`minichat.load` makes both). The model is put into evaluation mode."""
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.step_lock = StepLock()  # one step of one reply at a time
        self.sights = Sights(self)
        self.stops = _stops(model, processor)
        #: None where it was not loaded from a folder, or without what an adapter adds.
        self.adapters: Adapters | None = None
        self.engine = Engine(model, step_lock=self.step_lock, state=lambda: _state(model, processor), see=self.see)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ModelError(
            "A bot is not copied or pickled: any number of chats and threads may use one, and another process "
            "loads its own (minichat.load)."
        )

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

    @property
    def caption_prompt(self) -> str:
        """What asks for a caption where nobody says another thing: of most a request for a detailed description."""
        return self.processor.spelling.caption

    @property
    def takes_system(self) -> bool:
        """Whether a conversation may bring a system text."""
        return self.processor.spelling.takes_system

    @property
    def names_boxes(self) -> bool:
        """Whether the model was taught boxes (`minichat.prompt.boxes`), as far as its template tells: MiniGPT-v2's."""
        return self.processor.spelling.name.startswith("minigpt-v2")

    @functools.cached_property
    def captioner(self) -> MiniChatProcessor:
        """The processor that spells what asks for a caption: another than a chat's where the template says so."""
        return self.processor.with_template(self.processor.spelling.captions or None)

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
            prompt: the question, or one for each caption; by default what the model's template has for it
                (`caption_prompt`). "" for a model that learned from pictures and texts without a question.
            max_new_tokens: a caption is cut after so many, and its `finish` is then "length"; one for all, or one for
                each.
            seed: of sampled captions, one for all or one for each: it alone decides what is drawn for a picture.
            settings: as for `GenerationSettings`.

        Raises:
            ImageError: for the first picture that cannot be opened, and a caption without one.
            SettingsError: for a setting out of range.
            ContextError: if a prompt is too long for the model.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= 4096:
            raise SettingsError(f"batch_size is {batch_size!r}; it must be a whole number from 1 to 4096.")
        rows = [sources(row) for row in sources(images)]
        empty = next((number for number, row in enumerate(rows, start=1) if not row), None)
        if images is None or empty is not None:
            raise ImageError(f"Caption {empty or 1} has no picture: leave it out, or give one.")
        prompt = self.caption_prompt if prompt is None else prompt
        if not isinstance(prompt, str | Iterable) or isinstance(prompt, bytes):
            raise PromptError(f"prompt is {shown(prompt)}: it must be a text, or one for each caption.")
        prompts = [prompt] * len(rows) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(rows):
            raise PromptError(f"There are {len(prompts)} prompts for {len(rows)} captions: give one, or one for each.")
        base = GenerationSettings().updated(**settings)
        lengths, seeds = _each("max_new_tokens", max_new_tokens, len(rows)), _each("seed", seed, len(rows))
        chosen = [base.updated(max_new_tokens=most, seed=own) for most, own in zip(lengths, seeds, strict=True)]
        if not rows:
            base.updated(**{n: v for n, v in (("max_new_tokens", max_new_tokens), ("seed", seed)) if _is_one(v)})
        if self.writes_together(base):
            written = []
            for one in self._captions(zip(rows, prompts, chosen, strict=True), batch_size):
                if isinstance(one, Exception):
                    raise one
                written.append(one)
            return written
        captions: dict[int, Caption] = {}
        for batch in _batches(chosen, batch_size):
            asked = [Conversation().user(prompts[place], rows[place]) for place in batch]
            captions |= zip(batch, self._answer_all(asked, [chosen[place] for place in batch]), strict=True)
        return [captions[place] for place in range(len(rows))]

    def writes_together(self, settings: GenerationSettings) -> bool:
        """Whether the engine writes such replies, so that one that ends makes room for the next."""
        return self.engine.alone is None and settings.num_beams == 1

    def captions(
        self, asked: Iterable[tuple[Sequence[Source], str, GenerationSettings]], batch_size: int
    ) -> Iterator[Caption | Exception]:
        """Reply to pictures and prompts without end, `batch_size` together; each reply comes when it is over, in order.

        Of `asked` no more is taken than is needed. An error stands in the place of the caption that it keeps from being
        written. For settings that the engine writes (`writes_together`). What was read of a picture is forgotten with
        its reply, so memory does not grow with their number.
        """
        return self._captions(asked, batch_size, once=True)

    def _captions(
        self, asked: Iterable[tuple[Sequence[Source], str, GenerationSettings]], batch_size: int, once: bool = False
    ) -> Iterator[Caption | Exception]:
        for request in self.engine.run(self._asked(iter(asked), batch_size, once), batch_size):
            reply = request.reply
            try:
                yield request.error or Caption(reply.text, "stop" if reply.finished else "length")
            finally:
                if once:
                    self.engine.forget(request.owner)

    def _asked(
        self, asked: Iterator[tuple[Sequence[Source], str, GenerationSettings]], at_once: int, once: bool = False
    ) -> Iterator[Request]:
        while some := list(itertools.islice(asked, at_once)):
            conversations = [Conversation().user(prompt, row) for row, prompt, _ in some]
            settings = [chosen for *_, chosen in some]
            try:
                requests = list(self._requests(conversations, settings, keep=not once))
            except Exception:  # of one of them, which is found by asking for each alone
                requests = [self._request(*each) for each in zip(conversations, settings, strict=True)]
            for request in requests if once else ():
                keys = request.prompt.keys
                request.owner = object()
                request.common = next((n for n, key in enumerate(keys) if isinstance(key, str)), 0)  # up to a picture
            yield from requests

    def _request(self, conversation: Conversation, settings: GenerationSettings) -> Request:
        try:
            return next(self._requests([conversation], [settings]))
        except Exception as error:
            request = Request(Prompt([], [], None), settings, self.processor.content_tokenizer, self.stops)
            request.end(error)
            return request

    def _requests(
        self, conversations: Sequence[Conversation], settings: Sequence[GenerationSettings], keep: bool = True
    ) -> Iterator[Request]:
        """What asks for a reply to each conversation. Their pictures are encoded together, equal ones once.

        `keep`: as for `Sights.of`.
        """
        rendered = [self.captioner.render(c, add_generation_prompt=True) for c in conversations]
        for conversation, prompt, chosen in zip(conversations, rendered, settings, strict=True):
            check_context(conversation, len(prompt.ids), chosen.max_new_tokens, self.context)
        named = [
            [(self.seen_as(p, prompt.question), p, prompt.question) for p in prompt.pictures] for prompt in rendered
        ]
        pictures = {name: (picture, question) for row in named for name, picture, question in row}
        sights = self.sights.of(pictures, keep=keep)
        self.look(list(sights.values()))
        for prompt, row, chosen in zip(rendered, named, settings, strict=True):
            names = [name for name, *_ in row]
            keys = prompt_keys(prompt.ids, names, self.model.config)
            asked = Prompt(prompt.ids, keys, None, [sights[name] for name in names])
            yield Request(asked, chosen, self.processor.content_tokenizer, self.stops)

    def _answer_all(
        self, conversations: Sequence[Conversation], settings: Sequence[GenerationSettings]
    ) -> list[Caption]:
        """`settings` differ in lengths and seeds alone."""
        rendered = [self.captioner.render(c, add_generation_prompt=True) for c in conversations]
        for conversation, prompt, chosen in zip(conversations, rendered, settings, strict=True):
            check_context(conversation, len(prompt.ids), chosen.max_new_tokens, self.context)
        embeds, mask = self._read(rendered)
        lengths = [chosen.max_new_tokens for chosen in settings]
        replies = generate_rows(
            self.model,
            embeds,
            mask,
            settings[0],
            self.processor.content_tokenizer,
            self.stops,
            seeds=[chosen.seed for chosen in settings],
            lengths=lengths if len(set(lengths)) > 1 else None,
            step_lock=self.step_lock,
        )
        return [Caption(reply.text, "stop" if reply.finished else "length") for reply in replies]

    def looked(self, conversation: Conversation) -> Looked:
        """Where the model looked for the conversation's last reply: see `minichat.inference.looked`."""
        return looked(self, conversation)

    def rank(
        self,
        images: Sequence[Source | Sequence[Source]],
        prompt: str | Sequence[str],
        candidates: Sequence[str],
    ) -> list[list[tuple[str, float]]]:
        """For each picture the given answers with their log-probabilities, the likeliest first (InstructBLIP's VQA).

        Args:
            images, prompt: as for `caption`; `prompt` is put as it is.
            candidates: answers, each with words in it. Their order decides where two are equally likely.

        Raises `PromptError` for no candidates or one without words, and else as `caption` does.
        """
        if isinstance(candidates, str) or not candidates or not all(each.strip() for each in candidates):
            raise PromptError("candidates must be a list of answers, at least one, and none of them empty.")
        rows = [sources(row) for row in sources(images)]
        prompts = [prompt] * len(rows) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(rows):
            raise PromptError(f"There are {len(prompts)} prompts for {len(rows)} pictures: give one, or one for each.")
        found = []
        for text, row in zip(prompts, rows, strict=True):
            asked = Conversation().user(text, row)
            rendered = self.captioner.render(asked, add_generation_prompt=True)
            ids = [self._answer_ids(asked, rendered, answer) for answer in candidates]
            check_context(asked, len(rendered.ids), max(map(len, ids)), self.context)
            embeds, _ = self._read([rendered])
            with self.step_lock, torch.inference_mode():
                scores = log_probabilities(self.model, embeds, ids)
            found.append(sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1]))
        return found

    def _answer_ids(self, asked: Conversation, prompt: Rendered, answer: str) -> list[int]:
        """The ids by which an answer goes on from its prompt; an encoder–decoder's with its end."""
        whole = not self.model.config.is_encoder_decoder
        told = self.captioner.render(asked.assistant(answer), continue_final_message=whole)
        return told.ids[len(prompt.ids) :]

    def _read(self, rendered: Sequence[Rendered]) -> tuple[Tensor, Tensor]:
        """Prompts with their pictures, padded on the left → embeddings (B, T, H) and their mask (B, T)."""
        batch = self.processor.batch([replace(prompt, pictures=()) for prompt in rendered]).to(self.device)
        shown = [(picture, prompt.question) for prompt in rendered for picture in prompt.pictures]
        features = self.encode(*zip(*shown, strict=True)) if shown else None  # (I, n, D)
        with self.step_lock, torch.inference_mode():
            return self.model.embed(batch["input_ids"], image_features=features), batch["attention_mask"]

    def encode(self, pictures: Sequence[Image.Image], questions: Sequence[str] | None = None) -> Tensor:
        """Pictures → their features (I, n, D) before the projection, a few at a time.

        `questions`: what is asked of each, which an instructed Q-Former needs and others leave aside.
        """
        parts = []
        for start in range(0, len(pictures), _PICTURES_AT_ONCE):
            part = slice(start, start + _PICTURES_AT_ONCE)
            asked = None if questions is None else questions[part]
            parts.append(self.read_patches(self.encode_patches(pictures[part]), asked))
        return torch.cat(parts)

    def encode_patches(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures → patches (I, 1 + P, W), all at once."""
        pixels = self._pixels(pictures)
        with self.step_lock, torch.inference_mode():
            return self.model.encode_patches(pixels.to(self.model.device))

    def read_patches(self, patches: Tensor, questions: Sequence[str] | None = None) -> Tensor:
        """Patches (I, 1 + P, W) → features (I, n, D), all at once."""
        words = words_of(self.processor.words(list(questions or [""] * len(patches))), patches.device)
        with self.step_lock, torch.inference_mode():
            return self.model.read_patches(patches, words)

    def sight(self, picture: Image.Image, question: str) -> Sight:
        """A picture as the encoder takes it; that of an equal one, where somebody has one."""
        name = self.seen_as(picture, question)
        return self.sights.of({name: (picture, question)}, keep=False)[name]

    def new_sight(self, picture: Image.Image, question: str) -> Sight:
        """A picture as the encoder takes it, still to be encoded (`see`)."""
        return Sight(question if self.processor.instructed else "", self._pixels([picture])[0])

    def look_ahead(self, opened: Callable[[], Image.Image]) -> Request | None:
        """Encode and read a picture whose question is being typed, as if a chat began with it.

        As long as somebody has what is returned, that is known. None: not now, since replies are being written, or the
        question is needed for it; then the picture is not opened.
        """
        engine = self.engine
        if self.processor.instructed or engine.waiting or engine.written_now or self.step_lock.taken:
            return None
        picture = opened()
        one, other = (
            self.processor.render(Conversation().user(text, [picture]), add_generation_prompt=True).ids
            for text in ("a", "I")
        )
        ids = one[: shared(one, other)]
        keys = prompt_keys(ids, [self.seen_as(picture, "")], self.model.config)
        prompt = Prompt(ids, keys, None, [self.sight(picture, "")])
        request = Request(prompt, GenerationSettings(max_new_tokens=1), self.processor.content_tokenizer, self.stops)
        if engine.alone or ids.count(self.model.config.image_token_index) != self.model.config.num_image_tokens:
            self.look(prompt.sights)  # no more: it is read anew with its question
            return request
        request.owner, request.common = object(), shared(ids, self.beginning)
        weakref.finalize(request, engine.forget, request.owner).atexit = False
        for _ in engine.run([request]):
            pass
        return request

    def look(self, sights: Sequence[Sight]) -> None:
        """Encode those of these pictures that are still to be encoded, a few at a time."""
        while any(sight.features is None for sight in sights):
            with self.step_lock:
                # Looked at inside, since another thread may have been shown one of them, too.
                if new := [sight for sight in sights if sight.features is None]:
                    self.see(new[:_PICTURES_AT_ONCE])

    def see(self, sights: Sequence[Sight]) -> None:
        """Encode these pictures, each still to be encoded, all at once. Only who holds the step lock may call it."""
        with torch.inference_mode():
            fresh = [sight for sight in sights if sight.patches is None]
            pixels = [sight.pixels for sight in fresh if sight.pixels is not None]
            made = iter(self.model.encode_patches(torch.stack(pixels).to(self.model.device)) if pixels else ())
            patches = torch.stack([next(made) if sight.patches is None else sight.patches for sight in sights])
            words = words_of(self.processor.words([sight.question for sight in sights]), patches.device)
            for sight, own, features in zip(sights, patches, self.model.read_patches(patches, words), strict=True):
                # Copies: a view would keep the whole batch.
                sight.features, sight.pixels = features.clone(), None
                sight.patches = own.clone() if self.processor.instructed else None

    def _pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        return pixels  # (I, 3, S, S)

    def seen_as(self, picture: Image.Image, question: str) -> str:
        """The name of what the LLM is shown of a picture: of an instructed Q-Former, another for each question."""
        return f"{identity(picture)} {question}" if self.processor.instructed else identity(picture)

    @functools.cached_property
    def beginning(self) -> list[int]:
        """The ids with which every prompt begins that has no system text of its own."""
        one, other = (
            self.processor.render(Conversation().user(text), add_generation_prompt=True).ids for text in ("a", "I")
        )
        return one[: shared(one, other)]

    def state(self) -> tuple[Any, ...]:
        """Changes whenever a weight or the preprocessing does: what was computed before is then of no use."""
        return _state(self.model, self.processor)


def _state(model: MiniChatForConditionalGeneration, processor: MiniChatProcessor) -> tuple[Any, ...]:
    # Of an LLM that is spread, parts are on the meta device until they are used, each time as other objects.
    here = (p for p in model.parameters() if not p.is_meta)
    weights = hash(tuple((id(p), 0 if p.is_inference() else p._version) for p in here))
    return weights, repr(processor.image_processor.to_dict())


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
