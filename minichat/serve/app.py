"""The server's routes, and the door in front of them: who may come in, and from which pages."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from minichat.errors import ModelError, SettingsError, shown
from minichat.inference.bot import MiniChat
from minichat.serve.completions import Completions, about_to_end, respond
from minichat.serve.image_hosts import ImageHosts
from minichat.serve.metrics import CONTENT_TYPE, Metrics
from minichat.serve.protocol import FAILED, NOT_FOUND, UNAUTHORIZED, UNAVAILABLE, ApiError, Limits, encode

if TYPE_CHECKING:
    from minichat.web import Owned

Answer = Callable[[Request], Response]

_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")  # as browsers send it: nothing after host and port


def build_app(
    bot: MiniChat,
    *,
    name: str | None = None,
    key: str | None = None,
    page: bool | Owned = False,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    origins: Sequence[str] = (),
    image_hosts: Sequence[str] = (),
) -> FastAPI:
    """The server of a loaded model; its `state.completions` writes the replies.

    Args:
        name: what requests call the model; None: its own name.
        page: whether the chat page is at `/`, on the same engine; with a key it asks people for it. What its owner has,
            where somebody may teach there and change the model; programs keep this one.
        key: without it nothing but `/health` is answered; None: there is no key.
        limits: what requests may cost the host.
        origins: of web pages whose scripts may use this server ("https://example.org").
        image_hosts: from where pictures are fetched by their addresses.

    Raises:
        ModelError: for a model whose replies cannot be written together.
        SettingsError: for what is no host's name, or no origin.
    """
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise SettingsError(f"{shown(origin)} is no page's origin: write it as in https://example.org, no more.")
    if bot.engine.alone:
        raise ModelError(f"The model {bot.name!r} cannot be served: {bot.engine.alone}.")
    name, metrics = name or bot.name, Metrics()
    completions = Completions(bot, name, limits, metrics, ImageHosts(image_hosts) if image_hosts else None)
    engine = bot.engine
    metrics.gauge("replies_running", "Replies that are being written now.", lambda: engine.written_now)
    metrics.gauge("replies_waiting", "Replies that wait for a row.", lambda: engine.waiting)
    metrics.gauge("kept_bytes", "Keys and values that are kept of prompts.", lambda: engine.kept.nbytes)
    door = [Middleware(Door, key=key, page=bool(page), ending=lambda: completions.ending)]
    if origins:  # outside of the door: a browser asks for leave without the key
        methods, headers = ["GET", "POST"], ["Authorization", "Content-Type"]
        cross: dict[str, Any] = {"allow_origins": list(origins), "allow_methods": methods, "allow_headers": headers}
        door.insert(0, Middleware(CORSMiddleware, **cross, expose_headers=["Retry-After"]))
    app = FastAPI(
        title="MiniChat",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_working(completions),
        middleware=door,
        exception_handlers={HTTPException: _no_route, Exception: _failed},
    )
    app.state.completions = completions
    routes = app.router.routes
    routes += [Route(path, answer) for path, answer in _answers(bot, name, completions, metrics).items()]
    routes.append(Route("/v1/chat/completions", completions))
    routes.append(Route("/v1/{path:path}", _nothing_here, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]))
    if page:
        from minichat import web

        owned = None if isinstance(page, bool) else page
        completions.on_end.append(web.mount(web.build_app(bot, owned=owned), app).close)
    return app


def _working(completions: Completions) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        completions.start()
        try:
            yield
        finally:
            completions.close()

    return lifespan


def _answers(bot: MiniChat, name: str, completions: Completions, metrics: Metrics) -> dict[str, Answer]:
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "minichat"}
    if bot.context is not None:
        model["max_model_len"] = bot.context  # as vLLM calls it

    def health(_: Request) -> Response:
        ready, what = completions.health()
        return _json({"status": what}) if ready else _refused(ApiError(UNAVAILABLE, what, wait=5))

    def models(_: Request) -> Response:
        return _json({"object": "list", "data": [model]})

    def one_model(request: Request) -> Response:
        if request.path_params["name"] == name:
            return _json(model)
        return _refused(ApiError(NOT_FOUND, f"There is {name!r} here and no other.", "model", "model_not_found"))

    def measured(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return {"/health": health, "/v1/models": models, "/v1/models/{name:path}": one_model, "/metrics": measured}


def _json(content: object) -> Response:
    return Response(encode(content), media_type="application/json")


def _refused(error: ApiError) -> Response:
    return Response(encode(error.content), error.status, error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else NOT_FOUND
    if status == NOT_FOUND:
        return _nothing_here(request)
    answer = _refused(ApiError(status, f"{request.method} is not answered at {request.url.path}."))
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


def _nothing_here(request: Request) -> Response:
    return _refused(
        ApiError(NOT_FOUND, "There is nothing here: chat with POST /v1/chat/completions.", code="not_found")
    )


async def _failed(request: Request, error: Exception) -> Response:
    return _refused(ApiError(FAILED, "Something went wrong in the server; its log says what."))


# --- The door. Programs show the key with each request, a browser's page shows a cookie that is made of it.


COOKIE = "minichat_key"
_LOGIN = "/login"
_MOST = 4096  # bytes of the form
_FORM = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>MiniChat</title>
<style>:root{color-scheme:light dark}
body{font:16px system-ui,sans-serif;display:grid;place-content:center;min-height:90vh;margin:0}
form{display:grid;gap:12px;width:min(20rem,86vw)}h1{font-size:1.25rem;margin:0}p{margin:0}
input,button{font:inherit;padding:8px 12px;border-radius:10px;border:1px solid #8888}
button{background:#0d9488;color:#fff;border:0}</style>
<form method="post" action="/login"><h1>MiniChat</h1><p>%s</p>
<input type="password" name="key" aria-label="Key" autocomplete="current-password" required autofocus>
<button>Open</button></form></html>"""
_FORM_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


