"""Put a model through the tasks: what is asked, what came of it, and what it was measured with."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from minichat.errors import SettingsError
from minichat.evaluate.captions import OwnCaptions
from minichat.evaluate.dialogue import OwnDialogues
from minichat.evaluate.exam import Exam, fingerprint
from minichat.evaluate.figures import Outcome, is_blind, lines
from minichat.evaluate.hallucination import Polls
from minichat.evaluate.questions import REDRAWN, OwnQuestions
from minichat.evaluate.replies import Teller, check_batch_size
from minichat.evaluate.report import Report
from minichat.evaluate.retrieval import PAIRS, RERANKED, Finder, Gallery

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minichat.chat import MiniChat
    from minichat.evaluate.files import Files

CHAT_TASKS = ("questions", "captions", "hallucination", "dialogue", "pairs", "stories", "outside")
TASKS = (*CHAT_TASKS, "wordings", "retrieval")
SCENES = 2000
WORDED = 500  # in people's words, unless another number is asked for: each is asked about in many ways
BLANK_SCENES = 500  # of them are asked about with blank pictures, too: what is guessed takes no more to tell
MOST = 1_000_000  # scenes; more is a slip of the keyboard

#: Where each task on held-out scenes is; it is imported when it is asked for.
OF_SCENES = {
    "questions": "minichat.evaluate.questions:SceneQuestions",
    "captions": "minichat.evaluate.captions:SceneCaptions",
    "hallucination": "minichat.evaluate.hallucination:polls_about_scenes",
    "dialogue": "minichat.evaluate.dialogue:SceneDialogues",
    "pairs": "minichat.evaluate.pairs:ScenePairs",
    "stories": "minichat.evaluate.stories:SceneStories",
    "outside": "minichat.evaluate.outside:SceneOutside",
    "wordings": "minichat.evaluate.wordings:SceneWordings",
}
OF_PICTURES = "minichat.evaluate.outside:OwnOutside"  # a user's pictures, none of which is of the drawn world
GALLERY = "minichat.evaluate.retrieval:gallery_of_scenes"  # held-out scenes to retrieve

Progress = Callable[[str, int], None]  # the task, and how many questions of it are answered


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Raises `SettingsError`, which names the field, for a task or a number that cannot be.
    """

    tasks: tuple[str, ...] = CHAT_TASKS
    count: int | None = None  # scenes (default 2,000; 1,000 to retrieve), or records of a file (default all)
    seed: int = 0  # of the held-out scenes
    batch_size: int = 32
    blank: bool = True  # ask everything of a blank picture, too
    prompt: str | None = None  # of a user's captions and questions
    reranked: int = RERANKED  # how many candidates a search matches
    redrawn: int = REDRAWN  # how many of the scenes are drawn by another program, too, and asked about

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise SettingsError(f"There is no task {task!r}: there are {', '.join(TASKS)}.")
        if self.count is not None and not 1 <= self.count <= MOST:
            raise SettingsError(f"count is {self.count}; it must be from 1 to {MOST:,}.")
        check_batch_size(self.batch_size)
        for name, value in (("reranked", self.reranked), ("redrawn", self.redrawn)):
            if value < 0:
                raise SettingsError(f"{name} is {value}; it must be 0 or more.")

    def scenes(self, task: str, most: int = MOST) -> Exam:
        """The exam of a chat's task on held-out scenes, `most` of them at most."""
        count = min(self.count or SCENES, most)
        if task == "wordings":
            count = min(count, self.count or WORDED)
        more = (self.redrawn,) if task == "questions" else ()
        exam: Exam = resolve_name(OF_SCENES[task])(count, self.seed, *more)
        return exam

    def own(self, task: str, files: Files) -> Exam:
        """The exam of a chat's task on a user's files. Raises `DataError`, and `SettingsError` for stories."""
        from minichat.chat import CAPTION_PROMPT

        if task == "captions":
            return OwnCaptions(files.captions(), CAPTION_PROMPT if self.prompt is None else self.prompt)
        if task in ("questions", "pairs"):
            return OwnQuestions(files.questions(), self.prompt or "{question}")
        if task == "hallucination":
            return Polls(files.polls())
        if task == "dialogue":
            return OwnDialogues(files.dialogues())
        if task == "outside":
            outside: Exam = resolve_name(OF_PICTURES)(files.pictures())
            return outside
        raise SettingsError(f"{task} are measured on scenes alone: leave out --data.")


