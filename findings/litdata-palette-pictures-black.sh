#!/usr/bin/env bash
# litdata 0.2.76: a picture that optimize's function returns is stored as its mode, its size and its pixels. Where the
# picture has a palette, as GIF files and many PNG files of charts, drawings and screens do, the pixels are numbers into
# the palette, and that is not stored. StreamingDataset gives it back in mode "P" with no palette, and convert("RGB"),
# the first step of every picture processor, makes it black all over. Its size and mode are right; nothing is said, and
# a model learns captions of black pictures. The encoding "pil" of mosaicml-streaming 0.13.0 does the same.
# Instead: return picture.convert("RGB"); with mosaicml-streaming the encoding "png" does, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchvision==0.28.0 litdata==0.2.76 numpy==2.4.6 pillow==12.3.0
"$folder/venv/bin/pip" install -q --no-deps mosaicml-streaming==0.13.0
cd "$folder"
cat > show.py <<'PYTHON'
import importlib.util
import sys
from importlib.metadata import distribution, version
from pathlib import Path

import litdata
from PIL import Image

COLOURS = {"white": (255, 255, 255), "red": (255, 0, 0)}
FILES = {"colours.png": "RGB", "palette.png": "P", "palette.gif": "P"}


def picture():
    """White, with a red square."""
    image = Image.new("RGB", (8, 8), "white")
    image.paste("red", (2, 2, 6, 6))
    return image


def found(image):
    """The picture's mode, and the colours at its corner and in its middle."""
    colours = image.convert("RGB")
    return image.mode, colours.getpixel((0, 0)), colours.getpixel((4, 4))


def record(path):
    return {"file": Path(path).name, "image": Image.open(path)}


def record_rgb(path):
    return {"file": Path(path).name, "image": Image.open(path).convert("RGB")}


def stored(function):
    """What a data set that the function makes has of each file."""
    folder, paths = function.__name__, [str(Path("files", name).resolve()) for name in FILES]
    litdata.optimize(function, paths, folder, num_workers=1, chunk_bytes="1MB")
    return {sample["file"]: found(sample["image"]) for sample in litdata.StreamingDataset(folder)}


def mosaic(encoding, image):
    """The picture as one encoding of mosaicml-streaming stores it; the module needs nothing of the rest."""
    place = distribution("mosaicml-streaming").locate_file("streaming/base/format/mds/encodings.py")
    spec = importlib.util.spec_from_file_location("mds_encodings", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return found(module.mds_decode(encoding, module.mds_encode(encoding, image)))


def main():
    print("versions:", *(f"{name} {version(name)}" for name in ("litdata", "mosaicml-streaming", "pillow")), sep="\n  ")
    Path("files").mkdir()
    picture().save("files/colours.png")
    picture().quantize(4).save("files/palette.png")
    picture().quantize(4).save("files/palette.gif")
    right = {name: found(Image.open(Path("files", name))) for name in FILES}
    assert {name: values[0] for name, values in right.items()} == FILES
    plain, converted = stored(record), stored(record_rgb)
    streamed = {kind: mosaic(kind, Image.open("files/palette.png")) for kind in ("pil", "png")}
    for name in FILES:
        print(f"{name}: expected {right[name]}", f"seen {plain[name]}", sep="\n  ")
    print("seen, convert('RGB') in the function:", *converted.items(), sep="\n  ")
    print("seen, palette.png by mosaicml-streaming:", *streamed.items(), sep="\n  ")
    black = ("P", (0, 0, 0), (0, 0, 0))
    white_and_red = tuple(COLOURS.values())
    seen = all(values[1:] == white_and_red for values in right.values())
    seen &= plain == {"colours.png": right["colours.png"], "palette.png": black, "palette.gif": black}
    seen &= all(values == ("RGB", *white_and_red) for values in converted.values())
    seen &= streamed == {"pil": black, "png": right["palette.png"]}
    print("as described" if seen else "CHANGED")
    return not seen


if __name__ == "__main__":
    sys.exit(main())
PYTHON
HOME="$folder" TMPDIR="$folder" venv/bin/python show.py
