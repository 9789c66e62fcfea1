#!/usr/bin/env bash
# webdataset 1.0.2: WebDataset with cache_dir keeps each shard under the last part of its address alone. img2dataset and
# other tools call the shards of every data set 00000.tar, 00001.tar and so on; so of two data sets that are trained on
# together, or one after the other with one cache_dir, the second one's shards are never fetched, and its samples are
# those of the first. They even bear the second one's address as __url__. There is no error and no warning. A training
# set and a test set of one layout become one. WebDataset takes url_to_name, which could name them apart, and ignores it.
# Instead: one cache_dir for each data set, which holds as long as none of them has two shards of one name.
# (webdataset fetches what it keeps with curl, so this needs curl on the PATH.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q webdataset==1.0.2 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import webdataset

print("versions:", f"webdataset {version('webdataset')}", sep="\n  ")
sets = ("photos", "drawings")
for name in sets:
    Path("files", name).mkdir(parents=True)
    with webdataset.TarWriter(f"files/{name}/00000.tar") as writer:
        for n in range(2):
            writer.write({"__key__": f"{n:05d}", "txt": f"{name}, number {n}"})


class Server(SimpleHTTPRequestHandler):
    asked = []

    def log_message(self, *_):
        self.asked.append(self.path)


server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory="files"))
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"


def read(title, *names, **more):
    """The set of each sample's address and its text, with a cache folder of that title."""
    Path(title).mkdir(exist_ok=True)
    Server.asked.clear()
    urls = [f"{address}/{name}/00000.tar" for name in names]
    data = webdataset.WebDataset(urls, cache_dir=title, shardshuffle=False, **more)
    found = [(sample["__url__"].split("/")[-2], sample["txt"].decode()) for sample in data]
    print(f"seen, {title}: {found}", f"fetched {Server.asked}", sep="\n  ")
    return found


def own(*names):
    return [(name, f"{name}, number {n}") for name in names for n in range(2)]


print("expected:", own(*sets))
wrong = [(name, f"photos, number {n}") for name in sets for n in range(2)]
seen = read("both", *sets) == wrong
seen &= read("one-after-the-other", "photos") == own("photos")
seen &= read("one-after-the-other", "drawings") == wrong[2:] and not Server.asked


def named(url):
    return "-".join(url.split("/")[-2:])


seen &= read("with-url-to-name", *sets, url_to_name=named) == wrong
seen &= read("cache-of-photos", "photos") + read("cache-of-drawings", "drawings") == own(*sets)
print("as described" if seen else "CHANGED")
sys.exit(not seen)
PYTHON
