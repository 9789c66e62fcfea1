"""A captioning run: plan what there is to do, do it batch by batch, and note each result before anybody sees it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

from minichat.captioning.captioner import Captioner, Facts, Job, Outcome, fit_of
from minichat.captioning.cluster import Shared, Workers
from minichat.captioning.formats import Beside, Coco, Parquet, Shards, check_page
from minichat.captioning.journal import Journal, Planned, Result, Shape, filled, needs_caption
from minichat.captioning.outputs import Csv, JsonLines, Output, format_of
from minichat.captioning.sources import MISSING, OPENERS, STDIN, Seen, Sources, ahead
from minichat.data.formats.folder import Skipped
from minichat.errors import DataError, PromptError, shown
from minichat.inference.sampling import GenerationSettings

if TYPE_CHECKING:
    from minichat.inference.bot import MiniChat


# --- What is captioned, and where captions go.


_TEXTS = (".txt", ".caption")


@dataclass(frozen=True)
class Chosen:
    """An output, its format's name, where its journal is, and the folder that pictures are named from."""

    output: Output
    form: str
    journal: Path | None
    home: Path


def open_output(
    out: Path | None,
    form: str | None,
    sources: tuple[str, ...],
    *,
    stream: IO[bytes],
    prompts: tuple[str | None, ...],
    shape: Shape,
    shard_size: int = 1000,
    page: Path | None = None,
) -> Chosen:
    """The output that is asked for; nothing is made yet. Raises `DataError` for what does not go together.

    Args:
        page: where a page to look through is to be written at the end.
    """
    if page is not None:
        check_page(page, out)
    known = format_of(out, form)
    if shape.boxes and known != "jsonl":
        raise DataError(
            f"Boxes have no place in the format {known!r}: leave --boxes out, or write JSON lines (.jsonl)."
        )
    shared: dict[str, Any] = {"prompts": prompts, "shape": shape}
    if known in ("jsonl", "csv"):
        kind = JsonLines if known == "jsonl" else Csv
        if out is None:
            return Chosen(kind(None, stream, **shared), known, None, Path())
        return Chosen(kind(out, **shared), known, journal_of(out), out.parent)
    if known in ("txt", "caption"):
        if out is not None:
            raise DataError(f"With --format {known} captions lie beside their pictures: leave --out away.")
        home = _folder_of(sources)
        return Chosen(Beside(f".{known}", **shared), known, journal_of(home / f"captions.{known}"), home)
    if out is None:
        raise DataError(f"The format {known!r} is written to a file or folder: name it (--out).")
    if known == "webdataset":
        if out.suffix.lower() == ".tar":
            shards = Shards(out.parent, shard_size, f"{out.stem}-", **shared)
            return Chosen(shards, known, journal_of(out), out.parent)
        return Chosen(Shards(out, shard_size, **shared), known, out / ".captions.run", out)
    whole = Parquet if known == "parquet" else Coco
    return Chosen(whole(out, **shared), known, journal_of(out), out.parent)


def _folder_of(sources: tuple[str, ...]) -> Path:
    """Where the record of texts beside pictures is: the first source, or the folder that it is in."""
    first = Path(sources[0]) if sources and sources[0] != STDIN else Path()
    if first.is_dir():
        return first
    return first.parent if first.parent.is_dir() else Path()


def sources_for(sources: tuple[str, ...], chosen: Chosen, asked: Asked, **options: Any) -> Sources:
    """The sources, as this run needs them: it looks for captions that are there where it asks for them."""
    wanted = asked.existing != "overwrite" or needs_caption(asked.prompts)
    own = f".{chosen.form}"
    texts = ((own,) if own in _TEXTS else _TEXTS) if wanted else ()
    home = None if asked.absolute else Path(os.path.realpath(chosen.home))
    return Sources(sources, home, texts=texts, **options)


# --- The run.


_AT_ONCE = 500  # pictures that are noted together in the plan
_WINDOW = 8  # batches of pictures that are opened together; in each, where a caption ends the next begins

