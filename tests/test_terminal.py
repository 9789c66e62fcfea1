"""`minichat.cli.terminal`: a chat as a whole transcript, with a session that follows a script."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

from minichat import images
from minichat.cli.terminal import COMMANDS, Cleared, TerminalChat
from minichat.data.export import load, save
from minichat.data.formats import read
from minichat.errors import ContextError, PromptError
from minichat.prompt.conversation import Conversation


class FakeSession:
    """Says what it was asked and how many pictures it has seen, in two pieces; `before` runs between the two."""

    def __init__(self, before=lambda: None) -> None:
        self.conversation = Conversation()
        self.notices: tuple[str, ...] = ()
        self.before = before
        self.ended = 0

    def _reply(self, asked: Conversation, word: str, cancel: threading.Event) -> Iterator[str]:
        said = f"{word} {asked.messages[-1].text!r}"
        yield said
        self.before()
        if not cancel.is_set():
            said += f", {len(asked.pictures)} pictures."
            yield said.removeprefix(f"{word} {asked.messages[-1].text!r}")
        self.conversation = asked.assistant(said)
        self.ended += 1

    def stream(self, text, images=None, *, cancel):
        return self._reply(self.conversation.user(text, images or ()), "Said", cancel)

    def stream_again(self, *, cancel):
        if not len(self.conversation):
            raise PromptError("There is no reply to generate anew: ask something first.")
        return self._reply(Conversation(self.conversation.messages[:-1]), "Again", cancel)

    def stream_on(self, *, cancel):
        return self._reply(Conversation(self.conversation.messages[:-1]), "On", cancel)

    def edit(self, turn, text, images=None, *, cancel):
        before = Conversation(self.conversation.messages[: 2 * turn])
        return "".join(self._reply(before.user(text, self.conversation.messages[2 * turn].pictures), "Edited", cancel))

    def undo(self):
        if not len(self.conversation):
            raise PromptError("There is nothing to undo: the conversation has no question yet.")
        self.conversation = Conversation(self.conversation.messages[:-2])
        return self.conversation


def talk(*lines: str | Exception, session: FakeSession | None = None) -> tuple[str, str, TerminalChat]:
    """What goes to stdout, what goes to stderr, and the chat, after these lines."""
    out, notes = io.StringIO(), io.StringIO()
    sessions = iter([session] if session else [])
    typed = iter(lines)

    def read(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        if isinstance(line, Exception):
            raise line
        return line

    def new_session(conversation: Conversation | None = None) -> FakeSession:
        made = next(sessions, None) or FakeSession()
        made.conversation = conversation or Conversation()
        return made

    chat = TerminalChat(new_session, read, out, notes)
    chat.run()
    return out.getvalue(), notes.getvalue(), chat


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    Image.new("RGB", (7, 5)).save(path)
    return path


def test_replies_go_to_stdout_and_nothing_else_does():
    out, notes, chat = talk("Hello", "", "  ", "How are you?")
    assert out == "Said 'Hello', 0 pictures.\nSaid 'How are you?', 0 pictures.\n"
    assert notes == ""
    assert chat.failures == 0


def test_pictures_are_shown_with_the_next_message(picture):
    other = picture.with_name("b.png")
    Image.new("RGB", (2, 2)).save(other)
    out, notes, _ = talk(f"/image {picture}", f"/image {other} '{picture}'", "What?", "And now?")
    assert out == "Said 'What?', 3 pictures.\nSaid 'And now?', 3 pictures.\n"
    assert notes.count("shown with your next message") == 3
    assert "a picture.png: 7 × 5" in notes


def test_regenerate_edit_undo_and_clear(picture):
    out, notes, chat = talk(
        f"/image {picture}", "One", "/regenerate", "/continue", "/edit Two", "Three", "/undo", "Four", "/clear", "Five"
    )
    assert out.splitlines() == [
        "Said 'One', 1 pictures.",
        "Again 'One', 1 pictures.",
        "On 'One', 1 pictures.",
        "Edited 'Two', 1 pictures.",
        "Said 'Three', 1 pictures.",
        "Said 'Four', 1 pictures.",
        "Said 'Five', 0 pictures.",
    ]
    assert "taken back" in notes
    assert "new chat" in notes
    assert chat.failures == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/undo", "nothing to undo"),
        ("/regenerate", "no reply to generate anew"),
        ("/edit x", "no message to edit"),
        ("/edit", "Write the message anew"),
        ("/image", "Name a picture"),
        ("/image absent.png", "“absent.png” was not found"),
        ("/picture a.png", "There is no command /picture"),
        ("/absent/a.png What?", "There is no file '/absent/a.png What?'"),
        ("/save", "Name one file: /save FILE"),
        ("/save a b", "Name one file: /save FILE"),
        ("/save chat.jsonl", "nothing to save yet"),
        ("/load", "Name one file: /load FILE"),
        ("/load absent.jsonl", "There is no file 'absent.jsonl'"),
        (PromptError("Not all of these bytes are text."), "Not all of these bytes are text."),
    ],
)
def test_errors_are_told_and_the_chat_goes_on(line, says):
    out, notes, chat = talk(line, "Still there?")
    assert notes.startswith("! ")
    assert says in notes
    assert "Traceback" not in notes
    assert out == "Said 'Still there?', 0 pictures.\n"
    assert chat.failures == 1


def test_pictures_are_kept_for_the_next_try_after_an_error(picture):
    session = FakeSession()

    def fail_once():
        session.before = lambda: None
        raise ContextError("It does not fit: shorten it.")

    session.before = fail_once
    out, notes, chat = talk(f"/image {picture}", "Long", "Short", session=session)
    assert out == "Said 'Long'\nSaid 'Short', 1 pictures.\n"  # a reply that broke off ends its line
    assert "! It does not fit: shorten it." in notes
    assert chat.failures == 1


def test_pictures_that_are_dropped_are_shown_with_their_words_or_the_next(picture):
    out, notes, chat = talk(f"{picture} What?", f"'{picture}' file://{picture}", "And these?", "Words alone")
    assert out.splitlines() == [
        "Said 'What?', 1 pictures.",
        "Said 'And these?', 3 pictures.",
        "Said 'Words alone', 3 pictures.",
    ]
    assert notes.count("a picture.png: 7 × 5") == 3
    assert chat.failures == 0


def test_of_several_pictures_all_are_shown_or_none(picture):
    broken = picture.with_name("b.png")
    broken.write_text("nothing")
    out, notes, chat = talk(f"{picture} {broken} What?", f"/image {picture} gone.png", "Still?")
    assert out == "Said 'Still?', 0 pictures.\n"
    assert "not a picture" in notes and "“gone.png” was not found" in notes
    assert chat.failures == 2


def test_a_message_of_several_lines():
    lines = ['"""', "  one", "", "/help two ", '"""', '"""/image x"""', 'He said """ and left', '"""three', 'four"""']
    out, notes, chat = talk(*lines)
    said = [r"'  one\n\n/help two'", "'/image x'", '\'He said """ and left\'', r"'three\nfour'"]
    assert out.splitlines() == [f"Said {text}, 0 pictures." for text in said]
    assert (notes, chat.failures) == ("", 0)


