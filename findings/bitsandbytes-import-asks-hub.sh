#!/usr/bin/env bash
# bitsandbytes 0.50.2 with kernels 0.17.2 installed beside it: on a processor with AVX-512 bfloat16, `import bitsandbytes`
# asks the hub, for it wants a compiled kernel of kernels-community, before any model is named or quantized, and though
# its own build has products in 4 bits. A program that is to work without a network waits for the hub as soon as
# something imports it. What fails there is a line of the log, and the import goes on.
# Instead: HF_HUB_OFFLINE=1 before the import, or an environment without kernels.
# On a processor without AVX-512 bfloat16 nothing can be seen: then it ends with 77.
set -euo pipefail
if ! grep -qw avx512_bf16 /proc/cpuinfo; then
    echo "This processor has no AVX-512 bfloat16: nothing can be shown here."
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 bitsandbytes==0.50.2 kernels==0.17.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

print("versions:", *(f"{name} {version(name)}" for name in ("torch", "bitsandbytes", "kernels")), sep="\n  ")
asked = []


class Hub(BaseHTTPRequestHandler):
    """Has nothing, and notes what it is asked for."""

    def do_GET(self):
        asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()


def requests(**more):
    """What a program that imports bitsandbytes, and does nothing else, asks the hub for."""
    asked.clear()
    there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": os.path.abspath("home")}
    there |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    program = [sys.executable, "-c", "import bitsandbytes"]
    subprocess.run(program, env=os.environ | there | more, capture_output=True, check=True)
    return [*asked]


online, offline = requests(), requests(HF_HUB_OFFLINE="1")
print("expected: an import asks the hub for nothing")
print(f"seen: {online}\nseen with HF_HUB_OFFLINE=1: {offline}")
seen = any("kernels-community" in path for path in online) and not offline
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
