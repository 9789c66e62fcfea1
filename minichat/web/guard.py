"""The door in front of Gradio: whose request this is, what it may reach, and the queue behind it."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr
from gradio.server_messages import ProcessCompletedMessage
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minichat.web.sessions import GONE, Limits, Sessions, Uploads, share_of_address

# --- Gradio's queue, as far as the page looks into it: whose messages are in it, and taking out those that wait.


class Waiting:
    """The messages of a page that wait for an answer or are being answered. Only for the server's event loop."""

    def __init__(self, page: gr.Blocks) -> None:
        self._page = page

    def count(self, counted: Callable[[Any], bool]) -> int:
        """How many messages came with a (Starlette) request that counts."""
        return sum(counted(event.request) for event in self._page._queue.event_ids_to_events.values())

    async def withdraw(self, key: str) -> None:
        """Take out what this session has waiting: its page is told that it is done, and that nothing changes."""
        queue = self._page._queue
        for event in [event for event in queue.event_ids_to_events.values() if event.session_hash == key]:
            if event in queue.event_queue_per_concurrency_id[event.concurrency_id].queue:
                await queue.remove_from_queue(event._id)
                if event._id not in queue.event_ids_to_events:
                    unchanged = {"data": [gr.skip() for _ in event.fn.outputs], "is_generating": False}
                    queue.send_message(event, ProcessCompletedMessage(output=unchanged, success=True))


# --- The door in front of Gradio: whose request this is, and what it may reach.
#
# Gradio serves any cached file to anyone who knows its address, and takes a session's id at its word. So every visitor
# gets a secret cookie, and behind the door
# - a session id is replaced by one made of the cookie and the id: another visitor's id names nothing here;
# - an uploaded file can be fetched, or used in a message, only by the visitor who uploaded it;
# - only the routes that the page itself uses exist, bodies have a bound, and the page may load nothing from elsewhere;
# - a message names a listener of the page and has a value for each of its inputs. The listener gets the values with the
#   request, unseen by Gradio, whose own checks answer with an empty error: so it can name the field that is wrong;
# - a visitor, and an address, has a share of the queue.


COOKIE = "minichat_visitor"
API = "/gradio_api"
SENT = "minichat.sent"  # in a request's scope: its `Sent`

_VISITOR = re.compile(r"[A-Za-z0-9_-]{43}")
_GET = re.compile(
    r"/|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/(?:assets|static|svelte)/.+"
    rf"|{API}/(?:startup-events|theme\.css|info/?|app_id/?|queue/data|heartbeat/[^/]+|file=.+)"
    r"|/minichat/desk/[0-9a-f]{20}/[0-9]{1,4}"
)
LACKING = "/minichat/lacking"  # ours: of the pictures that a page names, those that its visitor has to upload anew
DESK = "/minichat/desk"  # ours: what the page's owner may do beside talking
CAPTIONS = "/minichat/captions"  # ours: of uploaded pictures, without a chat
_POST = re.compile(rf"{API}/(?:queue/join|run/[^/]+/?|upload)|{LACKING}|{DESK}|{CAPTIONS}")
_NAMES = 2**20  # bytes of names

