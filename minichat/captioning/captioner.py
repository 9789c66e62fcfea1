"""Pictures to captions in batches, where one that fails costs no other its caption."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minichat import images
from minichat.device.memory import free_memory, out_of_memory
from minichat.errors import ContextError, ImageError, MiniChatError, SettingsError
from minichat.inference.sampling import GenerationSettings

if TYPE_CHECKING:
    from PIL import Image

    from minichat.inference.bot import MiniChat

_WHOLE = 2**30  # bytes of weights that are hashed whole; of more the beginning of each tensor


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

    def windows(self, windows: Iterable[Sequence[Job]]) -> Iterator[Iterable[Outcome]]:
        """Each window's `outcomes`, in order."""
        return (self.outcomes(window) for window in windows)

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


@dataclass(frozen=True)
class Facts:
    """What a run must know of a bot."""

    weights: str = ""  # a hash of weights, configuration and preprocessing; "": it has no weights
    dtype: str = ""
    prompt: str = ""  # what it is asked where nothing is said
    fit: images.Fit | None = None  # see `fit_of`

    @classmethod
    def of(cls, bot: Any) -> Facts:
        """Of weights that take more than 1 GiB the first 64 KiB of each tensor count."""
        model, fit, prompt = getattr(bot, "model", None), fit_of(bot), str(bot.caption_prompt)
        if model is None:
            return cls(prompt=prompt, fit=fit)
        from minichat.weights.checkpoint_io import fingerprint

        tensors = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
        whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= _WHOLE
        silent = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")
        config = {name: value for name, value in model.config.to_dict().items() if name not in silent}
        pixels = bot.processor.image_processor
        chosen = (str(pixels.fit), [*pixels.image_mean], [*pixels.image_std])
        usual = (str(pixels.size["height"]), [*images.CLIP_MEAN], [*images.CLIP_STD])
        said = json.dumps([config, pixels.size, *(chosen if chosen != usual else ())], sort_keys=True, default=str)
        digest = hashlib.sha256(f"{fingerprint(tensors.items(), whole)} {said}".encode()).hexdigest()
        return cls(digest, str(model.dtype).removeprefix("torch."), prompt, fit)


def fit_of(bot: Any) -> images.Fit | None:
    """How the model's pictures become squares; None where that is not known."""
    processor = getattr(bot, "processor", None)
    return None if processor is None else processor.image_processor.fit
