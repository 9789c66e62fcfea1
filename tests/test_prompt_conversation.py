"""Conversations are typed, immutable, and checked at birth."""

from __future__ import annotations

import base64
import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prompt_samples import BLUE, RED

from minichat.errors import ImageError, PromptError
from minichat.prompt.conversation import Conversation, Message, Picture, Text


def _png() -> bytes:
    data = io.BytesIO()
    RED.save(data, "PNG")
    return data.getvalue()


def test_a_conversation_grows_by_new_ones() -> None:
    empty = Conversation()
    asked = empty.user("What is it?", [RED, _png()])
    told = asked.assistant("A square.", ids=[5, 6])
    assert (len(empty), len(asked), len(told)) == (0, 1, 2)
    assert told.messages[0].parts == (Picture(RED), Picture(RED), Text("What is it?"))
    assert told.messages[1] == Message("assistant", (Text("A square."),), (5, 6))
    assert [m.role for m in told] == ["user", "assistant"]
    assert told.pictures == (RED, RED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.messages = ()  # type: ignore[misc]


def test_messages_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png())
    encoded = base64.b64encode(_png()).decode()
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Left: "},
                {"type": "image", "image": BLUE},
                {"type": "image", "path": str(tmp_path / "a.png")},
                {"type": "image", "image": tmp_path / "a.png"},
                {"type": "image", "base64": encoded},
                {"type": "image", "base64": f"data:image/png;base64,{encoded}"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Blue."}]},
    ]
    conversation = Conversation.from_messages(messages)
    assert conversation.pictures == (BLUE, RED, RED, RED, RED)
    assert conversation.system is not None
    assert conversation.system.text == "Be brief."
    assert Conversation.from_messages(conversation.to_messages()) == conversation
    assert [m.role for m in conversation.turns] == ["user", "assistant"]


def test_pictures_are_equal_when_their_pixels_are() -> None:
    assert Picture(RED) == Picture(RED.copy())
    assert hash(Picture(RED)) == hash(Picture(RED.copy()))
    assert Picture(RED) != Picture(BLUE)


USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hi", "list of"),
        ([USER, "Hi"], "Message 1 must be a dictionary"),
        ([{"role": "user"}], "Message 0 has no 'content'"),
        ([{**USER, "name": "Ann"}], "Message 0 holds the unknown key 'name'"),
        ([{"role": "tool", "content": ""}], "Message 0 has the unknown role 'tool'"),
        ([{"role": ["user"], "content": ""}], "Message 0 has the unknown role"),
        ([{"role": "user", "content": 5}], "Message 0: 'content' must be a string or a list"),
        ([{"role": "user", "content": ["Hi"]}], "Message 0, part 0 must be a dictionary"),
        ([{"role": "user", "content": [{"type": "video", "video": "a"}]}], "part 0 has the unknown type 'video'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 0 is of type 'text' but has no 'text'"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "Message 0, part 0: A text part must be"),
        ([{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}], "unknown key 'x'"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}]}],
            "Message 0, part 0: A text part holds half",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}], "exactly one of"),
        ([{"role": "user", "content": [{"type": "image", "image": RED, "path": "a.png"}]}], "exactly one of"),
        ([{"role": "user", "content": [{"type": "image", "url": "https://example.org/a.png"}]}], "'url'"),
        ([{"role": "user", "content": [{"type": "image", "base64": "%%"}]}], "valid base64"),
        ([{"role": "user", "content": [{"type": "image", "base64": "data:image/png,abc"}]}], "not in base64"),
        ([REPLY], "Message 0 has the role 'assistant' where 'user' is expected"),
        ([USER, REPLY, REPLY], "Message 2 has the role 'assistant' where 'user'"),
        ([USER, USER], "Message 1 has the role 'user' where 'assistant'"),
        ([{"role": "system", "content": "a"}, REPLY], "Message 1 has the role 'assistant'"),
        ([USER, {"role": "system", "content": "a"}], "Message 1 has the role 'system'"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image", "image": RED}]}],
            "Message 1: Only a user's message",
        ),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(messages: Any, said: str) -> None:
    with pytest.raises(PromptError) as error:
        Conversation.from_messages(messages)
    assert said in str(error.value)


def test_a_picture_that_cannot_be_opened_is_named() -> None:
    part = {"type": "image", "base64": base64.b64encode(b"no picture").decode()}
    with pytest.raises(ImageError, match="Message 2, part 0: "):
        Conversation.from_messages([USER, REPLY, {"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Text, (5,)),
        (Picture, ("a.png",)),
        (Message, ("bot", ())),
        (Message, ("user", [Text("a")])),
        (Message, ("user", ("a",))),
        (Message, ("user", (), (1,))),
        (Message, ("assistant", (), (-1,))),
        (Message, ("assistant", (), [1])),
        (Message, ("assistant", (), (True,))),
        (Conversation, ([],)),
        (Conversation, (("a",),)),
    ],
)
def test_wrong_types_are_refused_at_birth(kind: Any, values: tuple[Any, ...]) -> None:
    with pytest.raises(PromptError):
        kind(*values)


def test_the_checks_hold_under_python_optimised() -> None:
    program = (
        "from minichat.prompt.conversation import Conversation, Message, Text\n"
        "from minichat.errors import PromptError\n"
        "for make in (lambda: Text(5), lambda: Conversation((Message('assistant', ()),)),\n"
        "             lambda: Conversation.from_messages([{'role': 'user'}])):\n"
        "    try: make()\n"
        "    except PromptError: continue\n"
        "    raise SystemExit('accepted')\n"
    )
    subprocess.run([sys.executable, "-O", "-c", program], check=True, cwd=Path(__file__).parent.parent)