def test_a_message_of_several_lines_is_whole_or_refused_or_taken_back():
    unreadable = PromptError("Not all of these bytes are text.")
    out, notes, chat = talk('"""one', unreadable, 'two"""', "Three", '"""four', Cleared(), "Five", '"""six', "seven")
    assert out == "Said 'Three', 0 pictures.\nSaid 'Five', 0 pictures.\n"
    assert notes.splitlines() == [
        "! Not all of these bytes are text.",
        '! The message that """ begins has no end: end it with another.',
    ]
    assert chat.failures == 2


def test_a_saved_conversation_is_a_data_set_and_goes_on_where_it_was(picture, tmp_path):
    file = tmp_path / "a chat.jsonl"
    out, notes, chat = talk(
        f"{picture} <image> What?",
        "And\u4e2d?",
        f"/save '{file}'",
        f"/save '{file}'",
        "Lost",
        f"/load '{file}'",
        "More?",
    )
    assert "Said 'More?', 1 pictures." in out
    assert "questions: 2, pictures: 1" in notes
    assert notes.count("! ") == chat.failures == 1
    assert "'a chat.jsonl' exists already" in notes
    [example] = read(file)
    assert [turn.text for turn in example.turns if turn.role == "user"] == ["<image> What?", "And\u4e2d?"]
    assert example.replies == ("Said '<image> What?', 1 pictures.", "Said 'And\u4e2d?', 1 pictures.")
    assert example.pictures[0].open().tobytes() == images.load(picture).tobytes()
    kept = example.conversation()
    assert load(file) == kept
    assert chat._session.conversation.messages[:4] == kept.messages


def test_a_conversation_with_an_empty_reply_comes_back_whole(tmp_path):
    said = Conversation().user("Say nothing.").assistant("").user("Something?").assistant("Yes.")
    save(said, tmp_path / "chat.jsonl")
    assert [message.text for message in load(tmp_path / "chat.jsonl")] == [message.text for message in said]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\xff\n", "UTF-8"),
        (b'{"text": "no messages"}\n', "'messages'"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image", "image": "gone.png"}]}]}', "missing"),
        (b'{"messages": []}\n{"messages": []}\n', "several records"),
    ],
)
def test_what_is_no_saved_conversation_is_refused_and_the_chat_stays(tmp_path, content, says):
    (tmp_path / "x.jsonl").write_bytes(content)
    out, notes, chat = talk("One", f"/load {tmp_path / 'x.jsonl'}", "Two")
    assert out == "Said 'One', 0 pictures.\nSaid 'Two', 0 pictures.\n"
    assert notes.startswith("! ") and says in notes
    assert len(chat._session.conversation) == 4


def test_a_slash_can_be_said():
    assert talk("//help is a command")[0] == "Said '/help is a command', 0 pictures.\n"


def test_quit_and_help():
    out, notes, _ = talk("/help", "/quit", "Never said")
    assert out == ""
    assert all(command in notes for command in [*COMMANDS, '"""', "Tab", "Ctrl-C"])


def test_notices_are_told_once_each():
    session = FakeSession()
    session.notices = ("The oldest turns were dropped.",)
    assert talk("One", "Two", session=session)[1] == "[The oldest turns were dropped.]\n"


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stops_a_reply_not_the_chat():
    session = FakeSession(before=interrupt)
    handler = signal.getsignal(signal.SIGINT)
    out, notes, _ = talk("One", "Two", session=session)
    assert out == "Said 'One'\nSaid 'Two'\n"
    assert notes == "[stopped]\n[stopped]\n"
    assert session.ended == 2  # the session ended its reply itself
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_leaves():
    def twice():
        interrupt()
        interrupt()

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        talk("One", session=FakeSession(before=twice))
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_in_any_thread():
    result: list[str] = []
    thread = threading.Thread(target=lambda: result.append(talk("Hello")[0]))
    thread.start()
    thread.join()
    assert result == ["Said 'Hello', 0 pictures.\n"]
