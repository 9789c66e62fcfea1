"""Hugging Face's side of the prompt: the image processor and processor that turn messages into a model's inputs."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import cached_file

import minichat.images as pictures_io
from minichat.errors import ModelError, PromptError, SettingsError
from minichat.prompt.conversation import Conversation, with_pictures
from minichat.prompt.render import IGNORED, History, Layout, Rendered, control_id, render, render_text
from minichat.prompt.template import BOS, EOS, OWN, SLOT, Template, get_template, spells_begin, to_jinja
from minichat.prompt.tokenizer import (
    ContentTokenizer,
    FastTokenizer,
    SentencePieceTokenizer,
    read_wordpiece,
    to_hugging_face,
    tokenize,
)

# --- Pictures → pixels.


_MOST_PIXELS = 10_000  # pixels of a side


class MiniChatImageProcessor(BaseImageProcessor):
    """Pictures to pixels (`minichat.images.to_pixels`): squares of `size` pixels, as a vision encoder was trained.

    `resample` and `shortest_edge` are those of `minichat.images.Fit`; what is not given is as for EVA's ViT.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int | Mapping[str, int] = 224,
        image_mean: Sequence[float] = pictures_io.CLIP_MEAN,
        image_std: Sequence[float] = pictures_io.CLIP_STD,
        resample: int = Image.Resampling.BICUBIC,
        shortest_edge: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sides = dict(size) if isinstance(size, Mapping) else {"height": size, "width": size}
        whole = all(isinstance(side, int) and 1 <= side <= _MOST_PIXELS for side in sides.values())
        if set(sides) != {"height", "width"} or not whole or sides["height"] != sides["width"]:
            raise SettingsError(f"size is {sides}: MiniChat's pictures are squares, such as 224.")
        for name, values in (("image_mean", image_mean), ("image_std", image_std)):
            if not _are_channels(values, positive=name == "image_std"):
                raise SettingsError(f"{name} is {values!r}; it must be three numbers, and a deviation above 0.")
        if resample not in list(Image.Resampling):
            raise SettingsError(f"resample is {resample!r}; it must be the number of one of Pillow's filters, 0 to 5.")
        if shortest_edge is not None and not (
            isinstance(shortest_edge, int) and sides["height"] <= shortest_edge <= _MOST_PIXELS
        ):
            raise SettingsError(f"shortest_edge is {shortest_edge!r}; it must be at least the size, {sides['height']}.")
        self.size = sides
        self.resample, self.shortest_edge = int(resample), shortest_edge
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @property
    def fit(self) -> pictures_io.Fit:
        """How a picture becomes a square."""
        return pictures_io.Fit(self.size["height"], self.resample, self.shortest_edge)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Any nesting of pictures, each whatever `minichat.images.load` takes → `pixel_values` (I, 3, S, S)."""
        pictures = [pictures_io.load(source) for source in flat(images)]
        pixels = pictures_io.to_pixels(pictures, self.fit, self.image_mean, self.image_std)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)


def _are_channels(values: Any, positive: bool) -> bool:
    """A finite number for each of red, green and blue."""
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return False
    return all(
        isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive) for value in values
    )


def flat(images: Any) -> list[Any]:
    """One picture, a list, or lists of lists → a list; None holds none."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture for image in images for picture in flat(image)]
    return [images]


# --- Conversations → token ids and pixels.


MODEL_FILE = "tokenizer.model"
QFORMER = "qformer_tokenizer"  # the folder of the word pieces that an instructed Q-Former reads
_MOST_IDS = 10_000_000  # no vocabulary has more ids, and no picture more slots


