"""A whole bot that is made in a moment: a random network and a SentencePiece tokenizer trained on a few sentences."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sentencepiece
import torch
from PIL import Image

from minichat.inference.bot import MiniChat
from minichat.prompt.processor import MiniChatProcessor
from tests.tiny_network import SIDE, tiny_network

SENTENCES = (
    "The picture shows a red circle and a blue boat.",
    "How many stars are there? There are 3 small stars, and 12 dots near the door of the tall house.",
    "What colour is it? It is yellow. Is it left of the cat? Yes, it is; no, it is not!",
    "Describe this image in detail. ###Human: ###Assistant: [INST] [/INST] USER: ASSISTANT:",
    "<Img> </Img> Which is larger, the green square or the purple triangle? The green one is larger than the other.",
)


@cache
def tokenizer_model(vocabulary: int = 400, extra_spaces: bool = True) -> bytes:
    """A `tokenizer.model` like LLaMA's: BPE, byte fallback, identity normalisation, unk 0, bos 1, eos 2.

    Unless it keeps `extra_spaces`, as LLaMA's does, it decodes all white space at a text's beginning to nothing.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=not extra_spaces,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def tiny_bot(
    template: str = "vicuna-v0",
    kind: str = "qformer",
    seed: int = 0,
    context: int = 512,
    text: dict[str, Any] | None = None,
    **changes: Any,
) -> MiniChat:
    """A bot with random weights, in float32 on the CPU. Its replies are babble, but always the same."""
    model_file = tokenizer_model()
    words = sentencepiece.SentencePieceProcessor(model_proto=model_file).vocab_size()
    llm = {"vocab_size": words, "max_position_embeddings": context, **(text or {})}
    model = tiny_network(kind, seed, text=llm, template=template, **changes)
    processor = MiniChatProcessor.from_tokenizer_model(
        model_file,
        image_size=SIDE,
        template=template,
        num_image_tokens=model.config.num_image_tokens,
        image_token_id=model.config.image_token_index,
    )
    return MiniChat(model, processor, name="tiny")


def noise_picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of random pixels: no two seeds look alike, not even to a random network."""
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


@contextmanager
def saying(bot: MiniChat, *replies: Sequence[int]) -> Iterator[list[int]]:
    """Make the LLM say these ids, reply after reply; yields the list of how many tokens it read at each step."""
    script = iter([token for reply in replies for token in reply])
    read: list[int] = []

    def force(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        read.append(kwargs["inputs_embeds"].shape[1])
        output.logits[:, -1, next(script)] = 1e6
        return output

    hook = bot.model.language_model.register_forward_hook(force, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


@contextmanager
def counting(bot: MiniChat) -> Iterator[dict[str, int]]:
    """Counts what the model does meanwhile: `steps` of the LLM, `tokens` it read, `pictures` that were encoded."""
    counts = {"steps": 0, "tokens": 0, "pictures": 0}

    def llm(module: Any, args: Any, kwargs: Any) -> None:
        counts["steps"] += 1
        given = kwargs.get("inputs_embeds", kwargs.get("decoder_input_ids"))
        counts["tokens"] += given.shape[1]

    def vision(module: Any, args: Any, kwargs: Any) -> None:
        counts["pictures"] += kwargs["pixel_values"].shape[0]

    hooks = [
        bot.model.language_model.register_forward_pre_hook(llm, with_kwargs=True),
        bot.model.vision_model.register_forward_pre_hook(vision, with_kwargs=True),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def spell(bot: MiniChat, text: str) -> list[int]:
    """The ids that spell `text` as the beginning of a reply."""
    return bot.processor.content_tokenizer.encode(text)


def tensor_bytes() -> int:
    """Memory held by all tensors that are alive."""
    import gc

    gc.collect()
    return sum(t.nbytes for t in gc.get_objects() if issubclass(type(t), torch.Tensor))
