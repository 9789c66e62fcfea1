"""OpenAI's chat completions as this server speaks them: what may be asked, in which words it is refused, and answers.

The protocol is that of OpenAI's API reference, "Create chat completion". Every parameter of a request is done, known to
ask for nothing, or refused by its name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from minichat.errors import SettingsError, shown
from minichat.inference.sampling import MAX_NEW_TOKENS
from minichat.prompt.boxes import parse

# --- What one request, and all together, may cost the host.


@dataclass(frozen=True)
class Limits:
    """Bounds of the server; each is a number greater than 0.

    Raises:
        SettingsError: for a bound that is no positive number; the message names it.
    """

    body_bytes: int = 32 * 2**20  # of one request, pictures in base64 included
    waiting_bytes: int = 256 * 2**20  # of all bodies that are on their way or not read yet
    body_seconds: float = 60.0  # in which a body must have arrived
    messages: int = 1000
    characters: int = 250_000  # of all messages, some 60,000 tokens; the model's context is mostly the closer bound
    pictures: int = 24
    pixels: int = 64_000_000  # of all pictures of a request
    stops: int = 4
    stop_characters: int = 256
    choices: int = 8  # `n`
    max_tokens: int = 4096  # of one reply
    queue: int = 64  # replies that wait for a row of the engine
    stop_seconds: float = 60.0  # in which replies are finished when the server ends

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            wanted = (int, float) if limit.name.endswith("seconds") else int
            if isinstance(value, bool) or not isinstance(value, wanted) or not 0 < value < float("inf"):
                raise SettingsError(f"{limit.name} must be a number greater than 0, not {value!r}.")


# --- Errors in OpenAI's shape.


MOST_SECONDS = 120  # that a client is asked to wait: beyond, some do not come again
BAD, UNAUTHORIZED, NOT_FOUND, NO_METHOD, TIMEOUT, TOO_LARGE, OTHER_TYPE = 400, 401, 404, 405, 408, 413, 415
TOO_MANY, FAILED, UNAVAILABLE = 429, 500, 503
_TYPES = {
    UNAUTHORIZED: "authentication_error",
    TOO_MANY: "rate_limit_error",
    FAILED: "server_error",
    UNAVAILABLE: "server_error",
}


class ApiError(Exception):
    """A request that is not answered: a status, a sentence, and the parameter that it is about."""

    def __init__(
        self, status: int, sentence: str, param: str | None = None, code: str | None = None, wait: float | None = None
    ) -> None:
        """`wait`: seconds after which to ask again."""
        super().__init__(sentence)
        self.status, self.sentence, self.param, self.code = status, sentence, param, code
        self.wait = None if wait is None else min(max(1, round(wait)), MOST_SECONDS)

    @property
    def content(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.sentence, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.wait is not None:
            headers["Retry-After"] = str(self.wait)
        if self.status == UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == NO_METHOD:
            headers["Allow"] = "POST"
        return headers


def encode(content: Any) -> bytes:
    """JSON as it is sent. What is no Unicode, as words of a request may be, is escaped."""
    try:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(content, separators=(",", ":")).encode()


def refuse(param: str, value: Any, rule: str) -> ApiError:
    return ApiError(BAD, f"{param} is {shown(value)}; it must be {rule}.", param, "invalid_value")


# --- Readers of one value each. They return it or raise `ApiError`, which names the parameter.


Reader = Callable[[str, Any], Any]


def _whole(low: int, high: int) -> Reader:
    def read(param: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise refuse(param, value, f"a whole number from {low} to {high}")
        return value

    return read


def _number(low: float, high: float, rule: str) -> Reader:
    def read(param: str, value: Any) -> float:
        # A NaN is not between any two numbers.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise refuse(param, value, rule)
        return float(value)

    return read


def _flag(param: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise refuse(param, value, "true or false")
    return value


def _text(param: str, value: Any) -> str:
    if not isinstance(value, str):
        raise refuse(param, value, "a text")
    return value


def _note(param: str, value: Any) -> None:
    if not isinstance(value, str | dict):
        raise refuse(param, value, "a text or an object")


def _stream_options(param: str, value: Any) -> bool:
    """Whether the usage is asked for."""
    if not isinstance(value, dict):
        raise refuse(param, value, "an object")
    for key, given in value.items():
        if key == "include_usage":
            _flag(f"{param}.include_usage", given)
        elif key != "include_obfuscation" or given not in (None, False):
            raise not_done(f"{param}.{key}", given, None)
    return bool(value.get("include_usage"))


def _stops(limits: Limits) -> Reader:
    def read(param: str, value: Any) -> tuple[str, ...]:
        given = [value] if isinstance(value, str) else value
        rule = f"a text or a list of at most {limits.stops} texts, each of 1 to {limits.stop_characters} characters"
        if not isinstance(given, list) or len(given) > limits.stops:
            raise refuse(param, value, rule)
        for number, text in enumerate(given):
            if not isinstance(text, str) or not 1 <= len(text) <= limits.stop_characters:
                raise refuse(param if value is text else f"{param}[{number}]", text, rule)
        return tuple(given)

    return read


def not_done(param: str, value: Any, instead: Any) -> ApiError:
    mend = "leave it out" if instead is None else f"leave it out, or set it to {encode(instead).decode()}"
    return ApiError(
        BAD, f"{param} is {shown(value)}, which this server does not do: {mend}.", param, "unsupported_parameter"
    )


# What is not done here, with the values that do not ask for it. None asks for nothing anywhere.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),  # of no tools
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Notes to a server's owner and hints to its caches, which promise nothing of the reply.
_NOTES = ("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "user")
_SEEDS = 2**63


def _readers(limits: Limits) -> dict[str, Reader]:
    """What is done, each with how it is read."""
    most = min(limits.max_tokens, MAX_NEW_TOKENS)
    return {
        "model": _text,
        "messages": lambda param, value: value,  # read by themselves
        "max_tokens": _whole(1, most),
        "max_completion_tokens": _whole(1, most),
        "temperature": _number(0, 2, "a number from 0 (greedy) to 2"),
        "top_p": _number(5e-324, 1, "a number above 0 and up to 1"),
        "repetition_penalty": _number(0.1, 10, "a number from 0.1 to 10 (1: none)"),
        "seed": _whole(-_SEEDS, _SEEDS - 1),
        "stop": _stops(limits),
        "n": _whole(1, limits.choices),
        "logprobs": _flag,
        "top_logprobs": _whole(0, 20),
        "stream": _flag,
        "stream_options": _stream_options,
    }


@dataclass(frozen=True)
class Asked:
    """A request that may be answered, but for its messages, which are as they came."""

    model: str
    messages: list[Any]
    max_tokens: int | None  # None: as many as there is room for
    sampling: dict[str, Any]  # of `GenerationSettings`
    seed: int | None
    stop: tuple[str, ...]
    n: int
    likeliest: int | None  # so many with each token's logprob; None: no logprobs
    stream: bool
    include_usage: bool

    def seed_of(self, choice: int) -> int | None:
        """Of `n` replies each has a seed of its own."""
        return None if self.seed is None else (self.seed + choice) % _SEEDS


def read_request(body: bytes, model: str, limits: Limits) -> Asked:
    """The request in a body. Raises `ApiError`; the messages are still to be read."""
    content = _read_json(body)
    if not isinstance(content, dict):
        raise ApiError(BAD, "The request must be a JSON object with model and messages.")
    readers = _readers(limits)
    found: dict[str, Any] = {}
    for param, value in content.items():
        if param in readers:
            if value is not None:
                found[param] = readers[param](param, value)
        elif param in _NOTES:
            if value is not None:
                _note(param, value)
        elif param not in _NOT_DONE:
            near = difflib.get_close_matches(param, [*readers, *_NOT_DONE, *_NOTES], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out."
            raise ApiError(BAD, f"There is no parameter {shown(param)}: {hint}", param[:80], "unknown_parameter")
        elif value is not None and not any(_same(value, harmless) for harmless in _NOT_DONE[param]):
            raise not_done(param, value, next(iter(_NOT_DONE[param]), None))
    return _together(found, model, limits)


def _together(found: dict[str, Any], model: str, limits: Limits) -> Asked:
    """What parameters mean for each other."""
    for param in ("model", "messages"):
        if param not in found:
            raise ApiError(BAD, f"The request has no {param}.", param, "missing_required_parameter")
    if found["model"] != model:
        raise ApiError(
            NOT_FOUND,
            f"There is no model {shown(found['model'])} here; there is {model!r}.",
            "model",
            "model_not_found",
        )
    messages = found["messages"]
    if not isinstance(messages, list) or not messages:
        raise refuse("messages", messages, "a list of at least one message")
    if len(messages) > limits.messages:
        raise ApiError(
            BAD, f"There are {len(messages)} messages; at most {limits.messages} are read.", "messages", "too_many"
        )
    old, new = found.get("max_tokens"), found.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise ApiError(
            BAD,
            f"max_tokens is {old} and max_completion_tokens {new}: give one of them.",
            "max_tokens",
            "invalid_value",
        )
    if found.get("top_logprobs") is not None and not found.get("logprobs"):
        raise ApiError(BAD, "top_logprobs needs logprobs to be true.", "top_logprobs", "invalid_value")
    if "stream_options" in found and not found.get("stream"):
        raise ApiError(BAD, "stream_options needs stream to be true.", "stream_options", "invalid_value")
    return Asked(
        model=model,
        messages=messages,
        max_tokens=old if new is None else new,
        sampling={name: found[name] for name in ("temperature", "top_p", "repetition_penalty") if name in found},
        seed=found["seed"] % _SEEDS if "seed" in found else None,
        stop=found.get("stop", ()),
        n=found.get("n", 1),
        likeliest=found.get("top_logprobs", 0) if found.get("logprobs") else None,
        stream=found.get("stream", False),
        include_usage=found.get("stream_options", False),
    )


def _read_json(body: bytes) -> Any:
    try:
        # Python's own whole numbers have no bound; no parameter has more than 19 digits.
        return json.loads(body, parse_int=lambda d: int(d) if len(d) < 25 else float(d))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise ApiError(BAD, f"The body is no valid JSON ({why[:200]}).", code="invalid_json") from None


def _same(one: Any, other: Any) -> bool:
    """Equal also in type: true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