class MiniChatProcessor(ProcessorMixin):
    """An image processor, a tokenizer, and how a conversation is spelled for one model.

    Args:
        image_processor, tokenizer: Hugging Face's.
        template: the name of a template (`minichat.prompt.template.TEMPLATES`), or "tokenizer" for its own.
        num_image_tokens: n, how many slots each picture takes.
        image_token_id: the id of a slot; the first id beyond the vocabulary where it is not given.
        sentencepiece: content is tokenised by a SentencePiece `tokenizer.model` that lies beside the other files.
        tidy: what a person types is tidied (`minichat.prompt.template.tidied`), whatever the template says.
        own_template: the tokenizer's own template as it was recorded; where it is not given, its `chat_template` is
            read (`minichat.prompt.chat_template`).
        max_instruction_tokens: of a model whose Q-Former reads the question, too: so many word pieces of it, the last.
            `qformer_tokenizer` then says which there are.

    Raises PromptError for an unknown template, or one of the tokenizer's own that cannot be spelled piece by piece;
    ModelError where `tokenizer.model` is wanted and missing.
    """

    def __init__(
        self,
        image_processor: MiniChatImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "vicuna-v0",
        num_image_tokens: int = 32,
        image_token_id: int | None = None,
        sentencepiece: bool = False,
        chat_template: str | None = None,
        own_template: dict[str, Any] | None = None,
        max_instruction_tokens: int | None = None,
        tidy: bool = False,
    ) -> None:
        if not isinstance(tidy, bool):
            raise ModelError(f"tidy is {tidy!r}; it must be true or false.")
        for name, value, least in (
            ("num_image_tokens", num_image_tokens, 1),
            ("image_token_id", image_token_id, 0),
            ("max_instruction_tokens", max_instruction_tokens, 3),
        ):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and least <= value <= _MOST_IDS) and not (name != "num_image_tokens" and value is None):  # type: ignore[operator]
                raise ModelError(f"{name} is {value!r}; it must be a whole number from {least} to {_MOST_IDS}.")
        if template == OWN and own_template is None:
            from minichat.prompt.chat_template import read_chat_template  # few tokenizers' are read

            tokenizer, own = read_chat_template(tokenizer)
            own_template = own.as_dict()
        # What batches prompts by the tokenizer alone, as a pipeline does, pads as `batch` does.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.template = template
        self.own_template = own_template
        self.tidy = tidy
        self._spelling: Template | None = None
        spelled = to_jinja(self.spelling, slots_per_picture=num_image_tokens)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or spelled)
        self.num_image_tokens = num_image_tokens
        self.image_token_id = len(tokenizer) if image_token_id is None else image_token_id
        self.sentencepiece = sentencepiece
        self.max_instruction_tokens = max_instruction_tokens
        self._content: ContentTokenizer | None = None
        self.word_pieces: PreTrainedTokenizerBase | None = None

    @classmethod
    def from_tokenizer_model(
        cls, model: str | Path | bytes, *, image_size: int, template: str, num_image_tokens: int, **kwargs: Any
    ) -> MiniChatProcessor:
        """A processor on a SentencePiece model, its path or its bytes."""
        content = SentencePieceTokenizer(model)
        processor = cls(
            MiniChatImageProcessor(size=image_size),
            to_hugging_face(content),
            template=template,
            num_image_tokens=num_image_tokens,
            sentencepiece=True,
            **kwargs,
        )
        processor._content = content
        return processor

    @property
    def content_tokenizer(self) -> ContentTokenizer:
        """What turns a person's words into ids, and ids into words."""
        if self._content is None:
            if self.sentencepiece:
                raise ModelError(f"{MODEL_FILE} is missing: put the model's own beside its processor_config.json.")
            self._content = FastTokenizer(self.tokenizer, spells_begin(self.spelling))
        return self._content

    @property
    def instructed(self) -> bool:
        """Whether pictures are read with what is asked of them."""
        return self.max_instruction_tokens is not None

    def read_word_pieces(self, folder: Path) -> None:
        """Take the Q-Former's word pieces from a folder with BERT's `vocab.txt`. Raises as `read_wordpiece` does."""
        self.word_pieces = read_wordpiece(folder)
        self.word_pieces.truncation_side = "left"

    def save_word_pieces(self, folder: Path) -> None:
        """Write them into the folder `qformer_tokenizer` in this one, where the model has some."""
        if self.word_pieces is not None:
            self.word_pieces.save_pretrained(folder / QFORMER)

    def words(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """What an instructed Q-Former reads with each of I pictures: `qformer_input_ids` and its mask (I, L).

        Nothing where the model's is none. Raises `ModelError` where the word pieces are missing.
        """
        if self.max_instruction_tokens is None or not questions:
            return {}
        if self.word_pieces is None:
            raise ModelError(f"The Q-Former's word pieces are missing: put the model's folder {QFORMER} back.")
        return {
            f"qformer_{k}": v for k, v in tokenize(self.word_pieces, questions, self.max_instruction_tokens).items()
        }

    @property
    def spelling(self) -> Template:
        """The template by which prompts are spelled."""
        if self._spelling is None:
            own = self.template == OWN and self.own_template is not None
            spelled = Template.from_dict(self.own_template or {}) if own else get_template(self.template)
            self._spelling = replace(spelled, tidy=True) if self.tidy else spelled
        return self._spelling

    @property
    def end_id(self) -> int:
        """The control id that ends a reply."""
        end = self.spelling.end[1]
        return self.content_tokenizer.eos_id if end is None else self._control_id(end)

    @property
    def controls(self) -> dict[int, str]:
        """The control ids that prompts hold, and how the template spells them."""
        own = self.spelling.controls
        if not own:
            content = self.content_tokenizer
            return {content.eos_id: EOS} | ({} if content.bos_id is None else {content.bos_id: BOS})
        return {self._control_id(token): token for token in own}

    def _control_id(self, token: str) -> int:
        return control_id(token, self.spelling, self.content_tokenizer)

    def with_template(self, template: str | None) -> MiniChatProcessor:
        """The same processor, spelling prompts by another template. Raises PromptError for one that is not known."""
        if template is None or template == self.template:
            return self
        other = copy.copy(self)
        other.template, other._spelling = template, None
        if not self.sentencepiece:
            other._content = None
        other.spelling  # noqa: B018
        return other

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def render(
        self,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        history: History = "ids",
    ) -> Rendered:
        """The conversation's ids, loss mask and pictures (`minichat.prompt.render.render`)."""
        return render(
            conversation,
            self.spelling,
            self.content_tokenizer,
            slot_id=self.image_token_id,
            slots_per_picture=self.num_image_tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            history=history,
        )

    def batch(
        self,
        rendered: Sequence[Rendered],
        padding_side: Literal["left", "right"] = "left",
        *,
        labels: bool = False,
        length: int = 0,
        multiple: int = 1,
    ) -> BatchFeature:
        """B prompts as tensors, padded to the longest: `input_ids`, `attention_mask` (B, T), with `labels` also those.

        `pixel_values` (I, 3, S, S) holds the pictures of all rows, row by row, in slot order; it is absent where there
        are none. An instructed Q-Former has `words` beside them. Labels are −100 where nothing is supervised. T is at
        least `length`, and a multiple of `multiple`.
        """
        if not rendered:
            raise PromptError("A batch needs at least one conversation.")
        longest = max(length, *(len(row.ids) for row in rendered))
        longest += -longest % multiple

        def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
            gaps = [[filler] * (longest - len(row)) for row in rows]
            left = padding_side == "left"
            return torch.tensor([[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)])

        data = {
            "input_ids": padded([row.ids for row in rendered], self.content_tokenizer.pad_id),
            "attention_mask": padded([[1] * len(row.ids) for row in rendered], 0),
        }
        pictures = [picture for row in rendered for picture in row.pictures]
        if pictures:
            data["pixel_values"] = self.image_processor(pictures)["pixel_values"]
            data |= self.words([row.question for row in rendered for _ in row.pictures])
        if labels:
            data["labels"] = padded([row.labels for row in rendered], IGNORED)
        return BatchFeature(data)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Messages, or a list of them, as Hugging Face's processors take them; through MiniChat's own renderer.

        Text with `tokenize=False`; else `input_ids`, `attention_mask` and `pixel_values` with `return_dict=True`, or
        the ids alone. `processor_kwargs`, or keywords beside it, are the options of `__call__`, and `images`: of
        messages that only say where a picture is (`{"type": "image"}`), for each conversation a list. With
        `continue_final_message` the last reply is left open; `return_assistant_tokens_mask` adds `assistant_masks`
        (B, T), 1 where a token is a reply's. Raises PromptError for messages or options that are not understood.
        """
        if chat_template not in (None, self.chat_template):
            raise PromptError("chat_template is another one: this processor spells prompts by its own template alone.")
        given = {**options, **(processor_kwargs or {})}
        images = given.pop("images", None)
        layout = Layout.read(given)
        many = not isinstance(conversation, Conversation) and _holds_lists(conversation)
        rows: list[Any] = list(conversation) if many else [conversation]
        if images is not None:
            rows = with_pictures(rows, images if many else [images])
        read = [_conversation(one) for one in rows]
        if not tokenize:
            texts = [
                render_text(
                    one,
                    self.spelling,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    slot=SLOT * self.num_image_tokens,
                )
                for one in read
            ]
            return texts if many else texts[0]
        asked: Any = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        rendered = [layout.cut(self.render(one, **asked), self.image_token_id) for one in read]
        batch = self.batch(rendered, layout.padding_side, length=layout.length, multiple=layout.multiple)
        if return_assistant_tokens_mask:
            batch["assistant_masks"] = layout.padded([row.loss_mask for row in rendered], batch["input_ids"].shape[1])
        batch = _converted(batch, return_tensors)
        return batch if return_dict else batch["input_ids"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Questions, each with its picture or pictures, as prompts that ask for a reply.

        `text` is one question, and `images` its picture or pictures; or `text` is a list of B, and `images` B times a
        picture, a list of pictures or None. A question is a person's words: it holds no slots and no delimiters.
        `options` are Hugging Face's `padding_side`, `padding`, `pad_to_multiple_of`, `truncation` and `max_length`.
        """
        if options.pop("add_special_tokens", None) is False:
            raise PromptError(
                "add_special_tokens=False says that the text is a whole prompt, but this processor takes questions: "
                "give whole conversations as messages to apply_chat_template (in a data set, as 'messages')."
            )
        layout = Layout.read(options)
        if isinstance(text, str):
            text, images = [text], [images]
        if text is None:
            raise PromptError("There is no text to answer: give a question, or use image_processor for pictures alone.")
        rows = [None] * len(text) if images is None else list(images)
        if len(rows) != len(text):
            raise PromptError(
                f"There are {len(text)} texts and {len(rows)} rows of pictures: give one row for each text."
            )
        asked = [Conversation().user(one, flat(row)) for one, row in zip(text, rows, strict=True)]
        rendered = [layout.cut(self.render(one, add_generation_prompt=True), self.image_token_id) for one in asked]
        batch = self.batch(rendered, layout.padding_side, length=layout.length, multiple=layout.multiple)
        return _converted(batch, return_tensors)

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> Any:
        """The text of ids, or a list of texts for rows of ids.

        Image slots are skipped; with `skip_special_tokens=False` all that text is not is shown.
        """
        if len(token_ids) and (getattr(token_ids, "ndim", 1) > 1 or isinstance(token_ids[0], (list, tuple))):
            return self.batch_decode(token_ids, skip_special_tokens)
        ids = [int(i) for i in token_ids]
        content = self.content_tokenizer
        if skip_special_tokens:
            return content.decode([i for i in ids if i != self.image_token_id])
        shown = {**self.controls, self.image_token_id: SLOT}
        text, run = "", list[int]()
        for i in [*ids, None]:
            if i is None or i in shown:
                text, run = text + content.decode(run) + ("" if i is None else shown[i]), []
            else:
                run.append(i)
        return text

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def post_process_image_text_to_text(self, generated_outputs: Any, **kwargs: Any) -> list[str]:
        """The texts of what `generate` returned."""
        return self.batch_decode(generated_outputs, kwargs.get("skip_special_tokens", True))

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write everything `from_pretrained` needs, `tokenizer.model` among it."""
        if isinstance(self._content, SentencePieceTokenizer):
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            (Path(save_directory) / MODEL_FILE).write_bytes(self._content.serialized)
        self.save_word_pieces(Path(save_directory))
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> MiniChatProcessor:
        """Read a folder or a hub repository that `save_pretrained` wrote."""
        settings, options = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        where = {name: options[name] for name in _WHERE if options.get(name) is not None}
        # Its parts are named here, so that no registration is needed to find them.
        image_processor = MiniChatImageProcessor(**settings.get("image_processor", {}))
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **where)
        processor = cast(MiniChatProcessor, cls.from_args_and_dict([image_processor, tokenizer], settings))
        if processor.sentencepiece:
            file = cached_file(
                pretrained_model_name_or_path, MODEL_FILE, _raise_exceptions_for_missing_entries=False, **where
            )
            if file is None:
                raise ModelError(f"{MODEL_FILE} is missing: put the model's own beside its processor_config.json.")
            processor._content = SentencePieceTokenizer(file)
        if processor.instructed:
            file = cached_file(pretrained_model_name_or_path, f"{QFORMER}/tokenizer.json", **where)
            processor.read_word_pieces(Path(str(file)).parent)
        return processor


#: What tells `from_pretrained` where a file is.
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def _conversation(messages: Conversation | Sequence[Any]) -> Conversation:
    return messages if isinstance(messages, Conversation) else Conversation.from_messages(messages)


def _holds_lists(messages: Sequence[Any]) -> bool:
    """A list of conversations, not one conversation."""
    return len(messages) > 0 and isinstance(messages[0], (list, tuple, Conversation))


def _converted(batch: BatchFeature, return_tensors: str | None) -> BatchFeature:
    """As PyTorch tensors ("pt"), as another library's, or (None) as lists save for the pixels."""
    if return_tensors == "pt":
        return batch
    if return_tensors in (None, "auto"):
        return BatchFeature({k: v if k == "pixel_values" else v.tolist() for k, v in batch.items()})
    return BatchFeature({k: v.numpy() for k, v in batch.items()}, tensor_type=return_tensors)