class Door:
    """ASGI middleware that lets nobody in without the key, save to `/health`, and no work in at the end."""

    def __init__(self, app: ASGIApp, key: str | None, page: bool, ending: Callable[[], bool]) -> None:
        """`page`: there is a page for people, which asks them for the key."""
        self._app, self._page, self._ending = app, page, ending
        self._key = None if key is None else _digest(key.encode())
        self._pass = "" if key is None else hmac.new(key.encode(), b"the chat page", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "lifespan"):
            return
        if scope["type"] == "http" and scope["method"] == "POST" and self._ending():
            error = about_to_end()
            await respond(send, error.status, error.headers, encode(error.content))
            return
        if scope["type"] == "lifespan" or self._key is None or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        of_programs = not self._page or path.startswith("/v1/") or path == "/metrics"
        if self._shows_key(headers) or (not of_programs and self._shows_cookie(headers)):
            await self._app(scope, receive, send)
        elif not of_programs and path == _LOGIN and scope["method"] == "POST":
            await self._log_in(scope, receive, send)
        elif not of_programs and path == "/" and scope["method"] == "GET":
            await respond(send, UNAUTHORIZED, _FORM_HEADERS, (_FORM % "This server asks for a key.").encode())
        else:
            error = ApiError(UNAUTHORIZED, "The key is missing or not the right one.", code="invalid_api_key")
            await respond(send, error.status, error.headers, encode(error.content))

    def _is_key(self, shown: bytes) -> bool:
        # Of digests, so that not even the key's length shows in the time.
        return self._key is not None and hmac.compare_digest(_digest(shown), self._key)

    def _shows_key(self, headers: Headers) -> bool:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._is_key(shown.strip().encode("latin-1"))

    def _shows_cookie(self, headers: Headers) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._pass.encode())

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more and len(body) <= _MOST:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        shown = parse_qs(body[:_MOST].decode("utf-8", "replace")).get("key", [""])[0]
        if not self._is_key(shown.strip().encode()):
            await respond(send, UNAUTHORIZED, _FORM_HEADERS, (_FORM % "This is not the key.").encode())
            return
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{COOKIE}={self._pass}; Path=/; HttpOnly; SameSite=Strict{secure}"
        await respond(send, 303, {"Location": "/", "Set-Cookie": cookie, "Cache-Control": "no-store"}, b"")


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
