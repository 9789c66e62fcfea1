"""Many visitors of the chat page, over HTTP as a browser's script asks: `python -m benchmarks.visitors`.

One run has three parts. Replies: one visitor alone, then eight at once, by turns, so that both meet the same machine.
Paint: the first contentful paint of the page and of an empty Gradio page, by turns, in Chromium. Apart: 64 open
sessions, each with a picture and words of its own, get what the model says to each alone.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx
from PIL import Image

from benchmarks.screenshot import open_browser, picture_file
from minichat.toy.world import draw, random_scene
from tests.web_visitor import API, DEFAULTS, Reply, Visitor

TOGETHER, SESSIONS = 8, 64
LONG, SHORT = "Describe the picture in detail.", ("How many objects are there?", "What colour is the background?")


@contextmanager
def served(model: str, port: int) -> Iterator[str]:
    """The page in a process of its own."""
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "minichat", "demo", "--model", model, "--port", str(port)])
    try:
        while server.poll() is None:
            try:
                Visitor(url).close()
                break
            except httpx.HTTPError:  # nobody listens yet
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait()


def png(picture: Image.Image) -> bytes:
    data = picture_file(picture)["buffer"]
    return data if isinstance(data, bytes) else bytes(data)


@dataclass(frozen=True)
class Asked:
    """A reply, when its first words and its end came, in seconds, and its tokens."""

    words: str
    first: float
    end: float
    tokens: int


def ask(visitor: Visitor, text: str, files: list[str]) -> Asked:
    """`files`: pictures that were uploaded."""
    visitor.talk = visitor.talk or {"messages": []}
    began = time.perf_counter()
    visitor.send(text, files, DEFAULTS).raise_for_status()
    came: list[float] = []
    messages = []
    for message in visitor.messages():
        messages.append(message)
        if message["msg"] == "process_generating":
            came.append(time.perf_counter() - began)  # the question, then the reply as it grows
    end = time.perf_counter() - began
    reply = Reply(messages)
    visitor.talk = {"messages": [{k: m[k] for k in ("role", "text", "pictures")} for m in reply.talk["messages"]]}
    return Asked(
        reply.texts[-1], came[1] if len(came) > 1 else end, end, reply.talk["messages"][-1]["figures"]["tokens"]
    )


def together(visitors: Sequence[Visitor], pictures: Sequence[Image.Image], typing: float) -> tuple[float, float]:
    """Tokens a second of all, and the median wait for first words; each has just opened the page.

    `typing`: seconds between the upload of the picture and the question about it.
    """
    with ExitStack() as open_pages:
        for visitor in visitors:
            visitor.talk = None
            visitor.session = f"{random.getrandbits(48):x}"
            page = open_pages.enter_context(visitor.http.stream("GET", f"{API}/heartbeat/{visitor.session}"))
            next(page.iter_lines())
        with ThreadPoolExecutor(len(visitors)) as pool:
            files = list(pool.map(lambda pair: pair[0].upload(png(pair[1])), zip(visitors, pictures, strict=True)))
            time.sleep(typing)
            began = time.perf_counter()
            asked = list(pool.map(lambda pair: ask(pair[0], LONG, [pair[1]]), zip(visitors, files, strict=True)))
            spent = time.perf_counter() - began
    return sum(one.tokens for one in asked) / spent, median(one.first for one in asked)


def replies(url: str, repeats: int, typing: float, rng: random.Random) -> str:
    visitors = [Visitor(url) for _ in range(TOGETHER)]
    found: dict[int, list[tuple[float, float]]] = {1: [], TOGETHER: []}
    for turn in range(repeats + 1):
        for count in found:
            one = together(visitors[:count], [draw(random_scene(rng), 256) for _ in range(count)], typing)
            if turn:  # the first warms up
                found[count].append(one)
    rows = {count: [median(part) for part in zip(*some, strict=True)] for count, some in found.items()}
    lines = [f"| {count} | {rate:.0f} | {1000 * first:.0f} |" for count, (rate, first) in rows.items()]
    ratio = [rows[TOGETHER][part] / rows[1][part] for part in (0, 1)]
    head = ["| visitors at once | tokens a second, all | first words after, ms |", "|---|---|---|"]
    return "\n".join([*head, *lines, f"| ratio | {ratio[0]:.2f} | {ratio[1]:.2f} |"])


def apart(url: str, model: str, rng: random.Random) -> str:
    """Whether each of many sessions hears what it would hear alone."""
    import minichat

    bot = minichat.load(model)
    scenes = [draw(random_scene(rng), 256) for _ in range(SESSIONS)]
    visitors = [Visitor(url) for _ in range(SESSIONS)]
    heard: list[list[Any]] = [[] for _ in visitors]

    def turn(number: int, place: int) -> None:
        words = f"{SHORT[number]} ({place})"
        files = [] if number else [visitors[place].upload(png(scenes[place]))]
        heard[place].append(ask(visitors[place], words, files).words)

    for number in range(len(SHORT)):
        order = rng.sample(range(SESSIONS), SESSIONS)
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(lambda place: turn(number, place), order))  # noqa: B023 (it ends within the loop)
    wrong = 0
    for place, scene in enumerate(scenes):
        chat = bot.chat(max_new_tokens=200, temperature=0.0)
        alone = [chat.ask(f"{text} ({place})", None if number else [scene]) for number, text in enumerate(SHORT)]
        wrong += sum(one != other.strip() for one, other in zip(heard[place], alone, strict=True))
    return f"{SESSIONS} sessions, {TOGETHER} at once, {len(SHORT)} turns each: {wrong} replies differ from those alone."


def paint(url: str, repeats: int) -> str:
    import gradio as gr

    with gr.Blocks() as empty:
        pass
    _, bare, _ = empty.launch(prevent_thread_lock=True, quiet=True, server_port=None, ssr_mode=False)
    times: dict[str, list[float]] = {bare: [], url: []}
    read = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
    with open_browser() as browser:
        for turn in range(repeats + 1):
            for address, some in times.items():
                context = browser.new_context()
                page = context.new_page()
                page.goto(address)
                page.wait_for_function(read)
                if turn:
                    some.append(page.evaluate(read))
                context.close()
    empty.close(verbose=False)
    ours, theirs = median(times[url]), median(times[bare])
    return f"First contentful paint: {ours:.0f} ms, of an empty Gradio page {theirs:.0f} ms, ratio {ours / theirs:.2f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minichat-tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--port", type=int, default=7957)
    parser.add_argument("--typing", type=float, default=2.0, help="seconds from a picture to the question about it")
    options = parser.parse_args()
    rng = random.Random(1)
    with served(options.model, options.port) as url:
        print(replies(url, options.repeats, options.typing, rng), flush=True)
        print(paint(url, options.repeats), flush=True)
        print(apart(url, options.model, rng), flush=True)


if __name__ == "__main__":
    main()
