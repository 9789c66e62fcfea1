"""Real clients: four turns with two pictures through each are what a chat says. `make test-clients` runs it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import minichat
from minichat.inference.bot import MiniChat
from minichat.serve.app import build_app
from minichat.toy.world import draw, random_scene
from tests.serving import Client, data_url, on_a_socket, until

FOLDER = Path(__file__).parent / "clients"
INSTALLED = os.environ.get("MINICHAT_CLIENTS")
pytestmark = pytest.mark.skipif(INSTALLED is None, reason="the clients are not installed: make test-clients")

TURNS = (
    ("How many objects are there?", (1,)),
    ("What colour is the background?", ()),
    ("Describe this picture in detail.", (2,)),
    ("Thank you. Is there a circle in it?", ()),
)
MOST = 60
PYTHON = [
    "openai_whole", "openai_stream", "openai_async", "langchain", "langchain_stream", "litellm", "litellm_stream",
]  # fmt: skip


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return minichat.load("minichat-tiny", dtype="float32")


@pytest.fixture(scope="module")
def url(bot: MiniChat) -> Iterator[str]:
    with on_a_socket(build_app(bot, key="open-sesame")) as url:
        yield url


@pytest.fixture(scope="module")
def said(bot: MiniChat) -> list[str]:
    """What a chat says."""
    chat = bot.chat(max_new_tokens=MOST)
    return [chat.ask(text, [scene(seed) for seed in pictures]) for text, pictures in TURNS]


def scene(seed: int) -> Any:
    return draw(random_scene(random.Random(seed)), 224, seed)


def given(url: str, turns: Any = TURNS, most: int = MOST) -> dict[str, Any]:
    asked = [{"text": text, "pictures": [data_url(scene(seed)) for seed in pictures]} for text, pictures in turns]
    return {"url": f"{url}/v1", "key": "open-sesame", "model": "minichat-tiny", "turns": asked, "max_tokens": most}


def run(command: list[str], content: dict[str, Any]) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NODE_PATH": f"{INSTALLED}/node_modules"}
    done = subprocess.run(command, input=json.dumps(content), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def python(way: str, content: dict[str, Any]) -> Any:
    return run([f"{INSTALLED}/bin/python", str(FOLDER / "clients.py"), way], content)


def node(way: str, content: dict[str, Any]) -> Any:
    # Imported packages are looked for beside the program itself.
    program = Path(INSTALLED or "", "client.mjs")
    program.write_text((FOLDER / "client.mjs").read_text())
    return run(["node", str(program), way], content)


@pytest.mark.parametrize("way", PYTHON)
def test_python_packages(url: str, said: list[str], way: str) -> None:
    check(python(way, given(url)), said)


@pytest.mark.parametrize("way", ["whole", "stream"])
def test_the_javascript_package(url: str, said: list[str], way: str) -> None:
    check(node(way, given(url)), said)


def check(found: list[list[Any]], said: list[str]) -> None:
    assert [text for text, _ in found] == said
    assert all(tokens is None or 0 < tokens <= MOST for _, tokens in found)


@pytest.mark.parametrize("stream", [False, True])
def test_curl(url: str, said: list[str], stream: bool, tmp_path: Path) -> None:
    content, messages = given(url), []
    for turn, wanted in zip(content["turns"], said, strict=True):
        parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in turn["pictures"]]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn["text"]}]})
        body = {"model": content["model"], "messages": messages, "max_tokens": MOST, "stream": stream}
        (tmp_path / "body.json").write_text(json.dumps(body))
        command = ["curl", "-sSN", f"{url}/v1/chat/completions", "-d", f"@{tmp_path / 'body.json'}"]
        headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer open-sesame"]
        answer = subprocess.run([*command, *headers], capture_output=True, text=True, check=True).stdout
        if stream:
            *lines, last = [line for line in answer.split("\n\n") if line]
            assert last == "data: [DONE]"
            chunks = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines]
            text = "".join(delta.get("content", "") for delta in chunks)
        else:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        assert text == wanted
        messages.append({"role": "assistant", "content": text})


@pytest.mark.parametrize("client", ["python", "node"])
def test_who_leaves_a_stream_ends_it(bot: MiniChat, url: str, client: str) -> None:
    served = Client(url, Authorization="Bearer open-sesame")
    before = served.metrics().get('minichat_requests_total{status="499"}', 0)
    turns = [("Describe this picture in detail.", (seed,)) for seed in (3, 4, 5)]
    if client == "python":
        python("openai_leaves", given(url, turns, 500))
    else:
        node("leaves", given(url, turns, 500))
    assert until(lambda: bot.engine.waiting + bot.engine.written_now == 0)
    after = served.metrics()['minichat_requests_total{status="499"}']
    assert before < after <= before + 3  # a reply may be over before its client is


def test_errors_are_openais(url: str) -> None:
    assert python("openai_errors", given(url)) == [
        ["BadRequestError", "temperature"],
        ["NotFoundError", "model"],
        ["BadRequestError", "tools"],
        ["AuthenticationError", "invalid_api_key"],
    ]