def evaluate(
    bot: MiniChat,
    plan: Plan = Plan(),
    files: Files | None = None,
    *,
    source: str | None = None,
    progress: Progress = lambda task, answered: None,
) -> Report:
    """Put a bot through the tasks of a plan, on held-out scenes or on a user's files.

    Args:
        source: what the bot was loaded from, for the hashes of its weights; default: its name.

    Raises SettingsError for a task that a chat has not, DataError for files that cannot be used, ImageError for a
    picture that cannot be opened.
    """
    if "retrieval" in plan.tasks:
        raise SettingsError("To retrieve takes a Q-Former as stage 1 leaves it, not a chat model.")
    own = (
        {} if files is None else {task: plan.own(task, files) for task in plan.tasks}
    )  # all is read before it is asked
    report = _report(bot.name, source or bot.name, bot.model, plan, files)
    for task in plan.tasks:
        exam = own.get(task) or plan.scenes(task)
        blank = own.get(task) or plan.scenes(task, BLANK_SCENES)

        def take(blind: bool, task: str = task, exam: Exam = exam, blank: Exam = blank) -> Outcome:
            def told(answered: int) -> None:
                progress(task, answered)

            teller = Teller(bot, batch_size=plan.batch_size, blind=blind, progress=told)
            return (blank if blind else exam).take(teller)

        _take(report, task, fingerprint(exam), take, plan.blank)
    return report


def search(finder: Finder, source: str, plan: Plan, files: Files | None = None) -> Report:
    """Put a model that can retrieve, loaded from `source`, through retrieval: on scenes or on a user's captions."""
    if files is None:
        gallery: Gallery = resolve_name(GALLERY)(plan.count or PAIRS, plan.seed, plan.reranked)
    else:
        from minichat.evaluate.files import as_gallery

        gallery = as_gallery(files.captions(), plan.reranked)
    report = _report(Path(source).name, source, finder.reader.model, plan, files)
    _take(report, "retrieval", fingerprint(gallery), lambda blind: gallery.search(finder, blind), plan.blank)
    return report


def _take(report: Report, task: str, asked: str, take: Callable[[bool], Outcome], blank: bool) -> None:
    start = time.monotonic()
    seen = take(False)
    blind = take(True) if blank else None
    found = lines(task, seen.figures, blind.figures if blind else None)
    report.lines += found
    report.records += [{"task": task, **record} for record in seen.records]
    report.results += seen.results
    report.asked[task] = asked
    report.seconds[task] = round(time.monotonic() - start, 1)
    report.blind += [line for line in found if line.name == seen.headline and is_blind(line)]


def _report(name: str, loaded: str, model: PreTrainedModel, plan: Plan, files: Files | None) -> Report:
    source = "held-out scenes" if files is None else ", ".join(path.name for path in files.data)
    return Report(
        model=name,
        weights=weights_of(loaded),
        versions=versions(),
        source=source,
        files={} if files is None else {path.name: _digest(path) for path in files.data if path.is_file()},
        seed=plan.seed if files is None else None,
        count=plan.count,
        settings={
            "batch_size": plan.batch_size,
            "prompt": plan.prompt,
            "reranked": plan.reranked,
            "redrawn": plan.redrawn,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        },
    )


def versions() -> dict[str, str]:
    """Of all that a figure may hang on."""
    from minichat import __version__

    names = ("torch", "transformers", "tokenizers", "sentencepiece", "numpy", "pillow", "torchmetrics")
    return {"minichat": __version__, "python": platform.python_version()} | {n: metadata.version(n) for n in names}


def weights_of(name: str) -> dict[str, str]:
    """The SHA-256 of each file of weights that the model of this name has; nothing for one that was made in memory."""
    from minichat.errors import ModelError
    from minichat.weights.projection import TENSORS, is_projection, read_projection
    from minichat.weights.zoo import find

    try:
        folder = find(name)
    except ModelError:
        return {}
    if is_projection(folder):
        base = read_projection(folder).base_folder()
        return {TENSORS: _digest(folder / TENSORS)} | {f"{base.name}/{k}": v for k, v in _digests(base).items()}
    return _digests(folder)


def _digests(folder: Path) -> dict[str, str]:
    from minichat.weights.files import weight_files

    beside = [path.name for path in folder.glob("stage1.safetensors")]
    return {file: _digest(folder / file) for file in [*weight_files(folder), *beside] if (folder / file).is_file()}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
