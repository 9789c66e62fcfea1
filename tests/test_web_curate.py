"""What the page's owner may do beside talking: the set of kept replies, who may, teaching, and another model."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from minichat.data import formats
from minichat.errors import DataError, ModelError, SettingsError
from minichat.images import identity
from minichat.web import Owned, Running, build_app, launch
from minichat.web.curate import CHANGED, NOT_YOURS, PICTURES, KeptSet, is_owner
from minichat.web.guard import DESK
from minichat.web.swap import Models, Teaching
from minichat.web.talk import Said
from tests.fake_bot import FakeBot
from tests.web_visitor import Visitor, png

RED, BLUE = (Image.new("RGB", (32, 24), colour) for colour in ("red", "blue"))
NAMES = {"red": identity(RED)[:20], "blue": identity(BLUE)[:20]}  # as a browser has them
PICTURES_SHOWN = {NAMES["red"]: RED, NAMES["blue"]: BLUE}


def said(*words: str, picture: str = "red") -> list[Said]:
    """Questions and replies by turns; the first shows a picture."""
    return [
        Said("assistant" if n % 2 else "user", text, () if n else (NAMES[picture],)) for n, text in enumerate(words)
    ]


def replies(kept: KeptSet) -> list[tuple[str, ...]]:
    return [one.replies for one in formats.examples(kept.file)]


# --- the set


def test_what_is_kept_twice_is_one_record_and_a_corrected_one_takes_its_place(tmp_path: Path):
    """The same pictures and questions are one record, also where a browser's copy of a picture lost a little."""
    kept = KeptSet(tmp_path / "set")
    assert kept.keep(said("What is this?", "a cup"), PICTURES_SHOWN) == 1
    assert kept.keep(said("What is this?", "a cup"), PICTURES_SHOWN) == 1
    assert kept.keep(said("What is this?", "a cup", picture="blue"), PICTURES_SHOWN) == 2
    assert kept.keep(said("What is that?", "a cup"), PICTURES_SHOWN) == 3
    assert kept.keep(said("What is this?", "a bowl"), {NAMES["red"]: Image.new("RGB", (32, 24), (252, 2, 1))}) == 3
    assert replies(kept) == [("a bowl",), ("a cup",), ("a cup",)]
    assert len(list((kept.folder / PICTURES).iterdir())) == 2
    first = formats.examples(kept.file)[0]
    assert first.pictures[0].open().tobytes() == RED.tobytes()
    # A name that is another picture's is not believed.
    kept.keep(said("And this?", "a lamp"), {NAMES["red"]: Image.new("RGB", (32, 24), "green")})
    assert len(list((kept.folder / PICTURES).iterdir())) == 3


def test_records_are_edited_and_deleted_and_what_others_wrote_stays(tmp_path: Path):
    kept = KeptSet(tmp_path / "set")
    kept.keep(said("one?", "a", "two?", "b"), PICTURES_SHOWN)
    kept.keep(said("three?", "c", picture="blue"), PICTURES_SHOWN)
    with kept.file.open("a") as file:
        file.write("no JSON\n")
    first, second, foreign = kept.records()
    kept.edit(first.id, 1, "B")
    assert [json.loads(one.line)["messages"][-1]["content"][0]["text"] for one in kept.records()[:2]] == ["B", "c"]
    with pytest.raises(DataError, match=CHANGED.split(":")[0]):
        kept.edit(first.id, 0, "somebody else was faster")
    kept.delete(second.id)
    assert [one.line for one in kept.records()[1:]] == ["no JSON"]
    assert len(list((kept.folder / PICTURES).iterdir())) == 1
    kept.delete(foreign.id)
    assert replies(kept) == [("a", "B")]
    kept.drop(said("one?", "another reply"), PICTURES_SHOWN)
    assert len(kept.records()) == 1
    kept.drop(said("one?", "a"), PICTURES_SHOWN)
    assert len(kept.records()) == 1
    kept.drop(said("one?", "a"), PICTURES_SHOWN, longer=True)
    assert not kept.records()


KEEPING = """
import sys
from pathlib import Path
from PIL import Image
from minichat.web.curate import KeptSet
from minichat.web.talk import Said
kept = KeptSet(Path(sys.argv[1]))
for number in range(12):
    said = [Said("user", f"{sys.argv[2]} {number}?", ("p",)), Said("assistant", "yes")]
    kept.keep(said, {"p": Image.new("RGB", (8, 8), (number, 0, 0))})
"""