# --- Answers.


def completion(head: Mapping[str, Any], choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage}


def choice(index: int, text: str, finish: str, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """One reply of a whole answer; its message has `boxes`, where the reply names any."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None, **boxes(text)},
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        "finish_reason": finish,
    }


def boxes(text: str) -> dict[str, Any]:
    """Where a reply says that things are, beyond OpenAI's protocol: as `minichat caption --boxes` writes it."""
    found = [box.as_dict() for box in parse(text)]
    return {"boxes": found} if found else {}


def chunk(
    head: Mapping[str, Any],
    index: int,
    delta: dict[str, Any],
    finish: str | None = None,
    logprobs: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A part of a streamed answer."""
    one = {
        "index": index,
        "delta": delta,
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        "finish_reason": finish,
    }
    return {**head, "object": "chat.completion.chunk", "choices": [one]}


def usage(prompt: int, cached: int, written: int) -> dict[str, Any]:
    """Tokens: of the prompt, of these copied and not read, and generated, the end of each reply included."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def event(content: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(content) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def token_logprob(spelled: bytes, logprob: float) -> dict[str, Any]:
    """A token: its text (a part of a character is shown as �), its bytes, and the logarithm of its probability."""
    return {
        "token": spelled.decode(errors="replace"),
        "logprob": max(logprob, -9999.0),  # JSON has no infinity
        "bytes": list(spelled),
    }
