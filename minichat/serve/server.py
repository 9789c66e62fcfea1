"""Serving until the process is told to end: the socket, uvicorn, and an end that leaves no reply half written."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from minichat.errors import MiniChatError
from minichat.serve.completions import Completions

PORT = 8000
_IDLE = 30.0  # seconds in which a connection must have asked for something
_LINGER = 10.0  # … and in which the rest of a request must have arrived that was refused before its end
_UNREAD = 60.0  # … and in which a client must have read something of what was sent
_FILES = 65_536  # connections that are open at once, if the system allows it
_CLOSING = 5  # seconds for connections to end by themselves, once all replies are written


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, and listens once it is served. Raises `MiniChatError` for an address that is not free."""
    try:
        if not 0 <= port < 2**16:  # the system would take its lowest bits
            raise OverflowError("there is no such port")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise _cannot_listen(host, port, error) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # its connections inherit it: who reads nothing is let go by the system
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * _UNREAD))
        listening.bind(address)
    except (OSError, OverflowError) as error:
        listening.close()
        raise _cannot_listen(host, port, error) from None
    return listening


def _cannot_listen(host: str, port: int, error: Exception) -> MiniChatError:
    reason = getattr(error, "strerror", None) or str(error)
    return MiniChatError(f"Cannot listen on {host}, port {port} ({reason}): choose another with --port or --host.")


def address_of(listening: socket.socket) -> str:
    """The address at which clients find it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Protocol(H11Protocol):
    """HTTP, with bounds on how long a new connection, or one that was refused in mid-sentence, may keep silent."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_IDLE, self._hang_up, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # what is left of the body is read, and forgotten
            self._deadline.cancel()
            self._deadline = self.loop.call_later(_LINGER, self._hang_up, self.cycle)

    def _hang_up(self, cycle: Any) -> None:
        """Close, if this is still the last request (None: none has arrived whole), and its body has not ended."""
        if self.cycle is cycle and self.conn.their_state is not h11.DONE:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn that ends in its own time: at a first signal what is being written is finished, at a second it is cut."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_CLOSING,
            )
        )
        self.completions: Completions = app.state.completions
        self.signal: int | None = None  # the one that ended it
        self._ending: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, sig
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.end, again)

    def end(self, at_once: bool = False) -> None:
        """Refuse what is new, finish what is being written, and end. For the event loop."""
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.create_task(self._end(0 if at_once else self.completions.limits.stop_seconds))

    async def _end(self, seconds: float) -> None:
        await self.completions.end(seconds)
        self.should_exit = True


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve `app` until Ctrl-C or SIGTERM, which then takes its usual course."""
    _allow_many_files()
    server = Server(app)
    server.run([listening])
    if server.signal is not None:
        signal.raise_signal(server.signal)


def _allow_many_files() -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has no such bound
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
