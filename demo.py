"""Talk about pictures in a web page: `python demo.py`, or `make demo`."""

from __future__ import annotations

import argparse
import signal
import sys


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, spelled as everywhere in MiniChat."""
    parser = argparse.ArgumentParser(description="Talk about pictures in a web page.")
    parser.add_argument("--model", default="auto", help="name, folder or hub id (default: the built-in model)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps … (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: %(default)s)")
    parser.add_argument("--quantize", choices=("8bit", "4bit"), help="keep the LLM in 8 or 4 bits (bitsandbytes)")
    parser.add_argument("--device-map", help="auto: spread the LLM over all GPUs, and the CPU if need be")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=None, help="port (default: 7860, or the next free one)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Load the model, build the page, serve it until Ctrl-C, which ends it in order at any time."""
    options = parse(arguments)
    try:
        return serve(options)
    except KeyboardInterrupt:
        return 130


def serve(options: argparse.Namespace) -> int:
    """The exit code, where the page could not be served or has been ended."""
    import minichat
    from minichat import web

    given = {name: value for name in ("quantize", "device_map") if (value := getattr(options, name))}
    try:
        bot = minichat.load(options.model, device=options.device, dtype=options.dtype, **given)
        print(f"The model is {bot.name}.", file=sys.stderr)  # noqa: T201
        running = web.launch(web.build_app(bot), host=options.host, port=options.port)
        print(f"MiniChat is at {running.url}  (Ctrl-C ends it)", flush=True)  # noqa: T201
        running.wait()
    except minichat.MiniChatError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the page is closed in order
    sys.exit(main())
