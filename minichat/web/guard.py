"""The door in front of Gradio: whose request this is, and what it may reach.

Gradio serves any cached file to anyone who knows its address, and takes a session's id at its word. So every visitor
gets a secret cookie, and behind the door
- a session id is replaced by one made of the cookie and the id: another visitor's id names nothing here;
- an uploaded file can be fetched, or used in a message, only by the visitor who uploaded it;
- only the routes that the page itself uses exist, bodies have a bound, and the page may load nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minichat.web.limits import Limits
from minichat.web.store import Uploads

COOKIE = "minichat_visitor"
API = "/gradio_api"
MAX_JSON = 2**20

_VISITOR = re.compile(r"[A-Za-z0-9_-]{43}")
_GET = re.compile(
    r"/|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/(?:assets|static|svelte)/.+"
    rf"|{API}/(?:startup-events|theme\.css|info/?|app_id/?|queue/data|heartbeat/[^/]+|file=.+)"
)
_POST = re.compile(rf"{API}/(?:queue/join|run/[^/]+/?|upload)")

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


def private_id(visitor: str, name: str) -> str:
    """The id behind the door of what a visitor calls `name`: unguessable, and different for every visitor."""
    return hashlib.sha256(f"{visitor}/{name}".encode()).hexdigest()[:40]


class Guard:
    """ASGI middleware around Gradio's application."""

    def __init__(self, app: ASGIApp, uploads: Uploads, limits: Limits) -> None:
        self._app = app
        self._uploads = uploads
        self._limits = limits

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
        if not (_POST if method == "POST" else _GET).fullmatch(path) or method not in ("GET", "HEAD", "POST"):
            raise Refusal(404, "There is no such page here.")
        visitor = visitor_of(Headers(scope=scope))
        if path == "/" and visitor is None:
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            token = secrets.token_urlsafe(32)
            send = _with_headers(send, {"Set-Cookie": f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax{secure}"})
        route = path.removeprefix(API)
        private = route.startswith(("/queue/", "/run/", "/upload", "/heartbeat/", "/file="))
        if path == route or not private:
            await self._app(scope, receive, send)
            return
        if visitor is None:
            raise Refusal(403, "Open the page first, with cookies allowed.")
        scope = dict(scope)
        if route.startswith("/heartbeat/"):
            key = private_id(visitor, route.removeprefix("/heartbeat/"))
            scope["path"] = f"{API}/heartbeat/{key}"
            scope["raw_path"] = scope["path"].encode()
        elif route.startswith("/file="):
            if not self._uploads.owns(route.removeprefix("/file="), visitor):
                raise Refusal(404, "There is no such file here.")
            send = _with_headers(send, {"Cache-Control": "private, no-store"})
        elif method == "POST" and route != "/upload":
            receive = await self._private_body(scope, receive, visitor)
        scope["query_string"] = _private_query(scope["query_string"], visitor)
        if route == "/upload":
            await self._take_upload(scope, receive, send, visitor)
        else:
            await self._app(scope, receive, send)

    async def _private_body(self, scope: Scope, receive: Receive, visitor: str) -> Receive:
        """Read a JSON body, check the files it names, put in the private session id, and hand it on."""
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "The request broke off.")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_JSON:
                raise Refusal(413, f"A message may have at most {MAX_JSON} bytes.")
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "The request is no valid JSON.") from None
        if not isinstance(content, dict) or not isinstance(content.get("session_hash"), str):
            raise Refusal(400, "The request has no session_hash.")
        if not all(self._uploads.owns(path, visitor) for path in _paths(content)):
            raise Refusal(403, "A picture of this message is no longer here: upload it again.")
        content["session_hash"] = private_id(visitor, content["session_hash"])
        body = json.dumps(content).encode()
        others = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        scope["headers"] = [*others, (b"content-length", str(len(body)).encode())]
        return _replay(body, receive)

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        """Take pictures in, in Gradio's stead: its own parser leaves files behind when an upload is broken off."""
        limits = self._limits
        most, each = limits.pictures_per_message, limits.upload_bytes
        sentence = f"Upload at most {most} pictures of {each / 2**20:.3g} MB at a time."
        too_large = Refusal(413, sentence)
        if not self._uploads.has_room():
            raise Refusal(503, "Too many pictures are waiting on this server: try again in a few minutes.")
        length = Headers(scope=scope).get("content-length", "")
        if not length.isdecimal():
            raise Refusal(411, "An upload must state its length.")
        if int(length) > each * most + MAX_JSON:
            raise too_large
        request = Request(scope, receive)
        try:
            async with request.form(max_files=most, max_fields=8) as form:
                files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
                if any((file.size or 0) > each for file in files):
                    raise too_large
                add = self._uploads.add
                paths = [await run_in_threadpool(add, file.file, file.filename or "", visitor) for file in files]
        except (HTTPException, ClientDisconnect):
            raise Refusal(400, f"The upload cannot be read. {sentence}") from None
        await JSONResponse(paths)(scope, receive, send)


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
