"""`python -m tests.files_run WORDS …` runs `minichat WORDS …` in a new interpreter. The last line that it prints: the
files of the package in which a function ran. What a module does when it is imported is no function, nor is a
comprehension, which newer Pythons run without a frame (PEP 709)."""

from __future__ import annotations

import json
import sys
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

import minichat
from minichat import cli

ROOT = Path(minichat.__file__).parent


def main() -> None:
    found: set[str] = set()
    seen: set[Any] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if code not in seen:
            seen.add(code)
            function = code.co_flags & CO_OPTIMIZED and not code.co_name.endswith(("comp>", "genexpr>"))
            if function and (file := Path(code.co_filename)).is_relative_to(ROOT):
                found.add(str(file.relative_to(ROOT)))

    # A tracer that gives nothing back is told of calls alone, which costs far less than a profiler.
    threading.settrace(note)
    sys.settrace(note)
    try:
        cli.app(prog_name="minichat", standalone_mode=False)
    finally:
        sys.settrace(None)
        print("\n" + json.dumps(sorted(found)))


if __name__ == "__main__":
    main()