def test_two_processes_and_two_tabs_at_once_lose_nothing(tmp_path: Path):
    kept = KeptSet(tmp_path / "set")
    command = [sys.executable, "-c", KEEPING, str(kept.folder)]
    with subprocess.Popen([*command, "one"]) as one, subprocess.Popen([*command, "other"]) as other:
        tabs = [
            threading.Thread(
                target=lambda t=t: [kept.keep(said(f"{t} {n}?", "yes"), PICTURES_SHOWN) for n in range(12)]
            )
            for t in range(2)
        ]
        for tab in tabs:
            tab.start()
        for tab in tabs:
            tab.join()
        assert one.wait() == other.wait() == 0
    assert len({one.turns[0].text for one in formats.examples(kept.file)}) == 48


# --- who may


def request(client: str = "127.0.0.1", host: str = "127.0.0.1:7860", **headers: str) -> dict[str, Any]:
    listed = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "type": "http",
        "client": (client, 5000),
        "headers": [(name.encode(), value.encode()) for name, value in listed.items()],
    }


def test_the_owner_sits_at_the_machine_or_has_shown_the_key():
    assert is_owner(request(), False)
    assert is_owner(request("::1", "localhost:80", origin="http://localhost:80"), False)
    for other in (
        request("10.0.0.5"),
        request("10.0.0.5", "192.168.1.2:7860"),
        request(host="evil.example:7860"),
        request(x_forwarded_for="10.0.0.5"),
        request(forwarded="for=10.0.0.5"),
        request(""),
    ):
        assert not is_owner(other, False)
        assert is_owner(other, True)
    assert not is_owner(request(origin="http://evil.example"), False)
    assert not is_owner(request(origin="http://evil.example"), True)


@contextlib.contextmanager
def serving(bot: FakeBot, tmp_path: Path, load: Any = FakeBot) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
        patch.chdir(tmp_path)
        page = build_app(bot, owned=Owned(tmp_path / "set", "minichat-tiny", load))
        del bot  # as the commands do, so that another model may take its place in memory
        running = launch(page)
        try:
            yield running
        finally:
            running.close()


