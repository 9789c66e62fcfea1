#!/usr/bin/env bash
# litellm 1.110.2: in a streamed chat completion with n=2, one finish_reason reaches the caller for both choices, as
# choice 0's; the other choice never ends. stream_chunk_builder then fills the gap with "stop".
# Two captions of a picture are asked for, one is cut off at max_tokens, and it is told as one that came to its end;
# where the one that was cut off ends first, the whole one is told as cut off. Without stream=True both are right.
# Instead: read the stream with the openai package, or ask without stream=True where n is more than 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q litellm==1.110.2 openai==3.57.0
cd "$folder"
export LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_LOG=ERROR
venv/bin/python - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import litellm
from openai import OpenAI

print("versions:", *(f"{name} {version(name)}" for name in ("litellm", "openai")), sep="\n  ")
litellm.suppress_debug_info = True
texts, reasons = ("a red star", "a red star next to"), ("stop", "length")


class Server(BaseHTTPRequestHandler):
    """Answers with both choices; the model's name says in which order they end."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        head = {"id": "c", "created": 1, "model": asked["model"]}
        self.send_response(200)
        if not asked.get("stream"):
            choices = [
                {"index": n, "message": {"role": "assistant", "content": texts[n]}, "finish_reason": reasons[n]}
                for n in (0, 1)
            ]
            body = json.dumps(head | {"object": "chat.completion", "choices": choices}).encode()
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        deltas = [(n, {"role": "assistant", "content": texts[n]}, None) for n in (0, 1)]
        for n, delta, reason in deltas + [(int(n), {}, reasons[int(n)]) for n in asked["model"].split("-")[1:]]:
            chunk = {"choices": [{"index": n, "delta": delta, "finish_reason": reason}]}
            chunk = head | {"object": "chat.completion.chunk"} | chunk
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/v1"
messages = [{"role": "user", "content": "Describe the picture."}]


def ask(order, **more):
    model = f"openai/ends-{order}"
    return litellm.completion(model=model, api_base=address, api_key="none", messages=messages, n=2, **more)


def ends(chunks):
    return [(c.index, c.finish_reason) for chunk in chunks for c in chunk.choices if c.finish_reason]


def built(chunks):
    return [c.finish_reason for c in litellm.stream_chunk_builder(chunks, messages=messages).choices]


client = OpenAI(base_url=address, api_key="none")
plain = ends(client.chat.completions.create(model="ends-0-1", messages=messages, n=2, stream=True))
whole = ends([ask("0-1")])
first, second = list(ask("0-1", stream=True)), list(ask("1-0", stream=True))
print("expected:", plain)
print("seen, litellm without stream:                    ", whole)
print("seen, litellm with stream, choice 0 ends first:  ", ends(first), "built:", built(first))
print("seen, litellm with stream, choice 1 ends first:  ", ends(second), "built:", built(second))
seen = plain == whole == [(0, "stop"), (1, "length")]
seen &= ends(first) == [(0, "stop")] and built(first) == ["stop", "stop"]
seen &= ends(second) == [(0, "length")]
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
