"""The server's replies: those of a chat, whole and streamed, with all parameters; what is refused is named."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

import minichat
from minichat.inference.bot import MiniChat
from minichat.inference.request import StepLock
from minichat.prompt.conversation import Conversation
from minichat.serve.app import build_app
from minichat.serve.stepper import Job, Stepper
from tests.serving import Client, data_url, events, joined, on_a_socket, request, shown
from tests.tiny import counting, noise_picture, saying, spell, tiny_bot
from tests.tiny_blip2 import publish_whole

QUESTIONS = (
    ("What is it?", (1,)),
    ("What colour is it?", ()),
    ("And this one?", (2,)),
    ("Which is larger, the green square or the purple triangle?", ()),
)


@pytest.fixture(scope="module")
def bot() -> MiniChat:
    return tiny_bot(context=300)


@pytest.fixture(scope="module")
def client(bot: MiniChat) -> Iterator[Client]:
    with on_a_socket(build_app(bot)) as url:
        yield Client(url)


def said(reply: dict[str, Any], index: int = 0) -> str:
    return reply["choices"][index]["message"]["content"]


# --- the same replies


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.8, "seed": 5, "repetition_penalty": 1.2}])
def test_replies_are_those_of_a_chat(bot: MiniChat, client: Client, stream: bool, sampling: dict[str, Any]) -> None:
    chat, messages = bot.chat(max_new_tokens=12, **sampling), []
    for text, pictures in QUESTIONS:
        shown_pictures = [noise_picture(number) for number in pictures]
        wanted = chat.ask(text, shown_pictures)
        messages.append(shown(text, *shown_pictures))
        reply = joined(client.events(*messages, **sampling)) if stream else said(client.reply(*messages, **sampling))
        assert reply == wanted
        messages.append({"role": "assistant", "content": reply, "refusal": None, "tool_calls": None, "annotations": []})


def test_an_instructed_qformer_reads_the_question_here_too(tmp_path: Path) -> None:
    bot = minichat.load(publish_whole(tmp_path / "model", "vicuna"), device="cpu", dtype="float32")
    chat, messages, picture = bot.chat(max_new_tokens=8), [], noise_picture(1)
    with on_a_socket(build_app(bot, name="tiny")) as url:
        for text, pictures in (("What is it?", [picture]), ("Is it yellow?", []), ("a star", [noise_picture(2)])):
            messages.append(shown(text, *pictures))
            reply = said(Client(url).reply(*messages, max_tokens=8))
            assert reply == chat.ask(text, pictures)
            messages.append({"role": "assistant", "content": reply})


def test_what_is_known_is_not_read_again_whoever_sends_it(bot: MiniChat, client: Client) -> None:
    question = shown("What is in it, please?", noise_picture(11), noise_picture(12))
    first = client.reply(question)
    again = [question, {"role": "assistant", "content": said(first)}, {"role": "user", "content": "Is it large?"}]
    other = Client(str(client.http.base_url))
    with counting(bot) as counts:
        second = other.reply(*again)
    used = second["usage"]
    assert used["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 1
    assert counts["pictures"] == 0
    read = used["prompt_tokens"] - used["prompt_tokens_details"]["cached_tokens"]
    assert counts["tokens"] == read + used["completion_tokens"] - 1


def test_a_reply_comes_back_as_the_ids_that_spelled_it(bot: MiniChat, client: Client) -> None:
    """Words that the tokenizer would spell in fewer ids than the model has written."""
    letters = [token for letter in "There" for token in spell(bot, letter)[-1:]]
    assert len(spell(bot, "There")) < len(letters)
    end = bot.processor.content_tokenizer.eos_id
    question = {"role": "user", "content": "Which letters are these?"}
    with saying(bot, [*letters, end]):
        first = client.reply(question)
    reply = {"role": "assistant", "content": said(first)}
    second = client.reply(question, reply, {"role": "user", "content": "And then?"})
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 1


def test_usage_counts_what_was_read_and_written(bot: MiniChat, client: Client) -> None:
    asked = Conversation().user("How many stars are there?", [noise_picture(3)])
    prompt = len(bot.processor.render(asked, add_generation_prompt=True).ids)
    end = bot.processor.content_tokenizer.eos_id
    with saying(bot, [*spell(bot, "There are 3 small stars."), end]):
        reply = client.reply(shown("How many stars are there?", noise_picture(3)), max_tokens=40)
    assert reply["usage"]["prompt_tokens"] == prompt
    assert reply["usage"]["completion_tokens"] == len(spell(bot, "There are 3 small stars.")) + 1
    assert reply["usage"]["total_tokens"] == prompt + reply["usage"]["completion_tokens"]
    assert (said(reply), reply["choices"][0]["finish_reason"]) == ("There are 3 small stars.", "stop")


def test_a_reply_that_is_cut_off_says_so(client: Client) -> None:
    reply = client.reply("Hi", max_tokens=3)
    assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (3, "length")


def test_without_a_length_a_reply_may_take_what_the_context_leaves(bot: MiniChat, client: Client) -> None:
    letter = spell(bot, "a")[-1:]
    with saying(bot, letter * 1000):
        reply = client.reply("Go on, and on.", max_tokens=None)
    assert reply["usage"]["total_tokens"] == bot.context
    assert reply["choices"][0]["finish_reason"] == "length"


def test_several_messages_of_one_role_are_one(bot: MiniChat, client: Client) -> None:
    system = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}]
    split = client.reply(*system, "A cat.", shown("And a dog.", noise_picture(1)))
    whole = client.reply({"role": "system", "content": "Be brief.\n\nBe kind."}, {
        "role": "user",
        "content": [{"type": "text", "text": "A cat.\n"}, *shown("And a dog.", noise_picture(1))["content"]],
    })  # fmt: skip
    assert said(split) == said(whole)
    assert split["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


# --- streams


def test_a_stream_has_the_shape_that_clients_read(client: Client) -> None:
    found = client.events("What is it?", stream_options={"include_usage": True})
    *parts, last = found
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 12
    assert all(part["usage"] is None for part in parts)  # langchain adds all up
    assert {(part["id"], part["object"], part["model"]) for part in found} == {
        (last["id"], "chat.completion.chunk", "tiny")
    }
    choices = [part["choices"][0] for part in parts]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert joined(found) == said(client.reply("What is it?"))


def test_without_being_asked_a_stream_tells_no_usage(client: Client) -> None:
    assert all("usage" not in part for part in client.events("What is it?"))


def test_an_empty_reply_is_a_reply(bot: MiniChat, client: Client) -> None:
    end = bot.processor.content_tokenizer.eos_id
    with saying(bot, [end]):
        found = client.events("Say nothing.")
    with saying(bot, [end]):
        assert said(client.reply("Say nothing more.")) == ""
    assert joined(found) == "" and found[-1]["choices"][0]["finish_reason"] == "stop"


def test_boxes_are_read_from_a_reply(bot: MiniChat, client: Client) -> None:
    text = "<p>red star</p> {<10><20><30><40>}"
    ids = [*spell(bot, text), bot.processor.content_tokenizer.eos_id]
    named = [{"phrase": "red star", "box": [0.1, 0.2, 0.3, 0.4]}]
    with saying(bot, ids):
        found = client.events("[grounding] What is where?", max_tokens=100)
    with saying(bot, ids):
        message = client.reply("[grounding] Where, again?", max_tokens=100)["choices"][0]["message"]
    assert (joined(found), message["content"]) == (text, text)
    assert message["boxes"] == found[-1]["choices"][0]["delta"]["boxes"] == named
    assert "boxes" not in client.reply("What is it?")["choices"][0]["message"]


# --- parameters


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_n_replies_has_a_seed_of_its_own(client: Client, stream: bool) -> None:
    settings = {"temperature": 1.5, "seed": 2**63 - 2}
    alone = [said(client.reply("Tell me.", **settings | {"seed": s})) for s in (2**63 - 2, 2**63 - 1, 0)]
    assert len(set(alone)) == 3
    if stream:
        found = client.events("Tell me.", n=3, **settings)
        together = [joined(found, index) for index in range(3)]
        ends = [c["index"] for event in found for c in event["choices"] if c["finish_reason"] is not None]
        assert sorted(ends) == [0, 1, 2]
    else:
        reply = client.reply("Tell me.", n=3, **settings)
        together = [said(reply, index) for index in range(3)]
    assert together == alone


def test_a_prompt_of_several_replies_is_read_once(bot: MiniChat, client: Client) -> None:
    with counting(bot) as counts:
        reply = client.reply(shown("What is on this one?", noise_picture(21)), n=4)
    read = reply["usage"]["prompt_tokens"] - reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert counts["pictures"] == 1
    assert counts["tokens"] <= read + 3 + reply["usage"]["completion_tokens"]  # three rows read the last token


def test_a_negative_seed_is_a_seed(client: Client) -> None:
    one, other = (said(client.reply("Tell me.", temperature=2, seed=-3)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_model(bot: MiniChat, client: Client, stream: bool) -> None:
    settings = {"logprobs": True, "top_logprobs": 3, "temperature": 0.7, "seed": 1}
    if stream:
        found = client.events("What is it?", **settings)
        text = joined(found)
        scores = [s for e in found for c in e["choices"] for s in (c["logprobs"] or {"content": []})["content"]]
    else:
        reply = client.reply("What is it?", **settings)
        text, scores = said(reply), reply["choices"][0]["logprobs"]["content"]
    assert len(scores) >= 4
    assert b"".join(bytes(score["bytes"]) for score in scores).decode(errors="replace").strip() == text
    tokenizer = bot.processor.content_tokenizer
    ids = bot.processor.render(Conversation().user("What is it?"), add_generation_prompt=True).ids
    by_bytes = {tuple(tokenizer.spelled(i)): i for i in range(tokenizer.vocab_size)}
    for score in scores[:4]:
        with torch.inference_mode():
            logprobs = bot.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids = [*ids, by_bytes[tuple(score["bytes"])]]
        assert score["logprob"] == pytest.approx(float(logprobs[ids[-1]]), abs=1e-3)
        likeliest = [top["logprob"] for top in score["top_logprobs"]]
        assert likeliest == pytest.approx(logprobs.topk(3).values.tolist(), abs=1e-3)


def test_logprobs_leave_out_the_end(bot: MiniChat, client: Client) -> None:
    end, words = bot.processor.content_tokenizer.eos_id, spell(bot, "It is yellow.")
    with saying(bot, [*words, end]):
        reply = client.reply("Which colour?", logprobs=True, max_tokens=40)
    scores = reply["choices"][0]["logprobs"]["content"]
    assert len(scores) == len(words) and all(score["top_logprobs"] == [] for score in scores)
    assert all(math.isfinite(score["logprob"]) for score in scores)


@pytest.mark.parametrize("stop", ["blue", ["cat", "blue"], ["d circ", "e and a b"]])
def test_a_stop_ends_a_reply_and_is_not_shown(bot: MiniChat, client: Client, stop: str | list[str]) -> None:
    text = "The picture shows a red circle and a blue boat."
    first = min(text.find(s) for s in ([stop] if isinstance(stop, str) else stop) if s in text)
    for stream in (False, True):
        with saying(bot, spell(bot, text)):
            if stream:
                found = client.events("What?", stop=stop, max_tokens=60)
                reply, finish = joined(found), found[-1]["choices"][0]["finish_reason"]
            else:
                whole = client.reply("What?", stop=stop, max_tokens=60)
                reply, finish = said(whole), whole["choices"][0]["finish_reason"]
        assert (reply, finish) == (text[:first].rstrip(), "stop")


def test_what_asks_for_nothing_is_taken(client: Client) -> None:
    plain = said(client.reply("Hi"))
    harmless = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none",
        "response_format": {"type": "text"}, "modalities": ["text"], "store": False, "service_tier": "auto",
        "user": "someone", "metadata": {"a": "b"}, "stop": [], "logprobs": False, "seed": None, "stream_options": None,
        "parallel_tool_calls": True, "max_completion_tokens": 12,
    }  # fmt: skip
    assert said(client.reply("Hi", **harmless)) == plain


REFUSED: list[tuple[str, Any]] = [
    ("max_tokens", 10**9), ("max_tokens", 10**400), ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", "12"),
    ("max_tokens", True), ("max_tokens", 1.5), ("max_completion_tokens", 10**9), ("max_completion_tokens", 3),
    ("temperature", 2.1), ("temperature", -0.1), ("temperature", "hot"), ("temperature", True),
    ("temperature", math.nan), ("temperature", math.inf),
    ("top_p", 0), ("top_p", 1.01), ("top_p", []), ("seed", 1.5), ("seed", 2**63), ("seed", "1"), ("n", 0), ("n", 9),
    ("n", "2"), ("stop", ""), ("stop", ["a", ""]), ("stop", list("abcde")), ("stop", "a" * 257), ("stop", [1]),
    ("stop", {"a": 1}), ("logprobs", 1), ("top_logprobs", 21), ("top_logprobs", 2), ("stream", "yes"), ("stream", 1),
    ("stream_options", {"include_usage": True}), ("stream_options", []), ("frequency_penalty", 0.5),
    ("presence_penalty", -1), ("logit_bias", {"5": 1}), ("tools", [{"type": "function"}]), ("tool_choice", "required"),
    ("functions", [{}]), ("response_format", {"type": "json_object"}), ("modalities", ["text", "audio"]),
    ("audio", {"voice": "a"}), ("prediction", {"type": "content"}), ("reasoning_effort", "high"), ("store", True),
    ("service_tier", "flex"), ("web_search_options", {}), ("top_k", 5), ("best_of", 2), ("temprature", 1),
    ("repetition_penalty", 0), ("user", 5), ("messages", []), ("messages", "Hi"), ("messages", {}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "value"), REFUSED)
def test_what_cannot_be_done_is_refused_by_its_name(client: Client, param: str, value: Any) -> None:
    status, error = client.refused(request("Hi", **{param: value}))
    assert status == 400
    named = "max_tokens" if (param, value) == ("max_completion_tokens", 3) else param  # two lengths
    assert error["param"].partition("[")[0].partition(".")[0] == named
    assert error["type"] == "invalid_request_error" and named in error["message"]


def test_a_parameter_that_was_misspelled_is_told(client: Client) -> None:
    assert "did you mean 'temperature'?" in client.refused(request("Hi", temprature=1))[1]["message"]


PICTURE = {"type": "image_url", "image_url": {"url": data_url(noise_picture(1))}}
MESSAGES: list[tuple[Any, str]] = [
    (["Hi"], "messages[0]"),
    ([{"role": "robot", "content": "Hi"}], "messages[0].role"),
    ([{"content": "Hi"}], "messages[0].role"),
    ([{"role": "tool", "content": "Hi", "tool_call_id": "1"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": ""}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": "Hi", "name": "Ann"}], "messages[0].name"),
    ([{"role": "user", "content": "a\ud800"}], "messages[0].content"),
    ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": [{"type": "text", "text": "Hi", "more": 1}]}], "messages[0].content[0].more"),
    ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
    ([{"role": "system", "content": [PICTURE]}, {"role": "user", "content": "Hi"}], "messages[0].content[0]"),
    ([{"role": "system", "content": "Hi"}], "messages[0].role"),
    ([{"role": "assistant", "content": "Hi"}], "messages[0].role"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "messages[1].role"),
    ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "messages[1].role"),
    (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        "messages[1].tool_calls",
    ),
]
PICTURES: list[tuple[Any, str]] = [
    (None, ""),
    (5, ""),
    ({}, ".url"),
    ({"url": 5}, ".url"),
    ({"url": "data:image/png,abc"}, ".url"),
    ({"url": "data:image/png;base64,!!"}, ".url"),
    ({"url": "data:image/png;base64,aGVsbG8="}, ".url"),
    ({"url": "http://127.0.0.1/a.png"}, ".url"),
    ({"url": "https://example.com/a.png"}, ".url"),
    ({"url": "file:///etc/passwd"}, ".url"),
    ("/etc/passwd", ""),
    ({"url": data_url(noise_picture(1)), "detail": "huge"}, ".detail"),
    ({"url": data_url(noise_picture(1)), "size": 3}, ".size"),
]


@pytest.mark.parametrize(
    ("messages", "param"),
    MESSAGES
    + [
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": given}]}],
            f"messages[0].content[1].image_url{place}",
        )
        for given, place in PICTURES
    ],
)
def test_a_message_that_cannot_be_read_is_named(client: Client, messages: Any, param: str) -> None:
    status, error = client.refused(request("Hi") | {"messages": messages})
    assert (status, error["param"]) == (400, param)
    assert error["message"] and "/etc" not in error["message"].replace("'/etc/passwd'", "")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"\\ud800": 1}'])
def test_what_is_no_request_is_refused(client: Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_another_model_is_not_here(client: Client) -> None:
    status, error = client.refused(request("Hi", model="gpt-4o"))
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert client.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.http.get("/v1/models/tiny").json()["object"] == "model"
    assert client.http.get("/v1/models/other").status_code == 404


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(bot: MiniChat, client: Client) -> None:
    for length in (12, None):
        status, error = client.refused(request("What colour is it? " * 60, max_tokens=length))
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
        assert str(bot.context) in error["message"]
    status, error = client.refused(request("Hi", max_tokens=300))
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "max_tokens")
    most = int(error["message"].split("at most ")[1].split(",")[0])
    assert client.reply("Hi", max_tokens=most)["usage"]["prompt_tokens"] == 300 - most


# --- what goes wrong


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_while_a_reply_is_written_is_its_own(bot: MiniChat, client: Client, stream: bool) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a defect at /some/path")

    hook = bot.model.language_model.register_forward_pre_hook(fail)
    answer = client.post(request("What is wrong?", stream=stream))
    hook.remove()
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "path" not in answer.text
    assert said(client.reply("What is wrong?"))


def test_memory_that_runs_out_is_told_and_passes(bot: MiniChat, client: Client) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    hook = bot.model.language_model.register_forward_pre_hook(fail)
    answer = client.post(request("What is too much?"))
    hook.remove()
    assert answer.status_code == 503 and 1 <= int(answer.headers["Retry-After"]) <= 120
    assert "memory" in answer.json()["error"]["message"]
    assert said(client.reply("What is too much?"))


def test_while_the_engine_fails_the_server_is_not_healthy(
    bot: MiniChat, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(bot.engine, "step", fail)
        assert client.post(request("Are you well?")).status_code == 500
        health = client.http.get("/health")
        assert health.status_code == 503 and "failed" in health.text
    assert said(client.reply("Are you well?"))
    assert client.http.get("/health").status_code == 200


def test_an_error_in_the_middle_of_a_stream_is_an_event_before_its_end(bot: MiniChat, client: Client) -> None:
    steps = 0

    def fail(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > 6:
            raise ValueError("a defect")

    hook = bot.model.language_model.register_forward_pre_hook(fail)
    answer = client.post(request("What is wrong now?", stream=True))
    hook.remove()
    found = events(answer.text)
    assert answer.status_code == 200 and found[-1]["error"]["type"] == "server_error"
    assert not any(choice["finish_reason"] for event in found[:-1] for choice in event["choices"])


def test_the_work_is_counted(client: Client, bot: MiniChat) -> None:
    before = client.metrics()
    reply = client.reply(shown("Count this, and nothing else.", noise_picture(31)))
    client.reply(shown("Count this, and nothing else.", noise_picture(31)))
    client.refused(request("Hi", n=0))
    after = client.metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['minichat_requests_total{status="200"}'] == 2
    assert grown['minichat_requests_total{status="400"}'] == 1
    assert grown["minichat_prompt_tokens_total"] == 2 * reply["usage"]["prompt_tokens"]
    assert grown["minichat_generated_tokens_total"] == 2 * reply["usage"]["completion_tokens"]
    assert (grown["minichat_pictures_encoded_total"], grown["minichat_pictures_known_total"]) == (1, 1)
    assert grown["minichat_prompt_tokens_cached_total"] >= reply["usage"]["prompt_tokens"] - 1
    assert grown["minichat_first_token_seconds_count"] == grown["minichat_token_seconds_count"] == 2
    assert after["minichat_replies_running"] == after["minichat_replies_waiting"] == 0


def test_a_reply_that_is_over_in_the_step_in_which_it_was_asked_for_is_handed_over() -> None:
    """It is given to the engine after a step has begun, and is over at the end of that step: a reply of one token."""

    class Replied:
        """A request that is over after the next step."""

        ids: ClassVar = [1]
        over, row, taken, error = False, 0, 1, None
        text = "Yes."

        def take(self) -> str:
            text, self.text = self.text, ""
            return text

        def close(self) -> None:
            pass

    class Engine:
        step_lock = StepLock()
        steps = 0

        def __init__(self) -> None:
            self.asked: list[Replied] = []

        def submit(self, request: Any) -> None:
            self.asked.append(request)

        def step(self) -> None:
            self.steps += 1
            if self.steps == 1:
                stepper.submit(second)
            for each in self.asked:
                each.over = True

    engine: Any = Engine()
    stepper = Stepper(engine)
    first, second = (Job(requests=[cast(Any, Replied())]) for _ in range(2))

    async def both() -> None:
        stepper.start(asyncio.get_running_loop())
        stepper.submit(first)
        async with asyncio.timeout(10):
            for job in (first, second):
                while not job.over:
                    await job.changed.wait()
                    job.changed.clear()

    try:
        asyncio.run(both())
    finally:
        stepper.close()
    assert [job.written[0].text for job in (first, second)] == ["Yes.", "Yes."]
