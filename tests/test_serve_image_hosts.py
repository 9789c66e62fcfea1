"""Pictures by their addresses: from named hosts alone, and nothing private is reached through them."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore
import pytest

from minichat.errors import SettingsError
from minichat.serve.app import build_app
from minichat.serve.image_hosts import ImageHosts, is_public
from minichat.serve.protocol import ApiError
from tests.serving import Client, on_a_socket, request, shown
from tests.tiny import noise_picture, tiny_bot

NAMES = {
    "pictures.example": ["93.184.216.34"],
    "other.example": ["93.184.216.35"],
    "both.example": ["10.0.0.1", "93.184.216.36"],
    "evil.example": ["93.184.216.66"],
    "loop.example": ["127.0.0.1"],
    "inside.example": ["192.168.0.5", "fd00::1"],
    "link.example": ["169.254.169.254"],
    "mapped.example": ["::ffff:10.0.0.1"],
}


def png(seed: int = 1) -> bytes:
    file = io.BytesIO()
    noise_picture(seed).save(file, "PNG")
    return file.getvalue()


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif path == "/slow":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a")
            self.wfile.flush()
            self.server.stopped.wait(30)  # type: ignore[attr-defined]
        elif path == "/long":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"a" * 65536)
            except OSError:
                pass
        else:
            self.send_response(200 if path == "/a b.png" or path == "/a%20b.png" else 404)
            self.end_headers()
            self.wfile.write(png())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Where connections went; all of them reach one server on this machine, and names are those of the table."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    server.daemon_threads = True
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found: list[tuple[str, int]] = []
    connect = httpcore.AnyIOBackend.connect_tcp

    async def connect_here(self: Any, host: str, port: int, *rest: Any, **more: Any) -> Any:
        found.append((host, port))
        return await connect(self, "127.0.0.1", server.server_address[1])

    async def look_up(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        if host not in NAMES:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host]]

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_here)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    yield found
    server.stopped.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def fetch(address: str, hosts: list[str] | None = None, **limits: Any) -> bytes:
    named = ImageHosts(hosts or [*NAMES.keys() - {"evil.example"}], **limits)
    return asyncio.run(named.fetch(address, "here"))


def refused(address: str, **limits: Any) -> str:
    with pytest.raises(ApiError) as caught:
        fetch(address, **limits)
    assert (caught.value.status, caught.value.param) == (400, "here")
    return caught.value.sentence


GOOD = "http://pictures.example/a b.png"


@pytest.mark.parametrize(
    "address", [GOOD, "http://PICTURES.example./a%20b.png?x=ü#part", "http://pictures.example:80/a b.png"]
)
def test_a_named_host_is_asked_at_the_address_that_was_looked_at(connected: list[Any], address: str) -> None:
    assert fetch(address) == png()
    assert connected == [("93.184.216.34", 80)]


def test_of_a_hosts_addresses_a_public_one_is_taken(connected: list[Any]) -> None:
    assert fetch("http://both.example/a b.png") == png()
    assert connected == [("93.184.216.36", 80)]


@pytest.mark.parametrize(
    "address",
    [
        "http://evil.example/a b.png", "http://sub.pictures.example/a", "http://pictures.example.evil.example/a",
        "http://pictures.example@evil.example/a", "http://evil.example#@pictures.example/a", "http://127.0.0.1/a",
        "http://[::1]/a", "http://2130706433/a", "http://0x7f.1/a", "http://pictures.example:8080/a", "http:///a",
        "http://user@pictures.example/a", "file:///etc/passwd", "file://pictures.example/etc/passwd",
        "ftp://pictures.example/a", "gopher://pictures.example/a", "//pictures.example/a", "pictures.example/a", "",
        "http://pictures.example:99999/a", "http://[pictures.example/a", "http://pictures.example\\@evil.example/a",
        "http://evil.example\\.pictures.example/a", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_nothing_else_is_asked(connected: list[Any], address: str) -> None:
    assert refused(address)
    assert connected == []


@pytest.mark.parametrize("host", ["loop", "inside", "link", "mapped", "unknown"])
def test_a_named_host_without_a_public_address_is_not_asked(connected: list[Any], host: str) -> None:
    NAMES_AND_UNKNOWN = [*NAMES, "unknown.example"]
    with pytest.raises(ApiError):
        fetch(f"http://{host}.example/a b.png", NAMES_AND_UNKNOWN)
    assert connected == []


@pytest.mark.parametrize(
    "target", ["http://evil.example/a b.png", "http://127.0.0.1/a", "file:///etc/passwd", "http://loop.example/a"]
)
def test_a_redirect_leads_to_named_public_hosts_alone(connected: list[Any], target: str) -> None:
    assert refused(f"http://pictures.example/to/{target}")
    assert connected == [("93.184.216.34", 80)]


def test_a_redirect_to_a_named_host_is_followed_but_not_for_ever(connected: list[Any]) -> None:
    assert fetch("http://pictures.example/to/http://other.example/a%20b.png") == png()
    assert fetch("http://pictures.example/to//a%20b.png") == png()
    assert "redirected" in refused("http://pictures.example/to//to//to//to//to//a%20b.png")


def test_time_and_size_are_bounded(connected: list[Any]) -> None:
    assert "larger than" in refused("http://pictures.example/long", most_bytes=200_000)
    assert "within" in refused("http://pictures.example/slow", seconds=0.2)
    assert "404" in refused("http://pictures.example/none.png")


def test_a_picture_by_its_address_is_the_picture(connected: list[Any]) -> None:
    bot = tiny_bot()
    with on_a_socket(build_app(bot, image_hosts=["pictures.example"])) as url:
        client = Client(url)
        part = {"type": "image_url", "image_url": {"url": GOOD}}
        by_address = client.reply({"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]})
        sent = client.reply(shown("What is it?", noise_picture(1)))
        assert by_address["choices"][0]["message"] == sent["choices"][0]["message"]
        part["image_url"]["url"] = "http://other.example/a b.png"  # type: ignore[index]
        status, error = client.refused(request({"role": "user", "content": [part]}))
        assert (status, error["param"]) == (400, "messages[0].content[0].image_url.url")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:4700::1", True), ("::ffff:93.184.216.34", True), ("10.1.2.3", False),
        ("172.16.0.1", False), ("192.168.1.1", False), ("127.0.0.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00::1", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("2002:7f00:1::", False), ("64:ff9b::7f00:1", False),
        ("not an address", False),
        ("2001:db8::1", False), ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
    ],
)  # fmt: skip
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize("name", ["", "https://a.example", "a.example:80", "a b", "a/b", "..", "a..b", "user@a"])
def test_what_is_no_hosts_name_is_told(name: str) -> None:
    with pytest.raises(SettingsError, match="is no host's name"):
        ImageHosts([name])
