"""A visitor of the page without a browser: the requests that Gradio's own script makes, one by one."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
from PIL import Image

from minichat.web.sessions import Limits, panel

API = "/gradio_api"
DEFAULTS = [field.default for field in panel(Limits())]


def png(colour: str = "red", side: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


class Visitor:
    """One open page. `Visitor(url, like=other)` is another page of the same browser."""

    def __init__(self, url: str, like: Visitor | None = None) -> None:
        cookies = like.http.cookies if like else None
        self.http: httpx.Client = httpx.Client(base_url=url, timeout=60, trust_env=False, cookies=cookies)
        self.http.get("/")
        self.session = secrets.token_hex(6)
        self.talk: dict[str, Any] | None = None  # the conversation as the page has it; None: the server's own goes on
        config = self.http.get("/config").json()
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        parts = config["dependencies"]
        self.functions = {  # of the server; some come after what the browser itself does first
            (names.get(target), event): part["id"]
            for part in parts
            if part["backend_fn"]
            for target, event in (part if part["trigger_after"] is None else parts[part["trigger_after"]])["targets"]
        }

    def upload(self, data: bytes, name: str = "a.png") -> str:
        answer = self.http.post(f"{API}/upload", files={"files": (name, data, "image/png")})
        answer.raise_for_status()
        return str(answer.json()[0])

    def fetch(self, path: str) -> httpx.Response:
        return self.http.get(f"{API}/file={path}")

    def join(self, target: str, event: str, data: list[Any], event_data: Any = None) -> httpx.Response:
        body = {
            "data": data,
            "event_data": event_data,
            "fn_index": self.functions[(target, event)],
            "session_hash": self.session,
            "trigger_id": None,
        }
        # Not `json=`, which refuses to send NaN.
        return self.http.post(
            f"{API}/queue/join", content=json.dumps(body), headers={"content-type": "application/json"}
        )

    def direct(self, target: str, event: str, *data: Any) -> Any:
        """A listener that does not wait in the queue."""
        body = {"data": data, "fn_index": self.functions[(target, event)], "session_hash": self.session}
        answer = self.http.post(f"{API}/run/predict", json=body)
        answer.raise_for_status()
        return answer.json()["data"]

    def messages(self, session: str | None = None) -> Iterator[dict[str, Any]]:
        """What the server tells this page, until it has no more to tell."""
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": session or self.session}) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] in ("close_stream", "unexpected_error"):
                        return

    def send(self, text: str, files: list[str] | None = None, settings: list[Any] | None = None) -> httpx.Response:
        parts = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in files or []]
        return self.join("mc-box", "submit", [self.talk, {"text": text, "files": parts}, *(settings or DEFAULTS)])

    def ask(
        self, text: str, files: list[str] | None = None, settings: list[Any] | None = None, talk: Any = None
    ) -> Reply:
        """`talk`: in place of the conversation that the page has."""
        before, self.talk = self.talk, self.talk if talk is None else talk
        self.send(text, files, settings).raise_for_status()
        self.talk = before
        return Reply(list(self.messages()))

    def retry(self) -> Reply:
        self.join("mc-chat", "retry", [self.talk, *DEFAULTS], {"index": 0, "value": ""}).raise_for_status()
        return Reply(list(self.messages()))

    def edit(self, index: int, text: str) -> Reply:
        data = {"index": index, "value": text, "previous_value": ""}
        self.join("mc-chat", "edit", [self.talk, *DEFAULTS], data).raise_for_status()
        return Reply(list(self.messages()))

    def close(self) -> None:
        self.http.close()


class Reply:
    """All that came back for one request. The last message holds the chat whole; those before, what changed."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.messages = messages
        self.toasts = [message["log"] for message in messages if message["msg"] == "log"]
        self.steps = sum(message["msg"] == "process_generating" for message in messages)
        final = next(message for message in messages if message["msg"] == "process_completed")
        self.chat, self.talk = final["output"]["data"]

    @property
    def pictures(self) -> dict[str, str]:
        """The data of pictures that came with the conversation."""
        values = [message["output"]["data"][1] for message in self.messages if message["msg"] == "process_generating"]
        return {k: v for value in values if isinstance(value, dict) for k, v in value.get("pictures", {}).items()}

    @property
    def texts(self) -> list[str]:
        """The words of each bubble, and “[picture]” for each picture."""
        return words(self.chat)


def words(chat: list[dict[str, Any]]) -> list[str]:
    return [
        " ".join(part["text"] if part["type"] == "text" else "[picture]" for part in bubble["content"])
        for bubble in chat
    ]
