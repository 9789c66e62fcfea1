"""Captions by workers: processes of this machine (`minichat caption --workers N`), or a Ray cluster's (`--engine ray`).

The program that was started finds and opens pictures, and it alone writes results, so a worker sees no file and may die
at any moment: what it was given goes to another. The cluster is the one that `RAY_ADDRESS` names, else one that is
started here and ends with the program.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from minichat.captioning.captioner import Captioner, Facts, Job, Outcome
from minichat.errors import DataError, MiniChatError, ModelError, SettingsError, sentence

_AHEAD = 2  # parts that a worker is given: one that it writes, and one that is there when that is done
_DEATHS = 3  # of workers, after which it is the picture's, or the model's, fault


class _Worker:
    """A process that has a bot. Errors that concern every picture are returned, not raised: Ray would wrap them."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._error: MiniChatError | None = None
        self._captioner: Captioner | None = None
        try:
            self._bot = load()
        except MiniChatError as error:
            self._error = error

    def facts(self) -> Facts | MiniChatError:
        return self._error or Facts.of(self._bot)

    def outcomes(self, jobs: Sequence[Job], batch_size: int, settings: dict[str, Any]) -> list[Outcome] | MiniChatError:
        if self._captioner is None:  # kept, for it learns which batches fit into the memory
            self._captioner = Captioner(self._bot, batch_size, settings)
        try:
            return list(self._captioner.outcomes(jobs))
        except MiniChatError as error:
            return error


