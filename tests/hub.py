"""A stand-in for the Hugging Face hub: a server on this machine that speaks as much of its HTTP as is used here.

A repository is a folder. Large files (by suffix) are kept by their SHA-256, as Git LFS does, and are given from another
address, to which the hub redirects. Every request is recorded; what can go wrong on the way can be asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".bin", ".pth", ".safetensors", ".model")
_API = re.compile(r"/api/(model|space)s/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/(spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class StandInHub:
    """`repositories`: "owner/name", or "spaces/owner/name", → the folder of its files.

    What can go wrong is asked for by the names of repositories or files.
    """

    repositories: dict[str, Path]
    gated: set[str] = field(default_factory=set)  # repositories whose licence was not accepted
    drop_after: dict[str, int] = field(default_factory=dict)  # file → bytes after which its connection breaks, once
    falsified: set[str] = field(default_factory=set)  # files whose last byte is changed on the way
    cut: set[str] = field(default_factory=set)  # files whose last byte gets lost, though it is announced
    held: dict[str, threading.Event] = field(default_factory=dict)  # files that are not given before their event
    requests: list[str] = field(default_factory=list)  # "GET /path", and the range that was asked for
    address: str = ""

    def fetched(self) -> set[str]:
        """The files that were asked for with GET."""
        paths = [line.split()[1] for line in self.requests if line.startswith("GET") and "/api/" not in line]
        return {path.rpartition("/")[2] for path in paths}

    def commit(self, name: str) -> str:
        """Of the content: a repository whose files change has a new one."""
        files = sorted(self.repositories[name].iterdir())
        return hashlib.sha1("".join(f"{file.name} {_digest(file, 'sha1')} " for file in files).encode()).hexdigest()


@cache
def _digest(file: Path, name: str) -> str:
    return hashlib.new(name, file.read_bytes()).hexdigest()


@contextmanager
def serving(hub: StandInHub) -> Iterator[StandInHub]:
    """The hub at `hub.address`, for as long as the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        asked = self.headers.get("Range", "")
        self.hub.requests.append(f"{self.command} {self.path} {asked}".strip())
        path = unquote(urlsplit(self.path).path)
        if found := _API.fullmatch(path):
            self._describe(*found.groups())
        elif found := _FILE.fullmatch(path):
            self._give(("spaces/" if found[1] else "") + found[2], found[3], found[4])
        elif path.startswith("/large/"):
            _, _, owner, name, file = path.split("/", 4)
            self._send(self._folder(f"{owner}/{name}".replace("spaces:", "spaces/")) / file, {})
        else:
            self._refuse(404, "", "Not found")

    def _folder(self, name: str) -> Path:
        return self.hub.repositories[name]

    def _describe(self, kind: str, name: str, what: str | None, revision: str | None) -> None:
        full = f"spaces/{name}" if kind == "space" else name
        if full not in self.hub.repositories:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in (None, "main", commit := self.hub.commit(full)):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "tree":
            self._json([{"type": "file", "path": file.name, **_facts(file)} for file in self._files(full)])
        else:
            siblings = [{"rfilename": file.name, "blobId": "", **_facts(file)} for file in self._files(full)]
            gated = "manual" if full in self.hub.gated else False
            self._json({"id": name, "sha": commit, "private": False, "gated": gated, "siblings": siblings})

    def _files(self, name: str) -> list[Path]:
        return sorted(self._folder(name).iterdir())

    def _give(self, name: str, revision: str, path: str) -> None:
        if name not in self.hub.repositories:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif name in self.hub.gated:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
        elif revision not in ("main", commit := self.hub.commit(name)):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif not (file := self._folder(name) / path).is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif path.endswith(LARGE):
            elsewhere = self.hub.address.replace("127.0.0.1", "localhost")  # another host, as the hub's storage is
            large = {"X-Linked-Size": file.stat().st_size, "X-Linked-Etag": f'"{_digest(file, "sha256")}"'}
            location = f"{elsewhere}/large/{name.replace('spaces/', 'spaces:')}/{path}"
            self._head(302, {"X-Repo-Commit": commit, **large, "Location": location, "Content-Length": 0})
        else:
            self._send(file, {"X-Repo-Commit": commit})

    def _send(self, file: Path, headers: dict[str, Any]) -> None:
        content = file.read_bytes()
        if file.name in self.hub.falsified:
            content = content[:-1] + bytes([content[-1] ^ 1])
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:-1] if file.name in self.hub.cut else content[start:]
        self._head(
            206 if start else 200, {"ETag": f'"{_digest(file, "sha1")}"', "Content-Length": len(body), **headers}
        )
        if self.command == "HEAD":
            return
        if file.name in self.hub.held:
            self.hub.held[file.name].wait()
        limit = None if start else self.hub.drop_after.pop(file.name, None)
        self.wfile.write(body[:limit])
        if limit is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": len(body)})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, code: int, name: str, message: str) -> None:
        self._head(code, {"X-Error-Code": name, "X-Error-Message": message, "Content-Length": 0})

    def _head(self, code: int, headers: dict[str, Any]) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()


def _facts(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    facts: dict[str, Any] = {"size": size, "oid": _digest(file, "sha1")}
    if file.name.endswith(LARGE):
        digest = _digest(file, "sha256")
        facts["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 134}
    return facts
