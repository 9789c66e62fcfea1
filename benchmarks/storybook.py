"""How much of a fine-tuned model's replies is in the storybook style, and true: before and after, on held-out scenes.

    minichat data scenes --style storybook --count 500 --out runs/storybook
    minichat data split runs/storybook/conversations.jsonl --out runs/storybook-sets --validation 0.1 --test 0
    minichat train train_configs/tiny_finetune.yaml
    python benchmarks/storybook.py runs/tiny_finetune

The same pictures and requests are given to the base model and to the fine-tuned one, and a Markdown table is printed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

import minichat
from minichat.inference.bot import MiniChat
from minichat.toy.captions import STORYBOOK_REQUESTS, halves
from minichat.toy.evaluate_captions import check, fact_figures
from minichat.toy.world import Scene, Style, draw, random_scene


def held_out(count: int) -> list[tuple[Scene, str, int]]:
    """Scenes that no data set and no training draws (their seeds are other words), each with a request and a seed."""
    asked = []
    for number in range(count):
        rng = random.Random(f"held-out page {number}")
        asked.append((random_scene(rng), rng.choice(STORYBOOK_REQUESTS), rng.getrandbits(32)))
    return asked


def figures(bot: MiniChat, asked: Sequence[tuple[Scene, str, int]]) -> dict[str, float | None]:
    """Shares from 0 to 1."""
    pictures = [draw(scene, 96, seed, Style.random(random.Random(seed))) for scene, _, seed in asked]
    replies = bot.caption(pictures, [request for _, request, _ in asked], max_new_tokens=320, batch_size=16)
    pages = [halves(reply) for reply in replies]
    scenes = [scene for scene, _, _ in asked]
    described = [page[0] if page else reply.split(" Once upon")[0] for page, reply in zip(pages, replies, strict=True)]
    checks = [check(text, scene) for text, scene in zip(described, scenes, strict=True)]
    found: dict[str, float | None] = {"in the style": sum(page is not None for page in pages) / len(pages)}
    found["letters of a reply"] = sum(map(len, replies)) / len(replies)
    found |= {f"description: {name}": figure.value for name, figure in fact_figures(checks).items()}
    told = [check(page[1], scene) for page, scene in zip(pages, scenes, strict=True) if page]
    return found | {f"story: {name}": figure.value for name, figure in fact_figures(told).items() if "objects" in name}


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if "letters" in name else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the fine-tuned model's folder")
    parser.add_argument("--base", default="minichat-tiny", help="what it was before")
    parser.add_argument("--scenes", type=int, default=100)
    options = parser.parse_args()
    asked = held_out(options.scenes)
    before, after = (figures(minichat.load(name), asked) for name in (options.base, options.model))
    lines = [f"{len(asked)} held-out scenes", "", "| | before | after |", "|---|---|---|"]
    for name in after:
        lines.append(f"| {name} | {_shown(name, before.get(name))} | {_shown(name, after[name])} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
