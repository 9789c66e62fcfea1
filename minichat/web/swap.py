"""What follows from a set of kept replies: teaching it in a process of its own, and which model answers on the page."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from minichat.device.memory import check_fits, free_memory, out_of_memory
from minichat.device.placement import Placement, choose
from minichat.errors import DataError, MiniChatError, ModelError
from minichat.fileio import locks, replace_file
from minichat.web.sessions import Sessions
from minichat.weights.hub import ADAPTERS, adapters_of, read_json

log = logging.getLogger(__name__)

RUNS = "runs"  # in the current folder: what was trained

# --- `minichat teach` in a process of its own, which is found again by whoever asks later.
#
# The process holds a lock of the set for as long as it lives, so that one at a time teaches from it. What it says goes
# into a file beside the set. The names begin with a dot and have no ending of a list: the folder stays a data set.


COMMAND = (sys.executable, "-m", "minichat")
_NOTES, _LOG, _LOCK = ".teaching", ".teaching.log", ".teaching.lock"
_LINES, _POINTS = 200, 300  # that a page is shown
_ALREADY = "A model is being taught from this set already: wait for its end, or stop it."


class Teaching:
    """At most one `minichat teach` on the set in `folder`. All methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._one = threading.RLock()

    def start(self, source: Path, model: str, device: str = "auto") -> None:
        """Teach `model` what is in the file `source`. One that was stopped goes on, if set and model are as before.

        Raises:
            DataError: where one is at work, or the folder of results cannot be written.
        """
        with self._one:
            held = self._lock()
            if held is None:
                raise DataError(_ALREADY)
            with held:
                try:
                    self._begin(source, model, device, held)
                except OSError as error:
                    raise DataError(f"Teaching cannot begin ({error.strerror}): check the disk and {RUNS!r}.") from None

    def _begin(self, source: Path, model: str, device: str, held: IO[bytes]) -> None:
        mark = {"model": model, "set": hashlib.sha256(source.read_bytes()).hexdigest()}
        before = self._notes()
        goes_on = before is not None and {k: before[k] for k in mark} == mark and not self._done(before)
        out = Path(before["out"]) if before is not None and goes_on else _new_result()
        command = [*COMMAND, "teach", str(source), "--out", str(out), "--model", model]
        passed: dict[str, Any] = {"pass_fds": [held.fileno()]} if locks is not None else {}
        with open(self._folder / _LOG, "wb") as told:
            self._process = subprocess.Popen(
                [*command, "--device", device],
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C at the server is not for it: `close` ends it
                **passed,
            )
        notes = {**mark, "out": str(out), "pid": self._process.pid}
        replace_file(self._folder / _NOTES, json.dumps(notes).encode())

    def stop(self) -> None:
        """End it; once it trains it saves first. Nothing happens where none is at work."""
        with self._one:
            notes = self._notes()
            if notes is not None and self.running():  # so the process of that number is the one that was started
                with suppress(ProcessLookupError):
                    os.kill(notes["pid"], signal.SIGTERM)

    def close(self) -> None:
        """The server ends: so does what it started."""
        if self._process is not None:
            self.stop()

    def running(self) -> bool:
        """Whether one is at work."""
        with self._one:
            if self._process is not None and self._process.poll() is None:
                return True
            if not (self._folder / _LOCK).exists():
                return False
            held = self._lock()
            if held is not None:
                held.close()
            return held is None

    def state(self) -> dict[str, Any]:
        """For the page: what it said, its losses by step, and at the end what came of it."""
        with self._one:
            running, notes = self.running(), self._notes()
        if notes is None:
            return {"running": running}
        from minichat.train.checkpoint import METRICS, TEACHING

        out = Path(notes["out"])
        lines = _told(self._folder / _LOG)
        state = {"running": running, "out": notes["out"], "lines": lines[-_LINES:], **_losses(out / METRICS)}
        if running:
            return state
        if (out / TEACHING).is_file():
            result = json.loads((out / TEACHING).read_text(encoding="utf-8"))
            return {**state, "done": True, "learnt": result["learnt"], "said": result["said"]}
        errors = [line.removeprefix("minichat: ") for line in lines if line.startswith("minichat: ")]
        with suppress(OSError):
            out.rmdir()  # empty where it never began
        return {**state, "failed": errors[-1] if errors else "It was stopped. Teach again, and it goes on."}

    def _lock(self) -> IO[bytes] | None:
        """The lock, open; None where a process has it."""
        file = open(self._folder / _LOCK, "ab")  # noqa: SIM115 (whoever gets it closes it)
        if locks is None:
            if self._process is None or self._process.poll() is not None:
                return file
        else:
            try:
                locks.flock(file, locks.LOCK_EX | locks.LOCK_NB)
                return file
            except BlockingIOError:
                pass
            except OSError:  # a file system without locks
                return file
        file.close()
        return None

    def _notes(self) -> dict[str, Any] | None:
        try:
            notes = json.loads((self._folder / _NOTES).read_bytes())
            return notes if {"model", "set", "out", "pid"} <= notes.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    @staticmethod
    def _done(notes: dict[str, Any]) -> bool:
        from minichat.train.checkpoint import TEACHING

        return (Path(notes["out"]) / TEACHING).is_file()