@dataclass(eq=False)
class _Part:
    """Pictures that a worker writes captions for at one go."""

    jobs: Sequence[Job]
    outcomes: list[Outcome | None]  # those of the window that the part is of
    first: int = 0  # the place of the first one among them
    deaths: int = 0  # of the workers that were at it

    def alone(self) -> Iterator[_Part]:
        """Each picture by itself."""
        return (_Part([job], self.outcomes, self.first + n) for n, job in enumerate(self.jobs))

    def fill(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes[self.first : self.first + len(self.jobs)] = outcomes


@dataclass(eq=False)
class _Hand:
    """A worker, as the driver knows it. Results come in the order in which it was asked."""

    actor: Any
    options: dict[str, Any]  # where it is to run
    loading: Any  # the reference to its facts; None: it has told them
    parts: deque[tuple[Any, _Part]] = field(default_factory=deque)  # with the reference to their outcomes

    def waited_for(self) -> Any:
        return self.parts[0][0] if self.loading is None and self.parts else self.loading


class Workers:
    """Workers with the same bot. Use it as a context: they, and a cluster that was started here, end with it."""

    def __init__(
        self, load: Callable[[], Any], count: int | None = None, gpus: bool = True, here: bool = False
    ) -> None:
        """Start workers, and wait for the first one.

        Args:
            load: makes the bot, in each worker; it is pickled.
            count: of workers; None: one for each GPU of the cluster, and where it has none, one for each machine, which
                takes all processors of it.
            gpus: whether workers take a GPU, where there are any.
            here: `count` processes of this machine, which share its processors, without Ray.

        Raises:
            ModelError: the model cannot be loaded, or is not the same everywhere.
            DataError: Ray is not installed, or the cluster cannot be reached.
        """
        if count is not None and count < 1:
            raise SettingsError(f"workers is {count!r}; it must be a whole number of at least 1.")
        self._ray = _Processes(count or 1) if here else _connected()
        try:
            self._load = self._ray.put(load)
            places = [{}] * (count or 1) if here else _places(self._ray, count, gpus)
            self._hands = [self._started(options) for options in places]
            self._failures = 0  # workers that died while they loaded the bot, one after the other
            self._facts: Facts | None = None
            while self._facts is None:
                self.wait()
        except BaseException:
            self._ray.shutdown()
            raise

    @property
    def facts(self) -> Facts:
        return self._facts or Facts()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def __len__(self) -> int:
        return len(self._hands)

    def captioner(self, batch_size: int, settings: dict[str, Any]) -> Shared:
        """What `Captioner` is for one bot."""
        return Shared(self, batch_size, settings)

    def _started(self, options: dict[str, Any]) -> _Hand:
        actor = self._ray.remote(_Worker).options(max_restarts=0, **options).remote(self._load)
        return _Hand(actor, options, actor.facts.remote())

    def free(self) -> list[_Hand]:
        """Workers that may be given more, the least busy first."""
        ready = [hand for hand in self._hands if hand.loading is None and len(hand.parts) < _AHEAD]
        return sorted(ready, key=lambda hand: len(hand.parts))

    def give(self, hand: _Hand, part: _Part, batch_size: int, settings: dict[str, Any]) -> None:
        hand.parts.append((hand.actor.outcomes.remote(part.jobs, batch_size, settings), part))

    def wait(self) -> list[_Part]:
        """Wait until a worker has something to tell; returns what is to be given to another, for its worker died."""
        hands = {hand.waited_for(): hand for hand in self._hands if hand.waited_for() is not None}
        (done, *_), _ = self._ray.wait(list(hands), num_returns=1)
        hand = hands[done]
        try:
            told = self._ray.get(done)
        except self._ray.exceptions.RayTaskError:
            raise  # a defect of ours
        except self._ray.exceptions.RayError as error:
            return self._replaced(hand, error)
        if isinstance(told, MiniChatError):
            raise told
        if hand.loading is not None:
            self._check(told)
            hand.loading, self._failures = None, 0
        else:
            hand.parts.popleft()[1].fill(told)
        return []

    def _check(self, facts: Facts) -> None:
        if self._facts is None:
            self._facts = facts
        elif facts != self._facts:
            raise ModelError(
                "The workers do not have the same model: give all machines of the cluster the same files, and the same "
                "version of minichat."
            )

    def _replaced(self, hand: _Hand, error: Exception) -> list[_Part]:
        """Start another worker for one that died; returns what it was at, and what was still to come."""
        if hand.loading is not None:
            self._failures += 1
            if self._failures >= _DEATHS:
                raise ModelError(
                    f"{_DEATHS} workers died while they loaded the model, one after the other ({_reason(error)}): look "
                    "at the memory of each machine that has workers, and that minichat is installed there."
                ) from None
        parts = [part for _, part in hand.parts]
        self._hands[self._hands.index(hand)] = self._started(hand.options)
        if not parts:
            return []
        parts[0].deaths += 1
        return [*_again(parts[0]), *parts[1:]]


def _reason(error: Exception) -> str:
    """The last line of what Ray says: what the process itself said, if it could."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1].rstrip(
        "."
    )


def _again(part: _Part) -> Iterator[_Part]:
    """What becomes of a part whose worker died: what kills workers is found by itself, and given up."""
    if part.deaths < (_DEATHS if len(part.jobs) == 1 else _DEATHS - 1):
        yield part
    elif len(part.jobs) > 1:
        yield from part.alone()
    else:
        part.fill([Outcome(error=f"{_DEATHS} workers died of this picture, one after the other: try it alone.")])


class Shared:
    """Has workers write captions, as `Captioner` has its bot."""

    def __init__(self, workers: Workers, batch_size: int, settings: dict[str, Any]) -> None:
        self._workers = workers
        self._how = (batch_size, settings)

    def windows(self, windows: Iterable[Sequence[Job]]) -> Iterator[list[Outcome]]:
        """The outcomes of each window, in order. So many windows are taken ahead as all workers can have.

        Raises `MiniChatError` for what concerns every picture alike, such as a setting.
        """
        windows = iter(windows)
        ahead = deque[list[Outcome | None]]()  # in order
        waiting = deque[_Part]()  # for a worker
        while True:
            for window in itertools.islice(windows, (_AHEAD + 1) * len(self._workers) - len(ahead)):
                ahead.append([None] * len(window))
                if window:
                    waiting.append(_Part(window, ahead[-1]))
            if not ahead:
                return
            for hand in self._workers.free():
                if waiting:
                    self._workers.give(hand, waiting.popleft(), *self._how)
            if None in ahead[0]:
                waiting.extendleft(reversed(self._workers.wait()))
            else:
                yield [outcome for outcome in ahead.popleft() if outcome is not None]


# --- Processes of this machine, with as much of Ray's face as is used above.


class _Died(Exception):
    """The process of a worker is not there any more."""


class _Failed(Exception):
    """A worker's call raised an error: a defect of ours."""


class _Processes:
    """What `ray` is for a cluster. The processes end with this program, also where it is killed: their pipe breaks."""

    exceptions = SimpleNamespace(RayError=_Died, RayTaskError=_Failed)

    def __init__(self, count: int) -> None:
        self._count = count
        self._actors: list[_Actor] = []

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: Any) -> Any:
        def start(load: Any) -> _Actor:
            self._actors.append(_Actor(kind, load, self._count))
            return self._actors[-1]

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=start))

    def wait(self, calls: Sequence[_Actor], num_returns: int = 1) -> tuple[list[_Actor], list[_Actor]]:
        """A call is named by its worker: its results come in the order in which it was asked."""
        ready = multiprocessing.connection.wait([call.pipe for call in calls])
        done = [call for call in calls if call.pipe in ready][:num_returns]
        return done, [call for call in calls if call not in done]

    def get(self, call: _Actor) -> Any:
        try:
            good, value = call.pipe.recv()
        except (EOFError, OSError):
            call.end()
            raise _Died(f"its process ended with the code {call.process.exitcode}") from None
        if not good:
            raise _Failed(value)
        return value

    def shutdown(self) -> None:
        for actor in self._actors:
            actor.end()


