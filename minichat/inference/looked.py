"""Where a model looked: the Q-Former's attention over a picture, by the LLM's attention to what the queries told it.

Nothing is written: one pass of the encoder and of the LLM over what is there reads the weights.

Shapes: R tokens of a reply, T of all that the LLM reads, I pictures, n image tokens of a picture, N = I · n, P patches
of a picture, h = w = √P, L layers of the LLM, A heads of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minichat.errors import PromptError
from minichat.inference.session import Bot, fit
from minichat.model.minichat import QFormerBridge, words_of
from minichat.model.vision import grid_side, leading_tokens
from minichat.prompt.conversation import Conversation


@dataclass(frozen=True)
class Head:
    """A head of the LLM's attention, and whose: of the position that chose a token, or of the token itself."""

    layer: int
    head: int
    choosing: bool


#: Of models for which it was measured, the heads whose geometric mean says which queries a word of a reply came from;
#: `benchmarks/looked.py` chose them. Of others all heads count alike, at the position that chose a token.
HEADS = {"minichat-tiny": (Head(5, 2, True), Head(0, 2, False))}
#: The share of 200 drawn scenes, others than those, in which the thing that a colour answer names got the most weight.
MEASURED = {"minichat-tiny": 0.98}


@dataclass(frozen=True)
class Looked:
    """Where a model looked while it wrote a reply."""

    words: tuple[str, ...]  # R pieces, which joined are the reply
    weights: Tensor  # (R, I, n): how much each token owes to each query; a token's sum is 1
    maps: Tensor  # (I, n, h, w): how much each query looked at each patch; its sum is 1, less what other tokens got
    pictures: tuple[Image.Image, ...]  # I of them
    boxes: tuple[tuple[float, float, float, float], ...]  # what was seen of each: left, top, right, bottom, from 0 to 1

    def together(self, tokens: Sequence[int] | None = None) -> Tensor:
        """How much these tokens of the reply, or all, owe to each patch: (I, h, w)."""
        weights = self.weights if tokens is None else self.weights[list(tokens)]
        return torch.einsum("in,inhw->ihw", weights.mean(0), self.maps)


def looked(bot: Bot, conversation: Conversation, heads: Sequence[Head] | None = None) -> Looked:
    """Where `bot` looked for the conversation's last reply, in all pictures that it was shown until then.

    Args:
        heads: of the LLM, of which the geometric mean is taken; None: those of `HEADS` under the bot's name, or all.

    Raises:
        PromptError: if the conversation ends with no reply, has no picture, or the LLM is an encoder–decoder.
    """
    if heads is None:
        heads = HEADS.get(getattr(bot, "name", ""), ())
    words, shown, maps, attention = attended(bot, conversation)
    pictures, n = maps.shape[:2]
    if heads:
        chosen = [
            attention[head.layer, head.head][:-1] if head.choosing else attention[head.layer, head.head][1:]
            for head in heads
        ]
        weights = torch.stack([_shares(each).log() for each in chosen]).mean(0).exp()  # (R, N)
    else:
        weights = attention[:, :, :-1].mean((0, 1))
    boxes = tuple(_box(bot, picture) for picture in shown)
    return Looked(words, _shares(weights).unflatten(1, (pictures, n)), maps, shown, boxes)


def _shares(weights: Tensor) -> Tensor:
    weights = weights.clamp(min=1e-12)
    return weights / weights.sum(-1, keepdim=True)


def _box(bot: Bot, picture: Image.Image) -> tuple[float, float, float, float]:
    """What the encoder is shown of a picture: all, squeezed into a square, or the square in its middle."""
    fit = bot.processor.image_processor
    if fit.shortest_edge is None:
        return 0.0, 0.0, 1.0, 1.0
    side = min(picture.size) * fit.size["height"] / fit.shortest_edge
    across, down = side / picture.width, side / picture.height
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2