def _new_result() -> Path:
    """A new empty folder: runs/taught-1, or the next number that is free."""
    number = 1
    while True:
        out = Path(RUNS) / f"taught-{number}"
        try:
            out.mkdir(parents=True)
            return out
        except FileExistsError:
            number += 1


def _told(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _losses(path: Path) -> dict[str, list[list[float]]]:
    """[step, loss] of the steps, thinned out, and of what was held out."""
    from minichat.train.logging import read_metrics

    try:
        lines = read_metrics(path)
    except OSError:
        lines = []
    trained = [[line["step"], line["loss"]] for line in lines if "loss" in line]
    held = [[line["step"], line["validation_loss"]] for line in lines if "validation_loss" in line]
    return {"trained": trained[:: 1 + len(trained) // _POINTS], "held": held[-_POINTS:]}


# --- Which model answers on the page.


@dataclass(frozen=True)
class Owned:
    """What the page's owner has: a folder for the set, and how models are loaded.

    `model`: what the running one was loaded by; `load`: a name or folder → a bot, as the running one was loaded;
    `keyed`: there is a door before the page that asks for a key, so that whoever comes in has shown it; `also`: models,
    as `load` takes them, that are loaded beside it at the start, for visitors to choose among.
    """

    folder: Path
    model: str
    load: Callable[[str], Any]
    placement: Callable[[], Placement] = choose
    keyed: bool = False
    also: tuple[str, ...] = ()


class Models:
    """The model that answers, and those that could instead."""

    def __init__(self, owned: Owned, bot: Any, sessions: Sessions) -> None:
        self._owned, self._sessions = owned, sessions
        self._one = threading.Lock()
        self.bot, self.name = bot, owned.model
        self.loading = ""  # the name of what is being loaded

    def choices(self) -> list[str]:
        """What `use` takes: known names that are here, adapters beside the model that answers, and results below runs/
        with theirs, the newest first; all that fit."""
        from minichat.weights.registry import catalogue

        known = [entry.name for entry in catalogue() if entry.here and entry.template]
        beside = _beside(Path(self.name).expanduser())
        results = sorted({*beside, *_results(Path(RUNS))}, key=lambda folder: folder.stat().st_mtime, reverse=True)
        names = [*known, *(folder.as_posix() for folder in results)]
        return [name for name in names if name == self.name or self._fits(name)]

    def use(self, name: str) -> None:
        """Load another model, and let it answer all visitors. Where that fails, the one before goes on.

        Raises:
            ModelError, SettingsError: for a name that is none of `choices`, and for what cannot be loaded.
        """
        if not self._one.acquire(blocking=False):
            raise ModelError("Another model is being loaded: wait for it.")
        try:
            self.loading = name
            if name not in self.choices():
                raise ModelError(f"{name!r} is not among the models that can be used here: look at the list again.")
            self.bot = self._loaded(name)
            self.name = name
            self._sessions.swap(self.bot.chat, self.bot.name)
            gc.collect()
            free_memory()
        finally:
            self.loading = ""
            self._one.release()

    def _loaded(self, name: str) -> Any:
        try:
            return self._owned.load(name)
        except MiniChatError:
            raise
        except Exception as error:
            log.exception("a model could not be loaded")
            why = "there is not enough memory beside the one that answers now" if out_of_memory(error) else str(error)
            raise ModelError(f"{name!r} cannot be loaded: {why or type(error).__name__}.") from None

    def _fits(self, name: str) -> bool:
        from minichat.inference.doctor import read_config

        try:
            check_fits(read_config(name), name, self._owned.placement())
            return True
        except MiniChatError:
            return False


def _beside(model: Path) -> list[Path]:
    """The adapters of this model, or of the one that it is an adapter of."""
    return adapters_of(model) or (adapters_of(model.parent.parent) if model.parent.name == ADAPTERS else [])


def _results(folder: Path, depth: int = 3) -> Iterator[Path]:
    """The folders of models below this one."""
    from minichat.train.checkpoint import CHECKPOINTS, LESSONS

    if depth == 0 or not folder.is_dir():
        return
    for inner in folder.iterdir():
        if not inner.is_dir() or inner.name.startswith(".") or inner.name in (CHECKPOINTS, LESSONS):
            continue
        if _is_model(inner):
            yield inner
            yield from adapters_of(inner)
        else:
            yield from _results(inner, depth - 1)


def _is_model(folder: Path) -> bool:
    from minichat.weights.hub import is_projection

    try:
        if is_projection(folder):
            return True
        config = read_json(folder, "config.json") if (folder / "config.json").is_file() else {}
    except MiniChatError:
        return False
    return config.get("model_type") == "minichat" and config.get("architectures") != ["Blip2ForImageTextRetrieval"]
