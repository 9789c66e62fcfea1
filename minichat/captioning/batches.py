"""Pictures to captions in batches, where one that fails costs no other its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minichat.errors import ContextError, ImageError, MiniChatError, SettingsError
from minichat.hardware.exhaustion import free_memory, out_of_memory

if TYPE_CHECKING:
    from PIL import Image

    from minichat.chat import MiniChat


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
    """Captions batches; remembers how many pictures fit into memory.

    A batch that does not fit is halved, and so are those that follow; where the model fails, the batch's pictures are
    tried one by one, and only the culprit has an error.
    """

    def __init__(self, bot: MiniChat, batch_size: int, settings: dict[str, Any]) -> None:
        """`settings` are `GenerationSettings` fields, for all pictures. Raises `SettingsError` for no batch size."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
        self.batch_size = batch_size
        self._bot = bot
        self._settings = settings

    def caption(self, jobs: Sequence[Job]) -> list[Outcome]:
        """An outcome for each job. Raises `MiniChatError` for what concerns every picture alike, such as a setting."""
        outcomes: list[Outcome] = []
        alone = 0  # so many of the next pictures are tried one by one, to find the culprit
        while len(outcomes) < len(jobs):
            part = jobs[len(outcomes) :][: 1 if alone else self.batch_size]
            failure = self._try(part, outcomes)
            if failure is not None and out_of_memory(failure):
                free_memory()
            if failure is not None and len(part) == 1:
                outcomes.append(Outcome(error=_sentence(failure)))
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
        except (ImageError, ContextError) as error:
            return error.with_traceback(None)
        except MiniChatError:  # a setting, the model, the prompt: it would be the same for every picture
            raise
        except Exception as error:  # also torch's OutOfMemoryError, which is a RuntimeError
            return error.with_traceback(None)
        if len(captions) != len(part):
            raise RuntimeError(f"the model gave {len(captions)} captions for {len(part)} pictures")
        outcomes += [Outcome(str(one), cut=getattr(one, "finish", "stop") == "length") for one in captions]
        return None


def _sentence(error: Exception) -> str:
    if isinstance(error, MiniChatError):
        return str(error)
    if out_of_memory(error):
        return "The memory does not suffice for this picture: use a smaller model, or free some memory."
    return f"The model failed on this picture ({type(error).__name__}): report it if it happens again."