def attended(bot: Bot, conversation: Conversation) -> tuple[tuple[str, ...], tuple[Image.Image, ...], Tensor, Tensor]:
    """What `looked` is made of: a reply's pieces, the queries' maps, and the LLM's attention to the image tokens.

    Returns:
        R pieces; I pictures; maps (I, n, h, w); attention (L, A, 1 + R, N) of the position before the reply, and of its
        tokens.

    Raises as `looked` does.
    """
    if bot.model.config.is_encoder_decoder:
        raise PromptError("Where it looked cannot be told of this model: its LLM is an encoder-decoder.")
    if not conversation.turns or conversation.turns[-1].role != "assistant":
        raise PromptError("There is no reply to look behind: ask something first.")
    if not conversation.pictures:
        raise PromptError("There was no picture to look at.")
    asked = Conversation(conversation.messages[:-1])
    render, config = bot.processor.render, bot.model.config
    told = render(conversation, continue_final_message=True)
    ids = told.ids[len(render(asked, add_generation_prompt=True).ids) :]
    # What no longer fits into the context is left out, as it was when the reply was written.
    _, prompt = fit(asked, lambda c: render(c, add_generation_prompt=True), max(1, len(ids)), bot.context)
    patches = torch.cat([bot.encode_patches([picture]) for picture in prompt.pictures])  # (I, R + P, W)
    words = words_of(bot.processor.words([prompt.question] * len(patches)), patches.device)
    with bot.step_lock, torch.inference_mode():
        with _telling(getattr(bot.model.bridge, "qformer", None)) as seen:
            features = bot.model.read_patches(patches, words)  # (I, n, D)
        maps = _maps(bot, seen, len(patches))
        whole = torch.tensor([[*prompt.ids, *ids]], device=bot.device)  # (1, T)
        slots = torch.eq(whole[0], config.image_token_index).nonzero()[:, 0]  # (N,)
        with _telling(bot.model.language_model, slice(len(prompt.ids) - 1, None), slots) as kept:
            bot.model(input_ids=whole, image_features=features, logits_to_keep=1)
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        text = bot.processor.content_tokenizer.decode(ids[:end])
        pieces.append(text[len(before) :])
        before = text
    return tuple(pieces), prompt.pictures, maps.float().cpu(), torch.stack([each[0].float().cpu() for each in kept])


def _maps(bot: Bot, seen: list[Tensor], pictures: int) -> Tensor:
    """What share of itself each query gives to each patch (I, n, h, w)."""
    vision, bridge = bot.model.config.vision_config, bot.model.config.bridge_config
    side = grid_side(vision)
    if isinstance(bot.model.bridge, QFormerBridge):
        # Of the last layer that reads patches, the heads' mean, without what goes to the class token.
        return seen[-1].mean(1)[:, :, leading_tokens(vision) :].unflatten(2, (side, side))
    n = bot.model.config.num_image_tokens
    place = torch.arange(side)
    if bridge.kind == "pool":
        across = -(-side // bridge.pool_side)
        token = place[:, None] // bridge.pool_side * across + place[None] // bridge.pool_side  # (h, w)
    else:
        token = (place[:, None] * side + place[None]) // bridge.merge
    maps = torch.eq(token, torch.arange(n)[:, None, None]).float()  # (n, h, w)
    return (maps / maps.sum((1, 2), keepdim=True).clamp(min=1)).expand(pictures, -1, -1, -1)


@contextmanager
def _telling(network: Any, rows: slice = slice(None), columns: Tensor | None = None) -> Iterator[list[Tensor]]:
    """While this lasts, the weights of each attention of `network` are kept, layer by layer: (B, heads, rows, columns).

    Of a Q-Former, those that read patches; of an LLM, all. Only one thread at a time, as for any step.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        weights = output[1]
        kept.append(weights[:, :, rows] if columns is None else weights[:, :, rows][..., columns.to(weights.device)])

    if network is None:
        yield kept
        return
    ends = ("crossattention.attention",) if columns is None else ("self_attn", "attention", "attn")
    handles = [m.register_forward_hook(keep) for name, m in network.named_modules() if name.endswith(ends)]
    before = network.config._attn_implementation
    network.config._attn_implementation = "eager"  # the one that tells its weights
    try:
        yield kept
    finally:
        network.config._attn_implementation = before
        for handle in handles:
            handle.remove()