HEADERS = {
    # Gradio's page has inline scripts and styles, hence 'unsafe-inline'; all else comes from this server or not at all.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
        "media-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Sent:
    """What a page has sent to a listener, any JSON, and when it came, on the clock of `Sessions`."""

    values: list[Any]  # one for each input
    event: Any
    when: float


class Refusal(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def visitor_of(headers: Headers | Any) -> str | None:
    """The visitor's secret as their cookie tells it, if it has the right form."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie is not None and _VISITOR.fullmatch(cookie.value) else None


def address_of(client: tuple[str, int] | None) -> str:
    """The address to count a visitor by; "" for loopback, behind which may be everyone whom a proxy lets in.

    Of IPv6 the first 64 bits, since a single customer gets all addresses that share them.
    """
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:  # no address: a Unix socket, a test's client
        return ""
    if address.is_loopback:
        return ""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def private_id(visitor: str, name: str) -> str:
    """The id behind the door of what a visitor calls `name`: unguessable, and different for every visitor."""
    return hashlib.sha256(f"{visitor}/{name}".encode("utf-8", "surrogatepass")).hexdigest()[:40]


class Guard:
    """ASGI middleware around Gradio's application.

    Args:
        inputs: how many values each listener of the page takes, by the listener's number.
        desk: answers what is asked at `DESK`, with the visitor, or None for one who has no cookie.
        captions: answers what is asked at `CAPTIONS`.
        prepare: called with the key of each page that opens, so that its first question finds everything ready.
        look_ahead: called with each file that was uploaded and its visitor, one at a time, when they have the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        uploads: Uploads,
        waiting: Waiting,
        inputs: Mapping[int, int],
        limits: Limits,
        desk: Callable[[Scope, Receive, Send, str | None], Awaitable[None]],
        captions: Callable[[Scope, Receive, Send, str], Awaitable[None]],
        prepare: Callable[[str], object],
        look_ahead: Callable[[str, str], None],
    ) -> None:
        self._app = app
        self._prepare = prepare
        self._look_ahead, self._looking = look_ahead, asyncio.Lock()
        self._desk = desk
        self._captions = captions
        self._sessions = sessions
        self._uploads = uploads
        self._waiting = waiting
        self._inputs = inputs
        self._limits = limits
        self._max_json = 2**16 + 7 * limits.characters  # a character is 6 bytes at most, save for rare ones
        self._joining: Counter[str] = Counter()  # requests on their way into the queue, by visitor and by address
        self._uploading: Counter[str] = Counter()  # bytes on their way, by visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            send = _with_headers(send, HEADERS)
            try:
                await self._pass(scope, receive, send)
            except Refusal as refusal:
                # As Gradio's script wants it, which shows what a failed upload answers word for word.
                plain = scope["path"] == f"{API}/upload"
                answer = PlainTextResponse if plain else JSONResponse
                content = refusal.sentence if plain else {"detail": refusal.sentence}
                await answer(content, refusal.status)(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        known = (_POST if method == "POST" else _GET).fullmatch(path)
        if not known or not path.isprintable() or method not in ("GET", "HEAD", "POST"):
            raise Refusal(404, "There is no such page here.")
        visitor = visitor_of(Headers(scope=scope))
        if path == "/" and visitor is None:
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            token = secrets.token_urlsafe(32)
            send = _with_headers(send, {"Set-Cookie": f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax{secure}"})
        route = path.removeprefix(API)
        private = route.startswith(("/queue/", "/run/", "/upload", "/heartbeat/", "/file="))
        if path.startswith(DESK):
            await self._desk(scope, receive, send, visitor)
            return
        if path == LACKING and visitor is not None:
            await self._tell_lacking(scope, receive, send, visitor)
            return
        if path == CAPTIONS and visitor is not None:
            await self._captions(scope, receive, send, visitor)
            return
        if path == route or not private:
            await self._app(scope, receive, send)
            return
        if visitor is None:
            raise Refusal(403, "Open the page first, with cookies allowed.")
        scope = dict(scope)
        scope["query_string"] = _private_query(scope["query_string"], visitor)
        if route == "/upload":
            await self._take_upload(scope, receive, send, visitor)
        elif route.startswith("/heartbeat/"):
            await self._stay(scope, receive, send, visitor, private_id(visitor, route.removeprefix("/heartbeat/")))
        elif route.startswith("/file="):
            if not self._uploads.owns(route.removeprefix("/file="), visitor):
                raise Refusal(404, "There is no such file here.")
            await self._app(scope, receive, _with_headers(send, {"Cache-Control": "private, no-store"}))
        elif method == "POST":
            await self._take_message(scope, receive, send, visitor, waits=route == "/queue/join")
        else:
            await self._app(scope, receive, send)

    async def _tell_lacking(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        try:
            names = json.loads(await whole(receive, _NAMES))
        except (ValueError, RecursionError):
            raise Refusal(400, "The request is no valid JSON.") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Refusal(400, "The request must be a list of pictures' names.")
        here = await run_in_threadpool(self._sessions.pictures_of, visitor)
        await JSONResponse([name for name in names if name not in here])(scope, receive, send)

    async def _stay(self, scope: Scope, receive: Receive, send: Send, visitor: str, key: str) -> None:
        """The connection that a page holds for as long as it is open."""
        scope["path"] = f"{API}/heartbeat/{key}"
        scope["raw_path"] = scope["path"].encode()
        self._sessions.enter(key)
        self._uploads.enter(visitor)
        try:
            await run_in_threadpool(self._prepare, key)
            await self._app(scope, receive, send)
        finally:
            self._uploads.leave(visitor)
            self._sessions.leave(key)

    async def _take_message(self, scope: Scope, receive: Receive, send: Send, visitor: str, waits: bool) -> None:
        """Hand a message on, into the queue where it waits for its turn."""
        when = self._sessions.now()
        content = await self._read_json(receive)
        if not all(self._uploads.owns(path, visitor) for path in _paths(content["data"])):
            raise Refusal(403, GONE)
        scope[SENT] = Sent(content["data"], content.get("event_data"), when)
        body = json.dumps(
            {
                "data": [None] * len(content["data"]),
                "fn_index": content["fn_index"],
                "session_hash": private_id(visitor, content["session_hash"]),
            }
        ).encode()
        others = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        scope["headers"] = [*others, (b"content-length", str(len(body)).encode())]
        receive = _replay(body, receive)
        if not waits:
            await self._app(scope, receive, send)
            return
        address = address_of(scope.get("client"))
        self._check_queue(visitor, address)
        self._joining.update((visitor, address))
        try:
            await self._app(scope, receive, send)
        finally:
            self._joining.subtract((visitor, address))
            self._joining += Counter()  # forgets what is at 0

    def _check_queue(self, visitor: str, address: str) -> None:
        """Refuse a message of someone whose share of the queue is full."""
        mine = self._waiting.count(lambda request: visitor_of(request.headers) == visitor) + self._joining[visitor]
        if mine >= self._limits.queue_per_visitor:
            raise Refusal(429, f"You have {mine} messages that wait for a reply: wait for one of them.")
        if address:
            near = self._waiting.count(lambda request: address_of(request.client) == address) + self._joining[address]
            if near >= share_of_address(self._limits.queue):
                raise Refusal(429, f"{near} messages from your network wait for a reply: try again in a minute.")

    async def _read_json(self, receive: Receive) -> dict[str, Any]:
        """The body of a message, whose `fn_index`, `data` and `session_hash` have been checked."""
        too_long = f"A message may have at most {self._limits.characters} characters; this is longer."
        body = await whole(receive, self._max_json, too_long)
        try:
            content = json.loads(body, parse_int=_number)
        except (ValueError, RecursionError):
            raise Refusal(400, "The request is no valid JSON.") from None
        if not isinstance(content, dict) or not isinstance(content.get("session_hash"), str):
            raise Refusal(400, "The request has no session_hash, which must be a text.")
        listener, data = content.get("fn_index"), content.get("data")
        if isinstance(listener, bool) or not isinstance(listener, int) or listener not in self._inputs:
            raise Refusal(400, "fn_index must be the number of a listener of this page.")
        if not isinstance(data, list) or len(data) != self._inputs[listener]:
            raise Refusal(400, f"data must be a list of {self._inputs[listener]} values.")
        return content

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        """Take pictures in, in Gradio's stead: its own parser leaves files behind when an upload is broken off."""
        limits = self._limits
        most, each = limits.pictures_per_message, limits.upload_bytes
        sentence = f"Upload at most {most} pictures of {each / 2**20:.3g} MB at a time."
        too_large = Refusal(413, sentence)
        stated = Headers(scope=scope).get("content-length", "")
        if not stated.isdecimal() or len(stated) > 20:
            raise Refusal(411, "An upload must state its length.")
        length = int(stated)
        if length > each * most + 2**20:
            raise too_large
        if self._uploading[visitor] and self._uploading[visitor] + length > each * most:
            raise Refusal(429, "Your other pictures are still on their way: wait until they have arrived.")
        request = Request(scope, receive)
        self._uploading[visitor] += length
        try:
            async with request.form(max_files=most, max_fields=8) as form:
                files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                if any((file.size or 0) > each for file in files):
                    raise too_large
                add, address = self._uploads.add, address_of(scope.get("client"))
                paths = [
                    await run_in_threadpool(add, file.file, file.filename or "", visitor, address) for file in files
                ]
        except (HTTPException, ClientDisconnect):
            raise Refusal(400, f"The upload cannot be read. {sentence}") from None
        finally:
            self._uploading[visitor] -= length
            self._uploading += Counter()
        await JSONResponse(paths)(scope, receive, send)
        for path in paths:
            async with self._looking:
                await run_in_threadpool(self._look_ahead, path, visitor)


async def whole(receive: Receive, most: int, too_long: str = "The request is too long.") -> bytes:
    """The body of a request. Raises `Refusal` for one that breaks off, or has more bytes than that."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The request broke off.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise Refusal(413, too_long)
    return bytes(body)


def _number(digits: str) -> int | float:
    """A whole number of JSON. No field takes one of more than 19 digits, and Python's own have no bound."""
    return int(digits) if len(digits) < 20 else float(digits)


def _paths(value: Any) -> list[str]:
    """Every file that a message names, wherever in it."""
    found: list[str] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if "path" in item:
                found.append(str(item["path"]))
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return found


def _private_query(query: bytes, visitor: str) -> bytes:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return urlencode([(k, private_id(visitor, v) if k == "session_hash" else v) for k, v in pairs]).encode()


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, then what the connection gives (that the visitor has left)."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            shown = MutableHeaders(scope=message)
            for key, value in headers.items():
                shown[key] = value
        await send(message)

    return sending
