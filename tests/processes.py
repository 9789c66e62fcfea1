"""Processes of their own that need not import PyTorch and transformers anew, which takes seconds each time.

Each is forked from one that has imported them and done nothing else, never from this one: torch's pool of threads does
not outlive a fork, and now and then no model can be loaded after it. What is MiniChat's is imported by each itself.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import tests.seeds  # noqa: F401 (shifts those of the processes, too)

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["accelerate", "transformers.models.llama.modeling_llama"])
_HANGS = 250  # seconds after which a process is taken to hang


def started(work: Callable[[], Any], environment: Mapping[str, str] = MappingProxyType({})) -> ForkServerProcess:
    """A process that does `work` (a function of a module, or a `partial`) on one thread."""
    process = _SERVER.Process(target=_alone, args=(work, {**os.environ, **environment}))
    process.start()
    return process


def ended(process: ForkServerProcess) -> int | None:
    """Its exit code; one that hangs is killed."""
    process.join(_HANGS)
    process.kill()
    process.join()
    return process.exitcode


def run(work: Callable[[], Any], folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """What came of `work` done in `folder`, with standard streams of its own."""
    with tempfile.TemporaryDirectory() as streams:
        (Path(streams) / "0").write_text(typed)
        code = ended(started(partial(_apart, work, folder, Path(streams))))
        out, err = ((Path(streams) / name).read_text() for name in ("1", "2"))
    return subprocess.CompletedProcess([], -1 if code is None else code, out, err)


def minichat(arguments: list[str], folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """The program `minichat` with these arguments."""
    return run(partial(_minichat, arguments), folder, typed)


def python(code: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program with these arguments. It finds PyTorch and transformers imported, and nothing of MiniChat."""
    return run(partial(_python, code, [*map(str, arguments)]), folder)


def _alone(work: Callable[[], Any], environment: dict[str, str]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    work()


def _apart(work: Callable[[], Any], folder: Path, streams: Path) -> None:
    os.chdir(folder)
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(streams / str(number), flags), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    work()


def _minichat(arguments: list[str]) -> None:
    sys.argv = ["minichat", *arguments]
    from minichat import cli

    cli.main()


def _python(code: str, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
