"""How often the thing that a colour answer names gets the most weight of where the model looked, on drawn scenes.

    python -m benchmarks.looked                       # of 200 scenes, with the heads that `HEADS` names
    python -m benchmarks.looked --choose --count 300  # on other scenes: which head, or pair of heads, does best

A question asks for the colour of a shape that only one thing has, among two to six. It counts where the answer is
right. The weight of a thing is the sum over its pixels' share of each patch. `--choose` tries every head of the LLM,
at the position that chose the colour's first token and at that token, and every pair by its geometric mean.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import minichat
from minichat.inference.bot import MiniChat
from minichat.inference.looked import attended, looked
from minichat.prompt.conversation import Conversation
from minichat.toy.world import Scene, Thing, draw, random_scene

SIDE = 96


def asked(count: int, seed: str) -> Iterator[tuple[Scene, Thing, int]]:
    """Scenes with one thing of each that is asked about, and a number to draw each by."""
    for number in range(count):
        rng = random.Random(f"looked {seed} {number}")
        alone: list[Thing] = []
        while not alone:
            scene = random_scene(rng)
            shapes = [thing.shape for thing in scene.things]
            alone = [thing for thing in scene.things if shapes.count(thing.shape) == 1 and len(shapes) > 1]
        yield scene, rng.choice(alone), number


def covered(thing: Thing, scene: Scene, side: int) -> Tensor:
    """The share of each of side × side patches that a thing covers (h, w): where it is missing, the picture differs."""
    here, without = (draw(Scene(things, scene.background), SIDE, 0) for things in ((thing,), ()))
    changed = (np.asarray(here) != np.asarray(without)).any(-1)
    cell = SIDE // side
    return torch.from_numpy(changed).float().view(side, cell, side, cell).mean((1, 3))


def right(bot: MiniChat, count: int, seed: str) -> Iterator[tuple[Scene, Thing, Conversation, list[int]]]:
    """Scenes whose question was answered rightly, the conversation, and which tokens of the reply name the colour."""
    for scene, thing, number in asked(count, seed):
        chat = bot.chat(max_new_tokens=24)
        reply = chat.ask(f"What colour is the {thing.shape}?", draw(scene, SIDE, number)).lower()
        if thing.colour in reply:
            begin = reply.index(thing.colour)
            ids = chat.conversation.messages[-1].ids or ()
            ends = [len(bot.processor.content_tokenizer.decode(ids[: end + 1])) for end in range(len(ids))]
            starts = [0, *ends]
            at = [k for k, end in enumerate(ends) if end > begin and starts[k] < begin + len(thing.colour)]
            yield scene, thing, chat.conversation, at


def measure(bot: MiniChat, count: int, seed: str) -> tuple[int, int, float]:
    """In how many the thing got the most weight, of how many; and in what share it would by chance."""
    hits, total, chance = 0, 0, 0.0
    for scene, thing, conversation, at in right(bot, count, seed):
        heat = looked(bot, conversation).together(at)[0]  # (h, w)
        most = max(scene.things, key=lambda each: float((heat * covered(each, scene, len(heat))).sum()))
        hits, total, chance = hits + (most is thing), total + 1, chance + 1 / len(scene.things)
    return hits, total, chance / max(1, total)


def choose(bot: MiniChat, count: int, seed: str) -> list[tuple[float, str]]:
    """Each head and pair of heads with its share, the best first."""
    votes, names, total = torch.zeros(0), list[str](), 0
    for scene, thing, conversation, at in right(bot, count, seed):
        _, _, maps, attention = attended(bot, conversation)
        things = torch.stack([covered(each, scene, maps.shape[-1]) for each in scene.things])  # (K, h, w)
        mass = torch.einsum("nhw,khw->nk", maps[0], things)  # (n, K)
        choosing, own = (attention[:, :, at[0] + shift].flatten(0, 1) for shift in (0, 1))  # (L · A, n)
        heads = torch.cat([choosing, own]).clamp(min=1e-12)
        heads = (heads / heads.sum(-1, keepdim=True)).sqrt()
        most = torch.einsum("an,bn,nk->abk", heads, heads, mass).argmax(-1)  # a head with itself is that head
        hit = most.eq(scene.things.index(thing)).float()
        votes, total = (hit if not total else votes + hit), total + 1
        layers, each = attention.shape[:2]
        names = [f"{w} {k}.{j}" for w in ("choosing", "own") for k in range(layers) for j in range(each)]
    pairs = [(a, b) for a in range(len(names)) for b in range(a, len(names))]
    return sorted(((float(votes[a, b]) / total, f"{names[a]}, {names[b]}") for a, b in pairs), reverse=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minichat-tiny")
    parser.add_argument("--count", type=int, default=200, help="scenes")
    parser.add_argument("--choose", action="store_true", help="try all heads, on scenes that are not measured on")
    options = parser.parse_args(arguments)
    bot = minichat.load(options.model)
    if options.choose:
        for share, name in choose(bot, options.count, "chosen on")[:12]:
            print(f"{100 * share:5.1f} %  {name}")
        return 0
    hits, total, chance = measure(bot, options.count, "measured on")
    print(f"{hits} of {total} ({100 * hits / total:.1f} %; by chance {100 * chance:.1f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
