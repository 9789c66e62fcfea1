"""A name, a folder or a hub id → a network with every tensor accounted for → a bot that is ready to talk."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from minichat.device.memory import check_fits
from minichat.device.placement import Placement, choose, entry_device, outline, suit_cpu
from minichat.errors import MiniChatError, ModelError, PromptError, SettingsError, sentence, some
from minichat.images import Source, identity
from minichat.inference.engine import Engine
from minichat.inference.generate import Prompt, StepLock, generate_rows
from minichat.inference.kv_cache import shared
from minichat.inference.request import Request
from minichat.inference.sampling import GenerationSettings, Stops
from minichat.inference.session import ChatSession, check_context, prompt_keys, sources
from minichat.model import MiniChatConfig, MiniChatForConditionalGeneration
from minichat.prompt.conversation import Conversation
from minichat.weights.check_config import asked_by, building, check_parts, check_values, decided_by, read_config
from minichat.weights.checkpoint_io import Stream, large_apart
from minichat.weights.hub import check_header, quiet, read_json, weight_files
from minichat.weights.known_models import KNOWN
from minichat.weights.llm import (
    Adapter,
    adding,
    llm_dtypes,
    read_adapter,
    referred_llm,
    trained_adapter,
)
from minichat.weights.projection import is_projection, read_projection, verify_weights
from minichat.weights.registry import AUTO, BUILT_IN, default_model, find, is_here

if TYPE_CHECKING:
    from minichat.prompt.processor import MiniChatProcessor


# --- A folder of weights → the network, every tensor accounted for.


_GENERATION = "generation_config.json"
_LLM = "language_model."


def load_network(
    folder: Path, placement: Placement, reference: dict[str, str] | None = None, adapter: Adapter | None = None
) -> MiniChatForConditionalGeneration:
    """The network in `folder`, with the LLM that it refers to, if it does; placed and quantized as asked for.

    `adapter`: added to the LLM's matrices as they are read, in float32, before they become what was asked for.

    Raises `ModelError`, naming it, for a tensor that is missing, left over, of the wrong shape or not finite, and where
    memory is short; `SettingsError` for a placement that does not fit this network.
    """
    adapters: list[Adapter] = []  # the LLM's own, then the trained one
    stream = Stream(placement.dtype, placement.as_stored, adding(adapters))
    try:
        with quiet(), large_apart() if placement.quantize is not None else nullcontext():
            config = read_config(folder)
            config.llm = None  # what is saved of the loaded model holds its LLM
            generation = _generation_config(folder)
            if reference is not None:
                llm = referred_llm(reference, folder.name)
                adapters += [llm.adapter] if llm.adapter is not None else []
                for checkpoint in llm.checkpoints:
                    held = [name for name, holder in llm.tensors().items() if holder is checkpoint]
                    stream.add(llm.folder / checkpoint.file, _LLM, held)
            for file in weight_files(folder):
                stream.add(folder / file)
            if adapter is not None:
                shapes = {n.removeprefix(_LLM): t.shape for n, t in stream.tensors.items() if n.startswith(_LLM)}
                adapters.append(adapter)
                adapter.check(shapes, tied=config.text_config.tie_word_embeddings)
            _check_shapes(folder, stream, config)
            check_fits(config, folder.name, placement)
            model, account = MiniChatForConditionalGeneration.from_pretrained(
                None,
                config=config,
                state_dict=stream.tensors,
                generation_config=generation,
                ignore_mismatched_sizes=True,  # reported below, with both shapes
                output_loading_info=True,
                **placement.options(config),
            )
    except MiniChatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"The model in {folder.name!r} cannot be loaded: {sentence(error)}.") from error
    _check_account(folder, account)
    _check_values(folder, stream)
    if placement.quantize == "4bit" and placement.device.type == "cpu":
        suit_cpu(model)
    return model


def _generation_config(folder: Path) -> GenerationConfig | None:
    if not (folder / _GENERATION).is_file():  # there need not be one
        return None
    where = f"{_GENERATION} in {folder.name!r}"
    check_values(read_json(folder, _GENERATION), where)
    with building(where):
        return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _check_account(folder: Path, account: dict[str, Any]) -> None:
    """Every tensor is used, and none is missing: a missing one would be left random."""
    for name, stored, wanted in sorted(account["mismatched_keys"]):
        _refuse_shape(folder, name, stored, wanted)
    for what, names in (("lack", account["missing_keys"]), ("have left over", account["unexpected_keys"])):
        if names:
            raise ModelError(
                f"The weights of {folder.name!r} {what} {some(names)}: they do not belong to config.json"
                f"{decided_by(names)}, or were not written whole."
            )
    if account["error_msgs"]:
        raise ModelError(f"The weights of {folder.name!r} cannot be used: {'; '.join(account['error_msgs'])}.")


def _check_shapes(folder: Path, stream: Stream, config: MiniChatConfig) -> None:
    """Depths and shapes against the tensors that are there, before any is made."""
    stored, where = read_json(folder, "config.json"), f"config.json in {folder.name!r}"
    check_parts(stored, stream.tensors, where)
    with building(where):
        wanted = {name: tuple(tensor.shape) for name, tensor in outline(config).state_dict().items()}
    for name in sorted(wanted.keys() & stream.tensors.keys()):
        if (held := stream.tensors[name].shape) != wanted[name]:
            _refuse_shape(folder, name, held, wanted[name], asked_by(stored, name, held, wanted[name]))


def _refuse_shape(folder: Path, name: str, stored: Iterable[int], wanted: Iterable[int], by: str = "") -> None:
    raise ModelError(
        f"The tensor {name} of {folder.name!r} has the shape {tuple(stored)}, but config.json asks for "
        f"{tuple(wanted)}{f' ({by})' * bool(by)}: weights and config.json do not belong together."
    )


def _check_values(folder: Path, stream: Stream) -> None:
    if stream.not_finite:
        raise ModelError(
            f"The weights of {folder.name!r} hold values that are not finite, in {some(stream.not_finite)}: they are "
            "damaged."
        )
    if stream.too_large:
        raise ModelError(
            f"The weights of {folder.name!r} hold values that float16 cannot, in {some(stream.too_large)}: use "
            "dtype='bfloat16' or 'float32'."
        )


# --- The loaded bot: a model, its processor, and what they are used for.


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
        self.step_lock = StepLock()  # one step of one reply at a time
        self.stops = _stops(model, processor)
        self.engine = Engine(model, step_lock=self.step_lock, state=lambda: _state(model, processor))

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
                model that learned from pictures and texts without a question.
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
        prompt = CAPTION_PROMPT if prompt is None else prompt
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
            for one in self.captions(zip(rows, prompts, chosen, strict=True), batch_size):
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
        written. For settings that the engine writes (`writes_together`).
        """
        for request in self.engine.run(self._asked(iter(asked), batch_size), batch_size):
            reply = request.reply
            yield request.error or Caption(reply.text, "stop" if reply.finished else "length")

    def _asked(
        self, asked: Iterator[tuple[Sequence[Source], str, GenerationSettings]], at_once: int
    ) -> Iterator[Request]:
        while some := list(itertools.islice(asked, at_once)):
            conversations = [Conversation().user(prompt, row) for row, prompt, _ in some]
            settings = [chosen for *_, chosen in some]
            try:
                requests = list(self._requests(conversations, settings))
            except Exception:  # of one of them, which is found by asking for each alone
                requests = [self._request(*each) for each in zip(conversations, settings, strict=True)]
            yield from requests

    def _request(self, conversation: Conversation, settings: GenerationSettings) -> Request:
        try:
            return next(self._requests([conversation], [settings]))
        except Exception as error:
            request = Request(Prompt([], [], None), settings, self.processor.content_tokenizer, self.stops)
            request.end(error)
            return request

    def _requests(
        self, conversations: Sequence[Conversation], settings: Sequence[GenerationSettings]
    ) -> Iterator[Request]:
        """What asks for a reply to each conversation. Their pictures are encoded together, equal ones once."""
        rendered = [self.processor.render(c, add_generation_prompt=True) for c in conversations]
        for conversation, prompt, chosen in zip(conversations, rendered, settings, strict=True):
            check_context(conversation, len(prompt.ids), chosen.max_new_tokens, self.context)
        named = [[(identity(picture), picture) for picture in prompt.pictures] for prompt in rendered]
        pictures = dict(pair for row in named for pair in row)
        features = dict(zip(pictures, self.encode(list(pictures.values())), strict=True)) if pictures else {}
        for prompt, row, chosen in zip(rendered, named, settings, strict=True):
            seen = torch.stack([features[name] for name, _ in row]) if row else None  # (I, n, D)
            asked = Prompt(prompt.ids, prompt_keys(prompt.ids, [name for name, _ in row], self.model.config), seen)
            yield Request(asked, chosen, self.processor.content_tokenizer, self.stops)

    def _answer_all(
        self, conversations: Sequence[Conversation], settings: Sequence[GenerationSettings]
    ) -> list[Caption]:
        """`settings` differ in lengths and seeds alone."""
        rendered = [self.processor.render(c, add_generation_prompt=True) for c in conversations]
        for conversation, prompt, chosen in zip(conversations, rendered, settings, strict=True):
            check_context(conversation, len(prompt.ids), chosen.max_new_tokens, self.context)
        batch = self.processor.batch(rendered, padding_side="left").to(self.device)
        with self.step_lock, torch.inference_mode():
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
            step_lock=self.step_lock,
        )
        return [Caption(reply.text, "stop" if reply.finished else "length") for reply in replies]

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures → their features (I, n, D) before the projection, a few at a time."""
        parts = []
        for start in range(0, len(pictures), _PICTURES_AT_ONCE):
            some = list(pictures[start : start + _PICTURES_AT_ONCE])
            pixels = self.processor.image_processor(some, return_tensors="pt")["pixel_values"]  # (I, 3, S, S)
            with self.step_lock, torch.inference_mode():
                parts.append(self.model.encode_features(pixels.to(self.model.device)))
        return torch.cat(parts)

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


# --- A name, a folder or a hub id → a bot that is ready to talk.


def load(
    name: str | os.PathLike[str] = AUTO,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device_map: Mapping[str, Any] | str | None = None,
    verify: bool = False,
    merge_adapter: bool = True,
) -> MiniChat:
    """Load a model with its processor.

    Args:
        name: a built-in model's name, a folder (a whole model, one that refers to its LLM, or a trained projection),
            or a hub id ("owner/name"), which is taken from the local cache where there is no network. "auto": the
            built-in model, minichat-tiny.
        device: "auto" (CUDA, else MPS, else CPU) or a device of PyTorch's.
        dtype: "auto", "float32", "bfloat16" or "float16". "auto": on CUDA bfloat16, or float16 where that is only
            emulated; on MPS float16; on a CPU float32, or bfloat16 for an LLM that is stored so where the processor
            computes in it natively (the built-in models stay in float32). The projection is always in float32.
        quantize: "8bit" or "4bit" stores the LLM's matrices so, and nothing else; it needs bitsandbytes.
        device_map: where the LLM goes if it does not fit on `device`: "auto" fills the GPUs and then the CPU, a dict
            says it for each part ("language_model.model.layers.0": 1). The vision side stays whole on `device`.
        verify: hold all weights against the hashes that `--verify` recorded when the folder was made.
        merge_adapter: add an adapter that was trained with the projection (its folder `adapter`) to the LLM's matrices.
            False leaves them as the base model has them, for whoever attaches the adapter by PEFT.

    Raises:
        ModelError: if there is no such model, a file is missing or damaged, a tensor is missing, left over, of the
            wrong shape or not finite, or model and processor do not belong together; if memory is short, and then
            before a known model is fetched.
        SettingsError: for a device, dtype, quantization or map that does not exist here or does not fit.
    """
    placement = choose(device, dtype, quantize, device_map)
    name = default_model() if name == AUTO else name
    _check_room(os.fspath(name), placement)
    folder = own = find(name)
    shown = os.fspath(name) if name in BUILT_IN else folder.name
    projection = None
    if is_projection(folder):
        projection = read_projection(folder)
        _check_room(projection.base_name(), placement)
        folder = projection.base_folder()
    reference = _check_files(folder)
    if projection is not None:
        projection.check(folder)
    if verify:
        verify_weights(folder, projection)
    built_in = name in BUILT_IN or (projection is not None and projection.base_name() in BUILT_IN)
    if dtype == "auto" and not built_in and llm_dtypes(folder, reference) == {torch.bfloat16}:
        placement = placement.for_bfloat16()
    trained = trained_adapter(own, folder) if merge_adapter else None
    model = load_network(folder, placement, reference, None if trained is None else read_adapter(trained))
    if projection is not None:
        model.projection.load_state_dict(projection.tensors())
    processor = _load_processor(folder)
    _check_together(folder, model.config, processor)
    return MiniChat(model, processor, name=shown)


def load_processor(name: str | os.PathLike[str]) -> tuple[MiniChatProcessor, int | None]:
    """A model's processor, and how many tokens its LLM can read (None: its configuration does not say).

    `name` is as in `load`, and so are the errors; the weights stay where they are.
    """
    folder = find(name)
    if is_projection(folder):
        folder = read_projection(folder).base_folder()
    _check_files(folder)
    config = read_config(folder)
    processor = _load_processor(folder)
    _check_together(folder, config, processor)
    return processor, getattr(config.text_config, "max_position_embeddings", None)


def _check_room(name: str, placement: Placement) -> None:
    """Raise `ModelError` where a known model that is not here yet would not fit into memory once it was fetched."""
    if name not in KNOWN or is_here(KNOWN[name]):
        return
    from minichat.device.memory import check_fits

    check_fits(KNOWN[name].config(), name, placement)


def _check_files(folder: Path) -> dict[str, str] | None:
    """Read what is small, the headers of the weights too, so that an error names its file.

    Returns how the folder refers to its LLM, if it does.
    """
    config = read_json(folder, "config.json")
    kind = config.get("model_type")
    if config.get("architectures") == ["Blip2ForImageTextRetrieval"]:
        raise ModelError(f"{folder.name!r} is no chat model: it finds pictures (minichat search).")
    if kind != "minichat":
        raise ModelError(f"{folder.name!r} holds a model of model_type {kind!r}, not 'minichat': convert it first.")
    reference = config.get("llm")
    if reference is not None and not (
        isinstance(reference, dict) and all(isinstance(v, str) for v in reference.values())
    ):
        raise ModelError(f"llm in config.json of {folder.name!r} is {reference!r}; it must say where the LLM is.")
    check_values(config, f"config.json in {folder.name!r}")
    for file in weight_files(folder):
        check_header(folder, file)
    return reference


def _load_processor(folder: Path) -> MiniChatProcessor:
    from minichat.prompt.processor import MiniChatProcessor

    try:
        with quiet():
            return MiniChatProcessor.from_pretrained(folder, local_files_only=True)
    except ModelError:
        raise
    except MiniChatError as error:
        raise ModelError(f"The processor in {folder.name!r} cannot be used: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged tokenizer.json may raise anything, also a bare Exception
        raise ModelError(f"The processor in {folder.name!r} cannot be loaded: {sentence(error)}.") from error


def _check_together(folder: Path, config: MiniChatConfig, processor: MiniChatProcessor) -> None:
    """Model and processor count alike."""
    pairs = {
        "template": (config.template, processor.template),
        "picture size": (config.vision_config.image_size, processor.image_processor.size["height"]),
        "number of image tokens": (config.num_image_tokens, processor.num_image_tokens),
        "image slot's id": (config.image_token_index, processor.image_token_id),
    }
    for what, (of_model, of_processor) in pairs.items():
        if of_model != of_processor:
            raise ModelError(
                f"In {folder.name!r} the model's {what} is {of_model!r} but the processor's is {of_processor!r}: "
                "they do not belong together."
            )
    rows, words = config.text_config.vocab_size, processor.content_tokenizer.vocab_size
    if words > rows:
        raise ModelError(f"In {folder.name!r} the tokenizer has {words} ids but the LLM only {rows} (vocab_size).")