class _Actor:
    """A process that has a worker. What it is asked is sent at once: it reads while it is at work."""

    def __init__(self, kind: Any, load: Any, count: int) -> None:
        afresh = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
        self.pipe, other = afresh.Pipe()
        self.process = afresh.Process(target=_serve, args=(other, kind, load, count), daemon=True)
        self.process.start()
        other.close()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=partial(self._ask, name))

    def _ask(self, name: str, *arguments: Any) -> _Actor:
        try:
            self.pipe.send((name, arguments))
        except OSError:
            pass  # it died, which whoever waits for the result is told
        return self

    def end(self) -> None:
        self.process.kill()  # it has nothing to save
        self.process.join()
        self.pipe.close()


def _serve(pipe: Any, kind: Any, load: Any, count: int) -> None:
    """What such a process does, with its share of the processors, until the other end of the pipe is closed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that was started, which ends this one
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                asked.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)  # also in the middle of a part, for nobody is there to take it

    threading.Thread(target=listen, daemon=True).start()
    worker = kind(load)
    while True:
        name, arguments = asked.get()
        try:
            answer = True, getattr(worker, name)(*arguments)
        except Exception as error:
            answer = False, repr(error)
        pipe.send(answer)


# --- Ray.


def _connected() -> Any:
    """The package ray, with a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here; Ray's own is 15
    try:
        import ray
    except ImportError:
        raise DataError("--engine ray needs Ray, which is not installed: pip install 'minichat[ray]'.") from None
    address = os.environ.get("RAY_ADDRESS") or "local"
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address, include_dashboard=False if address == "local" else None, log_to_driver=False, logging_level="error"
        )
    except Exception as error:  # Ray's are of all kinds, plain ones among them
        if address == "local":
            said, mend = "Ray cannot be started on this machine", "try again when it has less to do"
        else:
            said, mend = f"The cluster {address!r} cannot be reached", "check RAY_ADDRESS"
        raise DataError(f"{said} ({sentence(error)}): {mend}.") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray's own would end this program with another code
    return ray


def _places(ray: Any, count: int | None, gpus: bool) -> list[dict[str, Any]]:
    """For each worker what it takes of the cluster, and where."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = int(sum(each.get("GPU", 0) for each in machines)) if gpus else 0
    if total:
        return [{"num_gpus": 1}] * (total if count is None else min(count, total))
    processors = [int(each.get("CPU", 0)) for each in machines if each.get("CPU", 0) >= 1]
    if not processors:
        raise DataError("No machine of the cluster has a processor to give: start one with `ray start --num-cpus`.")
    taken = processors if count is None else [max(1, sum(processors) // count)] * count
    return [{"num_cpus": each, "scheduling_strategy": "SPREAD"} for each in taken]
