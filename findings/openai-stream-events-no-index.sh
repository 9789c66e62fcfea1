#!/usr/bin/env bash
# openai 3.57.0: the events of client.chat.completions.stream(..., n=2) do not say which of the two replies they are
# of: content.delta and content.done have no index, and both replies' events come in one stream.
# A page that appends every event's delta, as for one reply, shows two captions woven into each other.
# Instead: read the "chunk" events, whose choices have an index, or create(..., stream=True, n=2).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openai==3.57.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from openai import OpenAI

print("versions:", f"openai {version('openai')}", sep="\n  ")
replies = (["a ", "red ", "star"], ["one ", "large ", "circle"])


class Server(BaseHTTPRequestHandler):
    """Writes both replies word by word, in turn."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        turns = [(n, word) for words in zip(*replies) for n, word in enumerate(words)]
        said = [(n, {"role": "assistant", "content": word}, None) for n, word in turns]
        for n, delta, reason in said + [(n, {}, "stop") for n in (0, 1)]:
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            chunk["choices"] = [{"index": n, "delta": delta, "finish_reason": reason}]
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
messages = [{"role": "user", "content": "Describe the picture."}]
woven, fields, indexed = "", set(), {0: "", 1: ""}
with client.chat.completions.stream(model="m", messages=messages, n=2) as stream:
    for event in stream:
        if event.type in ("content.delta", "content.done"):
            fields |= set(event.model_dump())
        if event.type == "content.delta":
            woven += event.delta
        if event.type == "chunk":
            for choice in event.chunk.choices:
                indexed[choice.index] += choice.delta.content or ""
whole = ["".join(words) for words in replies]
print("expected: events that tell the replies apart:", whole)
print("seen, fields of content.delta and content.done:", sorted(fields))
print("seen, their deltas one after another:", repr(woven))
print("seen, from the chunk events:", list(indexed.values()))
seen = "index" not in fields and "choice" not in " ".join(fields) and woven == "a one red large starcircle"
seen &= list(indexed.values()) == whole
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
