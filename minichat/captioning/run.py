"""A captioning run: plan what there is to do, do it batch by batch, and note each result before anybody sees it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minichat.captioning.journal import Journal, Planned, Result, Shape, filled
from minichat.captioning.outputs import Output
from minichat.captioning.sources import MISSING, OPENERS, Seen, Sources, ahead
from minichat.device.memory import free_memory, out_of_memory
from minichat.errors import ContextError, DataError, ImageError, MiniChatError, PromptError, SettingsError, shown
from minichat.fileio import Skipped
from minichat.inference.sampling import GenerationSettings

if TYPE_CHECKING:
    from PIL import Image

    from minichat.inference.bot import MiniChat


# --- Pictures to captions in batches, where one that fails costs no other its caption.


@dataclass(frozen=True)
class Job:
    """A picture with its prompt. None: the bot's own prompt; no seed of its own."""

    picture: Image.Image
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A caption, or the error that stands in its place; `cut`: the limit of tokens cut the caption off."""

    caption: str | None = None
    error: str | None = None
    cut: bool = False


class Captioner:
    """Captions pictures without end: as rows become free where the bot writes replies together, else in batches.

    A batch that does not fit into memory is halved, and so are those that follow; where the model fails, the batch's
    pictures are tried one by one, and only the culprit has an error.
    """

    def __init__(self, bot: MiniChat, batch_size: int, settings: dict[str, Any]) -> None:
        """`settings` are `GenerationSettings` fields, for all pictures. Raises `SettingsError` for no batch size."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
        self.batch_size = batch_size
        self._bot = bot
        self._settings = settings

    def outcomes(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """An outcome for each job, in order, as soon as it is there; no more jobs are taken than are worked on.

        Raises `MiniChatError` for what concerns every picture alike, such as a setting.
        """
        chosen = GenerationSettings().updated(**self._settings)
        jobs = iter(jobs)
        if not getattr(self._bot, "writes_together", lambda _: False)(chosen):
            while part := list(itertools.islice(jobs, self.batch_size)):
                yield from self.caption(part)
            return
        asked = (
            ([job.picture], self._bot.caption_prompt if job.prompt is None else job.prompt, _seeded(chosen, job.seed))
            for job in jobs
        )
        for one in self._bot.captions(asked, self.batch_size):
            if isinstance(one, Exception) and _concerns_all(one):
                raise one
            yield _outcome(one)

    def caption(self, jobs: Sequence[Job]) -> list[Outcome]:
        """An outcome for each job of a batch. Raises as `outcomes` does."""
        outcomes: list[Outcome] = []
        alone = 0  # so many of the next pictures are tried one by one, to find the culprit
        while len(outcomes) < len(jobs):
            part = jobs[len(outcomes) :][: 1 if alone else self.batch_size]
            failure = self._try(part, outcomes)
            if failure is not None and out_of_memory(failure):
                free_memory()
            if failure is not None and len(part) == 1:
                outcomes.append(Outcome(error=_failure(failure)))
            elif failure is not None and out_of_memory(failure):
                self.batch_size = len(part) // 2
                continue
            elif failure is not None:
                alone = len(part)
                continue
            alone = max(0, alone - len(part))
        return outcomes

    def _try(self, part: Sequence[Job], outcomes: list[Outcome]) -> Exception | None:
        """Append outcomes, or return why not. Returning drops the traceback, which would hold on to tensors."""
        prompts = [job.prompt for job in part]
        seeds = [job.seed for job in part]
        chosen: dict[str, Any] = dict(self._settings)
        if any(seed is not None for seed in seeds):
            chosen["seed"] = seeds
        prompt: Any = prompts[0] if len(set(prompts)) == 1 else prompts
        try:
            captions = self._bot.caption([job.picture for job in part], prompt=prompt, batch_size=len(part), **chosen)
        except Exception as error:  # also torch's OutOfMemoryError, which is a RuntimeError
            if _concerns_all(error):
                raise
            return error.with_traceback(None)
        if len(captions) != len(part):
            raise RuntimeError(f"the model gave {len(captions)} captions for {len(part)} pictures")
        outcomes += map(_outcome, captions)
        return None


def _outcome(caption: str | Exception) -> Outcome:
    if isinstance(caption, Exception):
        return Outcome(error=_failure(caption))
    return Outcome(str(caption), cut=getattr(caption, "finish", "stop") == "length")


def _concerns_all(error: Exception) -> bool:
    """A setting, the model, the prompt: it would be the same for every picture."""
    return isinstance(error, MiniChatError) and not isinstance(error, ImageError | ContextError)


def _seeded(settings: GenerationSettings, seed: int | None) -> GenerationSettings:
    return settings if seed is None else settings.updated(seed=seed)


def _failure(error: Exception) -> str:
    if isinstance(error, MiniChatError):
        return str(error)
    if out_of_memory(error):
        return "The memory does not suffice for this picture: use a smaller model, or free some memory."
    return f"The model failed on this picture ({type(error).__name__}): report it if it happens again."


# --- A captioning run: plan what there is to do, do it batch by batch, and note each result before anybody sees it.


_AT_ONCE = 500  # pictures that are noted together in the plan
_WINDOW = 8  # batches of pictures that are opened together; in each, where a caption ends the next begins
_WHOLE = 2**30  # bytes of weights that are hashed whole; of more the beginning of each tensor


@dataclass(frozen=True)
class Asked:
    """What a run asks of each picture. A run that goes on must ask the same.

    Raises `SettingsError` for settings out of range.
    """

    prompts: tuple[str | None, ...] = (None,)  # None: the model's own
    settings: dict[str, Any] = field(default_factory=dict)  # `GenerationSettings` fields that were given
    existing: str = "overwrite"
    absolute: bool = False

    def __post_init__(self) -> None:
        GenerationSettings().updated(**self.settings)

    def facts(self) -> dict[str, Any]:
        return json.loads(json.dumps({
            "prompts": self.prompts, "settings": self.settings, "existing": self.existing, "absolute": self.absolute,
        }))  # fmt: skip


@dataclass
class Progress:
    """How far a run is."""

    total: int = 0  # pictures that are planned
    before: int = 0  # of these done by earlier commands
    todo: int = 0  # by this one
    done: int = 0  # results of this one, of which each picture has one for each prompt
    failed: int = 0
    captioned: int = 0
    left_out: int = 0  # pictures that have a caption, and are to be skipped
    gone: int = 0  # earlier results whose picture is not there any more


class Run:
    """One command's work on one output. Use it as a context: the output and the journal are closed at its end."""

    def __init__(self, output: Output, asked: Asked, journal: Path | None, dry: bool = False) -> None:
        """Open the output and its journal. `journal` None: a temporary one. `dry`: nothing is written anywhere.

        Raises `DataError` where either cannot be used, or where the run was begun otherwise.
        """
        self.output, self.asked = output, asked
        self.own_prompt: str | None = None  # where the run was begun with another than the bot's own of today
        self.progress = Progress()
        self._dry = dry
        if not dry:
            output.check(journal is None or not journal.exists())
        try:
            self.journal = Journal(journal, copied=dry)
        except BaseException:
            if not dry:
                output.close()
            raise
        try:
            self._check(asked.facts())
            if dry:
                output.look(self.journal)
                return
            shape = self.journal.fact("shape")
            output.begin(self.journal, None if shape is None else Shape.of_facts(shape))
            self.journal.note(asked=asked.facts(), shape=output.shape.facts())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        try:
            self.journal.close()
        finally:
            if not self._dry:
                self.output.close()

    def _check(self, now: dict[str, Any]) -> None:
        """Refuse to go on with what was begun otherwise, and say how to."""
        before = self.journal.fact("asked")
        if before is None or before == now:
            return
        for what, old, new in _differences(before, now):
            raise DataError(f"{self._name()} was begun with {what} {old}, and now it is {new}: {_WAY_OUT}")

    def check_model(self, requested: str, name: str, bot: MiniChat) -> None:
        """Note the model, or refuse another than the run was begun with. Raises `DataError`."""
        weights, dtype = weights_of(bot)
        now = {"requested": requested, "name": name, "weights": weights, "dtype": dtype}
        before = self.journal.fact("model")
        if before is None:
            self.journal.note(model=now, prompt=bot.caption_prompt, defaults=asdict(GenerationSettings()))
        elif before["dtype"] != dtype:
            raise DataError(
                f"{self._name()} was begun in {before['dtype']}, and the model is now in {dtype}: say --dtype "
                f"{before['dtype']}, or name another --out."
            )
        elif before["weights"] != weights:
            other = "" if before["name"] == name else f", {before['name']!r}, and now it is {name!r}"
            raise DataError(
                f"{self._name()} was begun with other weights{other}: give --model {before['name']} as it was, or name "
                "another --out."
            )

        if self.journal.fact("prompt") != bot.caption_prompt:
            self.own_prompt = self.journal.fact("prompt")

    def _settings(self) -> dict[str, Any]:
        """What is passed on to the bot: what was given, and defaults that were others when the run was begun."""
        now, then = asdict(GenerationSettings()), self.journal.fact("defaults") or {}
        kept = {name: value for name, value in then.items() if name in now and value != now[name]}
        return {**kept, **self.asked.settings}

    def _name(self) -> str:
        return repr(str(self.output.path)) if self.output.path is not None else "This run"

    def _seed(self) -> int | None:
        """What the pictures' own seeds follow from, where replies are sampled."""
        chosen = GenerationSettings().updated(**self.asked.settings)
        if chosen.temperature == 0:
            return None
        if chosen.seed is not None:
            return chosen.seed
        drawn = self.journal.fact("seed")
        if drawn is None:
            drawn = secrets.randbits(62)
            self.journal.note(seed=drawn)
        return int(drawn)

    # --- what there is to do

    def plan(self, sources: Sources, leave_out: Callable[[Skipped], None], retry: bool = False) -> Progress:
        """Find all pictures, and which of them are done; `retry`: what failed is not.

        Raises `DataError` as `Sources.pictures` does.
        """
        closed = 0

        def count(skipped: Skipped) -> None:
            nonlocal closed
            closed += 1
            leave_out(skipped)

        batch: list[Planned] = []
        for picture in sources.pictures(count):
            if self.asked.existing == "skip" and picture.before is not None and not self._is_ours(picture.place):
                self.progress.left_out += 1
                continue
            key = self.output.key(picture)
            other = None if key is None else self.journal.take(key, picture.place)
            if other is not None:
                raise DataError(
                    f"{shown(other)} and {shown(picture.place)} would both be {shown(key)} in the output: name one."
                )
            batch.append(picture)
            if len(batch) >= _AT_ONCE:
                self.journal.plan(batch)
                batch = []
        self.journal.plan(batch)
        self.journal.believe()
        if retry:
            self.journal.retry()
        if closed == 0:
            self._forget_what_is_gone(sources)
        found = self.progress
        found.total = self.journal.count()
        found.todo = self.journal.waiting(len(self.asked.prompts))
        found.before = found.total - found.todo
        return found

    def _is_ours(self, place: str) -> bool:
        return self.journal.known(place, 0) is not None

    def _forget_what_is_gone(self, sources: Sources) -> None:
        """Results of files that were below a folder that is named, and are not there any more."""
        folders = [os.path.realpath(source) for source in sources.given if os.path.isdir(source)]
        if not folders:
            return
        home = "" if sources.home is None else os.path.realpath(sources.home)
        gone = []
        for place in self.journal.unplanned():
            path = os.path.normpath(os.path.join(home, place))
            below = any(path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)
            # Where its folder is gone, too, a disk may not be there just now.
            if below and not os.path.lexists(path) and os.path.isdir(os.path.dirname(path)):
                gone.append(place)
        if gone:
            with self.journal.writing():
                self.journal.forget(gone)
            self.progress.gone = len(gone)

    # --- doing it

    def results(self, bot: MiniChat, batch_size: int, limit: int | None = None) -> Iterator[Result]:
        """Caption what is to do, `limit` pictures at most; each result comes when it is noted, and in the output.

        Raises:
            MiniChatError: what concerns every picture alike, such as a setting out of range or a full disk.
        """
        settings = self._settings()
        seed = self._seed()
        if seed is not None:
            settings.pop("seed", None)
        captioner = Captioner(bot, batch_size, settings)
        side = _side_of(bot)
        todo = itertools.islice(self.journal.todo(len(self.asked.prompts)), limit)
        done: list[Result] = []
        with ThreadPoolExecutor(OPENERS) as pool:
            seen = ahead(pool, todo, side)
            items = (item for planned, picture in seen for item in self._looked_at(planned, picture, seed))
            while window := list(itertools.islice(items, _WINDOW * batch_size)):
                for result, written in _captioned(window, captioner):
                    done.append(result)
                    if written:  # at once, so that a kill costs what is being written and no more
                        yield from self._note(done)
                        done = []
                yield from self._note(done)
                done = []
        self.output.finish(self.journal)

    def _looked_at(self, planned: Planned, seen: Seen, seed: int | None) -> Iterator[tuple[Result, Job | None]]:
        """For each prompt that has no result for the picture as it is: what is known already, or what is to be done."""
        known = [self.journal.known(planned.place, number) for number in range(len(self.asked.prompts))]
        if planned.stamp == MISSING and all(one is not None and one.error is None for one in known):
            return  # it was captioned when it was there
        content = seen.content
        for number, prompt in enumerate(self.asked.prompts):
            before = planned.before
            earlier = known[number]
            if earlier is not None and self.output.beside:
                before = earlier.before  # what is there now is this run's own
            made = Result(
                place=planned.place,
                question=number,
                stamp=planned.stamp,
                content=content,
                before=before,
                id=planned.id,
                picture=planned.picture if planned.data is None else {**planned.picture, "inline": True},
            )
            if seen.missing is None and self.asked.existing == "keep" and before is not None:
                yield replace(made, caption=before, fixed=True), None
                continue
            try:
                asked = filled(self.own_prompt if prompt is None else prompt, planned.place, before)
            except PromptError as failure:
                yield replace(made, error=str(failure)), None
                continue
            made = replace(made, asked=asked)
            if seen.missing is not None:
                yield replace(made, error=seen.missing), None
                continue
            if earlier is not None and content is not None and (earlier.content, earlier.asked) == (content, asked):
                if earlier.gone:
                    yield replace(made, caption=earlier.caption, cut=earlier.cut, fixed=earlier.fixed), None
                else:
                    with self.journal.writing():
                        self.journal.refresh(planned.place, planned.stamp)
                    self.progress.done += 1
                continue
            if content is not None and (equal := self.journal.equal(content, asked)) is not None:
                yield replace(made, caption=equal.caption, cut=equal.cut), None
                continue
            if seen.picture is None:
                yield replace(made, error=seen.damaged), None
                continue
            yield made, Job(seen.picture, asked, None if seed is None else _seed_of(seed, content))

    def _note(self, results: list[Result]) -> Iterator[Result]:
        if not results:
            return
        with self.journal.writing():
            new = self.journal.add(results)
        self.output.add(new)
        numbers = {(one.place, one.question) for one in new}
        self.output.replace([one for one in results if (one.place, one.question) not in numbers])
        for one in results:
            self.progress.done += 1
            self.progress.failed += one.error is not None
            self.progress.captioned += one.error is None
            yield one


def _captioned(items: Sequence[tuple[Result, Job | None]], captioner: Captioner) -> Iterator[tuple[Result, bool]]:
    """The results in order, each as soon as its caption is there; and whether one was written for it."""
    outcomes = captioner.outcomes(job for _, job in items if job is not None)
    for result, job in items:
        if job is None:
            yield result, False
        else:
            outcome = next(outcomes)
            yield replace(result, caption=outcome.caption, error=outcome.error, cut=outcome.cut), True


def weights_of(bot: Any) -> tuple[str, str]:
    """A hash of a bot's weights, configuration and preprocessing, and its precision; "" for what has no weights.

    Of weights that take more than 1 GiB the first 64 KiB of each tensor count.
    """
    model = getattr(bot, "model", None)
    if model is None:
        return "", ""
    from minichat.weights.checkpoint_io import fingerprint

    tensors = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= _WHOLE
    silent = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")
    config = {name: value for name, value in model.config.to_dict().items() if name not in silent}
    said = json.dumps([config, bot.processor.image_processor.size], sort_keys=True, default=str)
    digest = hashlib.sha256(f"{fingerprint(tensors.items(), whole)} {said}".encode()).hexdigest()
    return digest, str(model.dtype).removeprefix("torch.")


def journal_of(out: Path) -> Path:
    """Where the record of the run that writes `out` is."""
    return out.absolute().with_name(f".{out.name}.run")


def _side_of(bot: Any) -> int | None:
    """The side of the pictures that the model sees; None where that is not known."""
    processor = getattr(bot, "processor", None)
    return None if processor is None else int(processor.image_processor.size["height"])


def _seed_of(seed: int, content: str | None) -> int:
    """A picture's own seed: the same whatever its place and company."""
    return int.from_bytes(hashlib.sha256(f"{seed} {content}".encode()).digest()[:8], "big") >> 1


_NAMES = {"prompts": "the prompt", "existing": "existing captions", "absolute": "absolute paths"}
_WAY_OUT = "give the same again, or name another --out."


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    """What a run asks otherwise than it did: its name, what it was and what it is."""
    for name in before:
        if before[name] == now[name]:
            continue
        if name == "settings":
            for key in sorted(before[name].keys() | now[name].keys()):
                old, new = before[name].get(key), now[name].get(key)
                if old != new:
                    yield key, *("not given" if value is None else repr(value) for value in (old, new))
        elif name == "prompts":
            yield "the prompt", _prompts(before[name]), _prompts(now[name])
        else:
            yield _NAMES[name], repr(before[name]), repr(now[name])


def _prompts(prompts: list[str | None]) -> str:
    if prompts == [None]:
        return "of the model"
    return ", ".join(map(shown, prompts[:3])) + (f" and {len(prompts) - 3} more" if len(prompts) > 3 else "")