def desk(visitor: Visitor, act: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    return visitor.http.post(DESK, json={"do": act, **more}, headers=headers)


def test_replies_are_kept_over_http_and_by_nobody_else(tmp_path: Path):
    with serving(FakeBot(), tmp_path) as running:
        visitor = Visitor(running.url)
        visitor.talk = {"messages": []}
        visitor.talk = visitor.ask("What is it?", [visitor.upload(png())]).talk
        sent = {"messages": visitor.talk["messages"]}
        state = desk(visitor, "keep", **sent).json()
        assert (state["owner"], state["records"], state["pictures"], state["model"]) == (True, 1, 1, "fake")
        (row,) = desk(visitor, "list").json()["list"]
        assert row["messages"][0] == {"role": "user", "text": "What is it?", "pictures": [0]}
        shown = visitor.http.get(f"{DESK}/{row['id']}/0")
        assert shown.headers["content-type"] == "image/png"
        assert visitor.http.get(f"{DESK}/{row['id']}/1").status_code == 404
        assert "Good: 1" in desk(visitor, "check").json()["checked"]

        # A reply that is marked as wrong is never learnt as it is.
        marked = [*sent["messages"][:-1], {**sent["messages"][-1], "mark": "down"}]
        for whole in (False, True):
            refused = desk(visitor, "keep", messages=marked, whole=whole)
            assert refused.status_code == 400
            assert "write the right one first" in refused.json()["detail"]
        assert desk(visitor, "drop", messages=marked).json()["records"] == 0
        marked[-1]["right"] = "A red square."
        assert desk(visitor, "keep", messages=marked).json()["records"] == 1
        assert replies(running.page.desk.set) == [("A red square.",)]

        # Pictures that the server lacks are uploaded; the reply is taken out, and the conversation that holds it.
        talk = {**sent, "files": {sent["messages"][0]["pictures"][0]: visitor.upload(png())}}
        assert desk(visitor, "keep", **talk, whole=True).json()["records"] == 1
        longer = [*sent["messages"], {"role": "user", "text": "And?"}, {"role": "assistant", "text": "No."}]
        assert desk(visitor, "keep", messages=longer, whole=True).json()["records"] == 2
        assert desk(visitor, "drop", **sent).json()["records"] == 1  # a thumb that is taken back
        del marked[-1]["right"]
        files = {sent["messages"][0]["pictures"][0]: visitor.upload(png())}
        assert desk(visitor, "drop", messages=marked, files=files).json()["records"] == 0
        assert desk(visitor, "keep", **sent).json()["records"] == 1

        strangers = ({"x-forwarded-for": "10.0.0.5"}, {"host": "evil.example"}, {"origin": "http://evil.example"})
        for headers in strangers:
            told = desk(visitor, "state", headers).json()
            assert [told.pop(fact) for fact in ("caption", "system", "boxes")] == ["Describe the picture.", True, True]
            assert told == {"owner": False, "model": "fake", "knows": "", "choice": []}
            for act in ("keep", "drop", "list", "edit", "delete", "check", "teach", "stop", "models", "use"):
                answer = desk(visitor, act, headers, **sent)
                assert (answer.status_code, answer.json()) == (403, {"detail": NOT_YOURS})
            assert visitor.http.get(f"{DESK}/{row['id']}/0", headers=headers).status_code == 403
        without_cookie = httpx.post(running.url + DESK, json={"do": "list"}, trust_env=False)
        assert without_cookie.status_code == 403
        for wrong in ({}, {"do": "x"}, [], {"do": "keep", "messages": 5}, {"do": "edit", "id": 5, "text": ["x"]}):
            assert visitor.http.post(DESK, json=wrong).status_code == 400
        assert len(running.page.desk.set.records()) == 1
        visitor.close()


def test_a_page_without_an_owner_keeps_nothing(tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        running = launch(build_app(FakeBot()))
        visitor = Visitor(running.url)
        assert desk(visitor, "state").json()["owner"] is False
        assert desk(visitor, "list").status_code == 403
        visitor.close()
        running.close()


# --- teaching


def test_one_is_taught_at_a_time_and_says_why_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is found again by another server; what was stopped goes on in the same folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minichat.web.swap.COMMAND", (sys.executable, "-c", "print('began', flush=True); input()"))
    kept = KeptSet(tmp_path / "set")
    kept.keep(said("What is this?", "a cup"), PICTURES_SHOWN)
    here, elsewhere = Teaching(kept.folder), Teaching(kept.folder)
    assert here.state() == {"running": False}
    slow = "import time; print('began', flush=True); time.sleep(600)"
    monkeypatch.setattr("minichat.web.swap.COMMAND", (sys.executable, "-c", slow))
    here.start(kept.file, "minichat-tiny")
    for each in (here, elsewhere):
        assert each.running()
        with pytest.raises(DataError, match="taught from this set already"):
            each.start(kept.file, "minichat-tiny")
    assert elsewhere.state()["out"] == "runs/taught-1"
    elsewhere.stop()
    assert here._process is not None
    here._process.wait(60)
    assert not elsewhere.running()
    (tmp_path / "runs" / "taught-1" / "lessons").mkdir()  # it had begun
    assert "It was stopped" in here.state()["failed"]
    here.start(kept.file, "minichat-tiny")
    assert here.state()["out"] == "runs/taught-1"
    here.close()
    here._process.wait(60)

    failing = "import sys; sys.exit('minichat: 1 different pictures are too few')"
    monkeypatch.setattr("minichat.web.swap.COMMAND", (sys.executable, "-c", failing))
    kept.keep(said("What is that?", "a cup"), PICTURES_SHOWN)
    here.start(kept.file, "minichat-tiny")
    here._process.wait(60)
    state = here.state()
    assert (state["out"], state["failed"]) == ("runs/taught-2", "1 different pictures are too few")
    assert not (tmp_path / "runs" / "taught-2").exists()


# --- another model


def result(folder: Path) -> None:
    """What looks like a model in the current folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "minichat"}')


def adapter(folder: Path) -> None:
    """What looks like an adapter by its name, beside a model."""
    folder.mkdir(parents=True)
    (folder / "minichat.json").write_text("{}")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is found fits."""
    monkeypatch.setattr(Models, "_fits", lambda self, name: True)


def test_models_are_known_names_that_are_here_and_results_below_runs(tmp_path: Path, known: None, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    result(tmp_path / "runs" / "one")
    result(tmp_path / "runs" / "many" / "two")
    result(tmp_path / "runs" / "one" / "checkpoints")
    adapter(tmp_path / "runs" / "one" / "adapters" / "three")
    result(tmp_path / "elsewhere")
    (tmp_path / "runs" / "empty").mkdir()
    models = Models(Owned(tmp_path, "minichat-tiny", FakeBot), FakeBot(), None)  # type: ignore[arg-type]
    choices = models.choices()
    assert choices[0] == "minichat-tiny"
    assert set(choices[-3:]) == {"runs/one", "runs/one/adapters/three", "runs/many/two"}
    assert not {"minigpt4-vicuna-7b", "elsewhere", "runs/empty"} & set(choices)
    with pytest.raises(ModelError, match="'elsewhere' is not among the models"):
        models.use("elsewhere")
    adapter(tmp_path / "elsewhere" / "adapters" / "four")
    models.name = "elsewhere"
    assert "elsewhere/adapters/four" in models.choices()


def test_another_model_answers_and_the_one_before_is_let_go(tmp_path: Path, known: None):
    """A reply that is being written ends by the old model; the chat goes on by the new one; the old one is gone."""
    result(tmp_path / "runs" / "one")
    bot = FakeBot("old", pause=0.05)
    bot.enqueue(" ".join(["old"] * 40))
    with serving(bot, tmp_path, lambda name: FakeBot("new")) as running:
        writing, idle = Visitor(running.url), Visitor(running.url)
        assert idle.ask("before").texts == ["before", " ".join(["old"] * 40)]
        bot.enqueue(" ".join(["old"] * 40))
        writing.send("go on").raise_for_status()
        messages = writing.messages()
        while next(messages)["msg"] != "process_generating":
            pass
        state = desk(idle, "use", name="runs/one").json()
        assert (state["model"], state["using"]) == ("new", "runs/one")
        last = [message for message in messages if message["msg"] == "process_completed"][-1]
        chat = last["output"]["data"][0]
        assert chat[1]["content"][0]["text"] == " ".join(["old"] * 40)
        assert writing.ask("and now?").texts[-1] == "You asked “and now?”, pictures: 0."
        assert idle.ask("and here?").texts[2:] == ["and here?", "You asked “and here?”, pictures: 0."]
        assert running.page.sessions.new_chat.__self__.name == "new"
        gone = weakref.ref(bot)
        del bot
        gc.collect()
        assert gone() is None
        writing.close()
        idle.close()


def test_a_model_that_cannot_be_loaded_changes_nothing(tmp_path: Path, known: None):
    result(tmp_path / "runs" / "one")
    errors = iter([ModelError("The weights of 'one' are damaged."), RuntimeError("out of memory"), ValueError("odd")])

    def load(name: str) -> FakeBot:
        raise next(errors)

    with serving(FakeBot("old"), tmp_path, load) as running:
        visitor = Visitor(running.url)
        visitor.ask("before")
        for told in ("are damaged", "not enough memory", "cannot be loaded: odd"):
            answer = desk(visitor, "use", name="runs/one")
            assert answer.status_code == 400
            assert told in answer.json()["detail"]
        state = desk(visitor, "state").json()
        assert (state["model"], state["using"], state["loading"]) == ("old", "minichat-tiny", "")
        assert visitor.ask("after").texts[2] == "after"
        visitor.close()


def test_models_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="Two models are called one"):
        build_app(FakeBot("one"), owned=Owned(tmp_path / "set", "one", FakeBot, also=("one",)))


def test_a_visitors_choice_of_model_changes_no_one_elses(tmp_path: Path):
    """Among those that are loaded, also for who is not the owner; the chat goes on by it."""
    owned = Owned(tmp_path / "set", "one", FakeBot, also=("two", "three"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        running = launch(build_app(FakeBot("one"), owned=owned))
    stranger = {"host": "evil.example"}
    mine, other = Visitor(running.url), Visitor(running.url)
    sessions = running.page.sessions
    for visitor in (mine, other):
        visitor.ask("hello")
    told = desk(mine, "choose", stranger, name="two").json()
    assert (told["owner"], told["model"], told["choice"]) == (False, "two", ["one", "two", "three"])
    assert [desk(each, "state", stranger).json()["model"] for each in (mine, other)] == ["two", "one"]
    assert sorted(session.chat.bot.name for session in sessions._open.values()) == ["one", "two"]
    mine.talk = {"messages": []}
    assert mine.ask("again").talk["model"] == "two"
    assert len(Visitor(running.url, like=mine).ask("a new page").texts) == 2
    assert sorted(session.chat.bot.name for session in sessions._open.values()) == ["one", "two", "two"]
    sessions.swap(FakeBot("four").chat, "four")  # by the owner, for all who chose none
    assert [desk(each, "state").json()["model"] for each in (mine, other)] == ["two", "four"]
    refused = desk(other, "choose", name="runs/one")
    assert (refused.status_code, "no model 'runs/one' to choose" in refused.text) == (400, True)
    assert desk(mine, "choose", name="four").json()["model"] == "four"
    mine.close(), other.close(), running.close()
