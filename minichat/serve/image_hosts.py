"""Pictures by their addresses, from hosts that the server's owner has named; nothing private is reached by them."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from minichat.errors import SettingsError, shown
from minichat.serve.protocol import BAD, ApiError

SECONDS = 10.0  # for one picture, redirects included
BYTES = 20 * 2**20
REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PLAIN = "/%:@!$&'()*+,;=?~"  # what an address holds as it is


class ImageHosts:
    """The hosts from which pictures are fetched."""

    def __init__(self, hosts: Iterable[str], *, seconds: float = SECONDS, most_bytes: int = BYTES) -> None:
        """`hosts`: their names, without scheme or port. Raises `SettingsError` for what is no host's name."""
        self._hosts = {_host(name) for name in hosts}
        self._seconds, self._bytes = seconds, most_bytes
        self._tls = ssl.create_default_context()

    async def fetch(self, address: str, param: str) -> bytes:
        """What is at this address. Raises `ApiError`, which names `param`, where it may not or cannot be fetched."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._fetch(address)
        except _UnreachableError as error:
            raise ApiError(BAD, str(error), param, "image_address") from None
        except TimeoutError:
            sentence = f"The picture's host did not send it within {self._seconds:g} seconds: send the picture itself."
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError):
            sentence = "The picture could not be fetched from its host: send the picture itself."
        raise ApiError(BAD, sentence, param, "image_address")

    async def _fetch(self, address: str) -> bytes:
        # Without a proxy, whatever the environment says: it would resolve the host's name by itself.
        async with httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=_Public()) as pool:
            for _ in range(1 + REDIRECTS):
                async with pool.stream("GET", self._checked(address), headers={"Accept": "image/*"}) as answer:
                    if answer.status == 200:
                        return await self._read(answer)
                    target = next((value for name, value in answer.headers if name.lower() == b"location"), None)
                    if not 300 <= answer.status < 400 or target is None:
                        raise _UnreachableError(f"The picture's host answered {answer.status}: check the address.")
                address = urljoin(address, target.decode("latin-1"))
        raise _UnreachableError(f"The picture's address was redirected more than {REDIRECTS} times.")

    def _checked(self, address: str) -> httpcore.URL:
        """The address, whose host was named. Raises `_UnreachableError` for any other."""
        parts = urlsplit(address)
        if parts.scheme not in _PORTS or "@" in parts.netloc or parts.port not in (None, _PORTS[parts.scheme]):
            raise _UnreachableError(
                "A picture's address must begin with https:// or http://, and have no port and no name to log in."
            )
        try:
            host = _host(parts.hostname or "")
        except SettingsError:
            host = ""
        if host not in self._hosts:
            raise _UnreachableError(
                f"Pictures are not fetched from {shown(parts.hostname)} here: send the picture itself."
            )
        target = quote(parts.path or "/", _PLAIN) + ("?" + quote(parts.query, _PLAIN) if parts.query else "")
        return httpcore.URL(scheme=parts.scheme, host=host, port=None, target=target)

    async def _read(self, answer: Any) -> bytes:
        data = bytearray()
        async for part in answer.aiter_stream():
            data += part
            if len(data) > self._bytes:
                raise _UnreachableError(f"The picture is larger than {self._bytes / 2**20:.3g} MB: make it smaller.")
        return bytes(data)


class _UnreachableError(Exception):
    """Nothing is fetched from there, for a reason in a sentence."""


def _host(name: str) -> str:
    """A host's name as it is compared. Raises `SettingsError`."""
    try:
        plain = name.rstrip(".").encode("idna").decode().lower()
    except UnicodeError:
        plain = ""
    if not _HOST.fullmatch(plain):
        raise SettingsError(f"{shown(name)} is no host's name: give one such as images.example.org, without https://.")
    return plain


class _Public(httpcore.AnyIOBackend):
    """Connects to public addresses alone, and to the very address that was looked at."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        public = [place[0] for *_, place in found if is_public(str(place[0]))]
        if not public:
            raise _UnreachableError(f"{host!r} has no public address: send the picture itself.")
        return await super().connect_tcp(str(public[0]), port, timeout, local_address, socket_options)


def is_public(text: str) -> bool:
    """Whether an IP address is one of the internet's: not private, loopback, link-local or set apart otherwise."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        inner = [address.sixtofour, *(address.teredo or ())]  # IPv4 in an address of a tunnel
        if any(each is not None and not is_public(str(each)) for each in inner):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved
