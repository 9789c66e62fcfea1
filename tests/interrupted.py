"""Ctrl-C at a given line of a class's file."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def interrupted_at(line: int, work: Callable[[], Any], code: type, besides: str = "") -> bool:
    """Do the work, with a KeyboardInterrupt at the so-manieth line that runs of the file of the class `code`.

    `besides`: a function of it that is left alone. False: fewer lines ran.
    """
    lines = itertools.count()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != inspect.getfile(code) or frame.f_code.co_name == besides:
            return None
        if event == "line" and next(lines) == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
