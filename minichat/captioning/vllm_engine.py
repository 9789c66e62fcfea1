"""Captions by vLLM (`minichat caption --engine vllm`): its engine writes, our processor spells and reads.

Pictures travel as they are, prompts as our ids, so a prompt is what it is in `minichat caption`, and so is the end of a
reply. What vLLM does otherwise is refused by name.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from minichat.captioning.captioner import Facts
from minichat.device.placement import choose_device, choose_dtype
from minichat.errors import DataError, ModelError, SettingsError
from minichat.inference.bot import Caption
from minichat.inference.load import load
from minichat.inference.request import check_context
from minichat.inference.sampling import GenerationSettings, ReplyText
from minichat.prompt.conversation import Conversation
from minichat.weights.hub import is_projection

_ROUNDS = 4  # batches that vLLM is given at one go: rows that end make room for others until the last of them

Asked = tuple[Sequence[Image.Image], str, GenerationSettings]


def check(settings: GenerationSettings) -> None:
    """Raise `SettingsError` for what vLLM does not do, or does in another way."""
    usual = GenerationSettings()
    for name, instead in (
        ("num_beams", "vLLM's engine has no beams"),
        ("repetition_penalty", "vLLM counts the prompt's words as said, too"),
    ):
        if (value := getattr(settings, name)) != getattr(usual, name):
            raise SettingsError(f"{name} is {value!r}, but {instead}: leave it away, or use --engine local.")


class VllmBot:
    """What `Captioner` takes for a bot. The weights are read twice: for their hash, on the CPU, and by vLLM."""

    def __init__(self, folder: Path, dtype: str, verify: bool, batch_size: int) -> None:
        """Raises what `minichat.load` raises, and `DataError` where vLLM is not installed or cannot open the model."""
        self._vllm = _installed()
        if is_projection(folder):
            raise ModelError(
                f"{str(folder)!r} holds a projection, and vLLM opens whole models: minichat export --format minichat."
            )
        device = choose_device("auto")
        chosen = dtype if device.type == "cpu" else choose_dtype(dtype, device)
        bot = load(folder, device="cpu", dtype=chosen, verify=verify)
        self.facts = Facts.of(bot)
        self.processor, self.caption_prompt = bot.processor, bot.caption_prompt
        self._captioner, self._stops, self._context = bot.captioner, bot.stops, bot.context
        del bot
        try:
            self._llm = self._vllm.LLM(
                str(folder),
                dtype=self.facts.dtype,
                max_model_len=self._context,
                max_num_seqs=batch_size,
                limit_mm_per_prompt={"image": 1},
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"vLLM cannot open {str(folder)!r} ({reason}): use --engine local.") from error

    def writes_together(self, settings: GenerationSettings) -> bool:
        """Always. Raises as `check` does."""
        check(settings)
        return True

    def captions(self, asked: Iterable[Asked], batch_size: int) -> Iterator[Caption | Exception]:
        """As `MiniChat.captions`. Sampled captions are other ones: vLLM draws in its own way."""
        asked = iter(asked)
        while some := list(itertools.islice(asked, _ROUNDS * batch_size)):
            prompts = [self._prompt(*each) for each in some]
            pairs = [
                (prompt, self._params(settings))
                for prompt, (*_, settings) in zip(prompts, some, strict=True)
                if not isinstance(prompt, Exception)
            ]
            written = iter(self._llm.generate(*map(list, zip(*pairs, strict=True)), use_tqdm=False) if pairs else ())
            for prompt in prompts:
                yield prompt if isinstance(prompt, Exception) else self._caption(next(written).outputs[0].token_ids)

    def _prompt(self, pictures: Sequence[Image.Image], prompt: str, settings: GenerationSettings) -> Any:
        """vLLM's prompt, or the error of what cannot be one."""
        try:
            conversation = Conversation().user(prompt, pictures)
            rendered = self._captioner.render(conversation, add_generation_prompt=True)
            check_context(conversation, len(rendered.ids), settings.max_new_tokens, self._context)
        except Exception as error:  # of this picture alone
            return error.with_traceback(None)
        shown = {"multi_modal_data": {"image": list(rendered.pictures)}} if rendered.pictures else {}
        return {"prompt_token_ids": list(rendered.ids), **shown}

    def _params(self, settings: GenerationSettings) -> Any:
        """vLLM's `SamplingParams`. A stop of several ids lets it write on; `_caption` cuts there."""
        stops = self._stops
        return self._vllm.SamplingParams(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            stop=list(stops.strings) if stops.strings_end else None,
            stop_token_ids=[ids[0] for ids in stops.sequences if len(ids) == 1],
        )

    def _caption(self, ids: Iterable[int]) -> Caption:
        reply = ReplyText(self.processor.content_tokenizer, self._stops)
        return Caption(reply.read(ids), "stop" if reply.finished else "length")


def _installed() -> Any:
    """The package vllm."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # nothing is sent to anybody
    try:
        import vllm
    except ImportError:
        raise DataError("--engine vllm needs vLLM, which is not installed: pip install 'minichat[vllm]'.") from None
    return vllm
