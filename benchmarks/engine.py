"""Replies written together, beside one after another and static batches: `python -m benchmarks.engine --size small`.

A model with random weights writes replies of fixed lengths to prompts with a picture each, whose features were computed
before. The ways take turns in one process, and the median of their times counts:

- chats: N conversations through the engine, and one after another by the loop for one reply;
- captions: replies of unlike lengths through the engine, and in static batches by transformers' `generate`, each of
  which goes on until its longest is done;
- a newcomer: the time to its first token while the other rows are being written, and alone;
- a step: what the engine adds to the LLM's own pass over as many rows.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import DynamicCache

import minichat
from benchmarks.random_model import SIZES, write_random_model
from minichat.inference.bot import MiniChat
from minichat.inference.engine import Engine
from minichat.inference.generate import generate_rows, stream
from minichat.inference.kv_cache import KVCache
from minichat.inference.request import Prompt, Request
from minichat.inference.sampling import GenerationSettings, ReplyText, Stops
from minichat.prompt.conversation import Conversation

NO_STOPS = Stops()


def prompts(bot: MiniChat, count: int, words: bool) -> list[Prompt]:
    """Prompts with a picture each; with `words` each question has its own length."""
    chance, made = random.Random(0), []
    pictures = [Image.effect_noise((224, 224), 20 + number).convert("RGB") for number in range(count)]
    features = bot.encode(pictures)
    for number, picture in enumerate(pictures):
        text = bot.caption_prompt if not words else "What is it? " * chance.randint(1, 8)
        rendered = bot.processor.render(Conversation().user(text, [picture]), add_generation_prompt=True)
        slot = bot.processor.image_token_id
        keys = [f"picture {number}" if token == slot else token for token in rendered.ids]
        made.append(Prompt(rendered.ids, keys, features[number : number + 1]))
    return made


def together(bot: MiniChat, asked: list[Prompt], lengths: list[int], rows: int) -> Callable[[], None]:
    def work() -> None:
        engine = Engine(bot.model, rows=rows)  # a new one: it knows nothing yet
        requests = [
            Request(prompt, GenerationSettings(max_new_tokens=n), bot.processor.content_tokenizer, NO_STOPS)
            for prompt, n in zip(asked, lengths, strict=True)
        ]
        for request, length in zip(engine.run(requests), lengths, strict=True):
            if len(request.ids) != length:
                raise RuntimeError(f"A reply has {len(request.ids)} tokens, not {length}: {request.error}.")

    return work


def one_by_one(bot: MiniChat, asked: list[Prompt], lengths: list[int]) -> Callable[[], None]:
    def work() -> None:
        for prompt, length in zip(asked, lengths, strict=True):
            reply = ReplyText(bot.processor.content_tokenizer, NO_STOPS)
            for _ in stream(bot.model, prompt, KVCache(), GenerationSettings(max_new_tokens=length), reply):
                pass

    return work


def static_batches(bot: MiniChat, asked: list[Prompt], lengths: list[int], rows: int) -> Callable[[], None]:
    def work() -> None:
        for start in range(0, len(asked), rows):
            part, longest = asked[start : start + rows], max(lengths[start : start + rows])
            width = max(len(prompt.ids) for prompt in part)
            ids = torch.tensor([[0] * (width - len(prompt.ids)) + prompt.ids for prompt in part])
            mask = torch.tensor([[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in part])
            features = torch.cat([prompt.features for prompt in part if prompt.features is not None])
            with torch.inference_mode():
                embeds = bot.model.embed(ids, image_features=features)
            chosen = GenerationSettings(max_new_tokens=longest)
            generate_rows(bot.model, embeds, mask, chosen, bot.processor.content_tokenizer, NO_STOPS)

    return work


def paired(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each way; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def first_token(bot: MiniChat, asked: list[Prompt], others: int) -> float:
    """Seconds from asking to the first token, while `others` replies are being written."""
    engine = Engine(bot.model, rows=others + 1, kept_bytes=0)
    tokenizer, chosen = bot.processor.content_tokenizer, GenerationSettings(max_new_tokens=1000)
    for prompt in asked[:others]:
        engine.submit(Request(prompt, chosen, tokenizer, NO_STOPS))
    while others and (len(engine._running) < others or engine._reading):
        engine.step()
    newcomer = Request(asked[others], chosen, tokenizer, NO_STOPS)
    start = time.perf_counter()
    engine.submit(newcomer)
    while not newcomer.ids:
        engine.step()
    return time.perf_counter() - start


def step(bot: MiniChat, asked: list[Prompt], rows: int, steps: int = 20) -> tuple[float, float]:
    """Milliseconds of a step of the engine, and of the LLM's pass over as many rows of the same lengths."""
    engine = Engine(bot.model, rows=rows, kept_bytes=0)
    prompt = asked[0]
    for _ in range(rows):
        settings = GenerationSettings(max_new_tokens=1000)
        engine.submit(Request(prompt, settings, bot.processor.content_tokenizer, NO_STOPS))
    while len(engine._running) < rows:
        engine.step()
    cache = DynamicCache(config=bot.model.config.text_config)
    ids = torch.tensor([prompt.ids] * rows)
    ours, plain = [], []
    with torch.inference_mode():
        features = None if prompt.features is None else prompt.features.repeat(rows, 1, 1)
        embeds = bot.model.embed(ids, image_features=features)
        bot.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(steps):
            start = time.perf_counter()
            engine.step()
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            last = bot.model.get_input_embeddings()(ids[:, -1:])
            bot.model(inputs_embeds=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
            plain.append(time.perf_counter() - start)
    return 1000 * statistics.median(ours), 1000 * statistics.median(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--model", type=Path, help="a folder that benchmarks.random_model has written")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or write_random_model(arguments.size, Path(folder) / "model")
        bot = minichat.load(path, device="cpu", dtype=arguments.dtype)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {arguments.dtype}")

    n, rows = arguments.chats, arguments.rows
    asked, lengths = prompts(bot, n + 1, words=True), [32] * n
    ways = {"together": together(bot, asked[:n], lengths, n), "one by one": one_by_one(bot, asked[:n], lengths)}
    found = paired(ways, arguments.rounds)
    rates = {name: sum(lengths) / seconds for name, seconds in found.items()}
    print(
        f"{n} chats: together {rates['together']:.1f} tokens/s, one by one {rates['one by one']:.1f}: "
        f"{rates['together'] / rates['one by one']:.2f} times"
    )

    pairs = [(first_token(bot, asked, 0), first_token(bot, asked, n - 1)) for _ in range(arguments.rounds + 1)][1:]
    alone, busy = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"first token: {alone * 1000:.0f} ms alone, {busy * 1000:.0f} ms beside {n - 1}: {busy / alone:.2f} times")

    for width in (1, rows):
        ours, plain = step(bot, asked, width)
        print(f"a step of {width}: {ours:.1f} ms, the LLM's pass {plain:.1f} ms: {ours / plain:.2f} times")

    chance = random.Random(1)
    asked = prompts(bot, arguments.captions, words=False)
    lengths = [min(60, max(8, round(chance.lognormvariate(3.2, 0.5)))) for _ in asked]
    ways = {
        "engine": together(bot, asked, lengths, rows),
        "static": static_batches(bot, asked, lengths, rows),
    }
    found = paired(ways, arguments.rounds)
    print(
        f"{len(asked)} captions of {min(lengths)} to {max(lengths)} tokens, mean {statistics.mean(lengths):.0f}, "
        f"{rows} at a time: engine {len(asked) / found['engine']:.2f}/s, static batches "
        f"{len(asked) / found['static']:.2f}/s: {found['static'] / found['engine']:.2f} times"
    )


if __name__ == "__main__":
    main()