Writer = Union["MiniChat", Workers]  # what writes captions: here, or elsewhere


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
        self._dry, self._record = dry, journal
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
            begun = f"{self._name()} was begun with {what} {old}, and now it is {new}"
            raise DataError(f"{begun}: give the same again, or {self._anew()}.")

    def check_model(self, requested: str, name: str, bot: Writer) -> None:
        """Note the model, or refuse another than the run was begun with. Raises `DataError`."""
        facts = Facts.of(bot) if (told := getattr(bot, "facts", None)) is None else told
        weights, dtype = facts.weights, facts.dtype
        now = {"requested": requested, "name": name, "weights": weights, "dtype": dtype}
        before = self.journal.fact("model")
        if before is None:
            self.journal.note(model=now, prompt=facts.prompt, defaults=asdict(GenerationSettings()))
        elif before["dtype"] != dtype:
            raise DataError(
                f"{self._name()} was begun in {before['dtype']}, and the model is now in {dtype}: say --dtype "
                f"{before['dtype']}, or {self._anew()}."
            )
        elif before["weights"] != weights:
            other = "" if before["name"] == name else f", {before['name']!r}, and now it is {name!r}"
            raise DataError(
                f"{self._name()} was begun with other weights{other}: give --model {before['name']} as it was, or "
                f"{self._anew()}."
            )

        if self.journal.fact("prompt") != facts.prompt:
            self.own_prompt = self.journal.fact("prompt")

    def _settings(self) -> dict[str, Any]:
        """What is passed on to the bot: what was given, and defaults that were others when the run was begun."""
        now, then = asdict(GenerationSettings()), self.journal.fact("defaults") or {}
        kept = {name: value for name, value in then.items() if name in now and value != now[name]}
        return {**kept, **self.asked.settings}

    def _name(self) -> str:
        return repr(str(self.output.path)) if self.output.path is not None else "This run"

    def _anew(self) -> str:
        """How to begin another run, in words. Texts beside pictures have no other place."""
        if self.output.path is not None or self._record is None:
            return "name another --out"
        return f"remove its record, {str(self._record)!r}, and say --existing overwrite"

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
            wrong = None if key is None else self.journal.take(key, picture.place)
            if wrong is not None:
                raise DataError(wrong)
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

    def results(self, bot: Writer, batch_size: int, limit: int | None = None) -> Iterator[Result]:
        """Caption what is to do, `limit` pictures at most; each result comes when it is noted, and in the output.

        Raises:
            MiniChatError: what concerns every picture alike, such as a setting out of range or a full disk.
        """
        settings = self._settings()
        seed = self._seed()
        if seed is not None:
            settings.pop("seed", None)
        captioner: Captioner | Shared
        if isinstance(bot, Workers):
            captioner, fit = bot.captioner(batch_size, settings), bot.facts.fit
        else:
            captioner, fit = Captioner(bot, batch_size, settings), fit_of(bot)
        todo = itertools.islice(self.journal.todo(len(self.asked.prompts)), limit)
        with ThreadPoolExecutor(OPENERS) as pool:
            seen = ahead(pool, todo, fit)
            items = (item for planned, picture in seen for item in self._looked_at(planned, picture, seed))
            held = deque[list[tuple[Result, Job | None]]]()  # windows whose outcomes are still to come

            def windows() -> Iterator[list[Job]]:
                while window := list(itertools.islice(items, _WINDOW * batch_size)):
                    held.append(window)
                    yield [job for _, job in window if job is not None]

            for outcomes in captioner.windows(windows()):
                yield from self._captioned(held.popleft(), outcomes)
        self.output.finish(self.journal)

    def _captioned(self, window: list[tuple[Result, Job | None]], outcomes: Iterable[Outcome]) -> Iterator[Result]:
        """Each result as soon as its caption is there, so that a kill costs what is being written and no more."""
        following, done = iter(outcomes), list[Result]()
        one_by_one = following is outcomes  # an iterator; of a list all are there, and are noted together
        for result, job in window:
            if job is None:
                done.append(result)
                continue
            outcome = next(following)
            done.append(replace(result, caption=outcome.caption, error=outcome.error, cut=outcome.cut))
            if one_by_one:
                yield from self._note(done)
                done = []
        yield from self._note(done)

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


def journal_of(out: Path) -> Path:
    """Where the record of the run that writes `out` is."""
    return out.absolute().with_name(f".{out.name}.run")


def _seed_of(seed: int, content: str | None) -> int:
    """A picture's own seed: the same whatever its place and company."""
    return int.from_bytes(hashlib.sha256(f"{seed} {content}".encode()).digest()[:8], "big") >> 1


_NAMES = {"prompts": "the prompt", "existing": "existing captions", "absolute": "absolute paths"}


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
