"""What the page keeps for its visitors, its settings and its texts: no server needed."""

from __future__ import annotations

import html
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minichat.errors import MiniChatError, SettingsError
from minichat.web.app import EXAMPLES
from minichat.web.guard import address_of, private_id
from minichat.web.sessions import (
    GRACE,
    IN_USE,
    LEFT,
    OWN,
    ROOM,
    UPLOAD_GRACE,
    BusyError,
    Limits,
    Sessions,
    Uploads,
    panel,
    read,
)
from minichat.web.talk import SHOWN_SIDE, data_url, escape, unescape


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_one_idle_longest_makes_room_but_never_one_being_answered(clock):
    sessions = Sessions(object, Limits(sessions=2), clock)
    a, b = sessions.get("a", "v"), sessions.get("b", "v")
    with a.answering:
        sessions.get("c", "v")
        assert sorted(sessions.open_keys()) == ["a", "c"]
        assert b.stopping.is_set()
        with sessions.get("c", "v").answering, pytest.raises(BusyError):
            sessions.get("d", "v")
    assert sessions.get("a", "v") is a


def test_a_session_lives_as_long_as_it_is_used(clock):
    limits = Limits(session_life=100)
    sessions = Sessions(object, limits, clock)
    kept = sessions.get("a", "v")
    clock.now = 90
    assert sessions.get("a", "v") is kept
    clock.now = 189
    assert sessions.get("a", "v") is kept
    clock.now = 290
    sessions.sweep()
    assert "a" not in sessions
    assert "closed" in sessions.get("a", "v").notice
    assert sessions.get("b", "v").notice == ""


def test_a_visitor_with_too_many_chats_loses_their_own_oldest(clock):
    sessions = Sessions(object, Limits(sessions=5, sessions_per_visitor=2), clock)
    sessions.get("other", "w")
    for name in "abc":
        clock.now += 1
        sessions.get(name, "v")
    assert sorted(sessions.open_keys()) == ["b", "c", "other"]
    assert sessions.get("a", "v").notice == OWN
    sessions.get("x", "x")
    sessions.get("y", "y")
    with (
        sessions.get("a", "v").answering,
        sessions.get("c", "v").answering,
        pytest.raises(BusyError, match="You have 2"),
    ):
        sessions.get("b", "v")
    assert "other" in sessions


def test_who_comes_anew_each_time_has_the_share_of_their_address(clock):
    sessions = Sessions(object, Limits(sessions=4), clock)
    sessions.get("other", "w", "192.0.2.1")
    for name in "abc":
        clock.now += 1
        sessions.get(name, name, "192.0.2.2")
    assert sorted(sessions.open_keys()) == ["b", "c", "other"]
    assert sessions.get("a", "a", "192.0.2.2").notice == ROOM


def test_a_chat_in_use_is_not_closed_for_others_and_one_without_a_page_is_the_first(clock):
    sessions = Sessions(object, Limits(sessions=3), clock)
    for name in "abc":
        sessions.enter(name)
        sessions.get(name, name)
        clock.now += 1
    with pytest.raises(BusyError, match="in use"):
        sessions.get("d", "d")
    sessions.leave("b")
    sessions.get("d", "d")
    assert sorted(sessions.open_keys()) == ["a", "c", "d"]
    sessions.get("e", "e")
    assert sorted(sessions.open_keys()) == ["a", "c", "e"]  # nothing has ever held d's page open
    sessions.enter("e")
    clock.now += IN_USE
    sessions.get("c", "c")
    sessions.get("f", "f")
    assert "a" not in sessions
    assert sessions.get("a", "f").notice == ROOM  # f's own goes for it


def test_a_page_whose_connection_comes_back_in_time_keeps_its_chat(clock):
    sessions = Sessions(object, Limits(), clock)
    sessions.enter("a")
    kept = sessions.get("a", "v")
    sessions.leave("a")
    clock.now += GRACE / 2
    sessions.enter("a")
    clock.now += GRACE
    sessions.sweep()
    assert sessions.get("a", "v") is kept
    sessions.leave("a")
    clock.now += GRACE + 1
    sessions.sweep()
    assert sessions.get("a", "v").notice == LEFT


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("127.0.0.1", ""),
        ("127.8.0.1", ""),
        ("::1", ""),
        ("testclient", ""),
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
)
def test_an_address_counts_unless_everybody_has_it(host, counted):
    assert address_of((host, 1)) == counted
    assert address_of(None) == ""


def test_who_leaves_may_come_back_for_a_while(clock):
    sessions = Sessions(object, Limits(session_life=1000), clock)
    kept = sessions.get("a", "v")
    sessions.leave("a")
    assert kept.stopping.is_set()
    clock.now = GRACE / 2
    assert sessions.get("a", "v") is kept
    sessions.leave("a")
    clock.now += GRACE + 1
    sessions.sweep()
    assert len(sessions) == 0
    sessions.leave("never seen")
    sessions.close("never seen")


def test_closed_sessions_leave_nothing_behind(clock):
    sessions = Sessions(object, Limits(sessions=2), clock)
    closed: list[str] = []
    sessions.on_close.append(closed.append)
    for number in range(50):
        sessions.get(str(number), "v")
    assert len(closed) == 48
    assert len(sessions._dropped) <= 8


def test_an_upload_belongs_to_one_visitor_and_goes_with_them(tmp_path, clock):
    uploads = Uploads(tmp_path / "x", Limits(), clock)
    mine, theirs = (uploads.add(io.BytesIO(b"same"), "a.png", visitor) for visitor in ("me", "them"))
    assert mine != theirs
    uploads.release(theirs, "me")
    assert (uploads.owns(mine, "me"), uploads.owns(theirs, "me")) == (True, False)
    assert Path(theirs).read_bytes() == b"same"
    uploads.release(theirs, "them")
    assert [folder.name for folder in (tmp_path / "x").iterdir()] == [Path(mine).parent.name]
    uploads.close()
    assert list(tmp_path.iterdir()) == []


def test_uploads_are_bounded_in_number_and_time(tmp_path, clock):
    uploads = Uploads(tmp_path, Limits(pictures_per_message=2, session_life=50), clock)
    paths = []
    for _ in range(12):
        clock.now += 1
        paths.append(uploads.add(io.BytesIO(b"x" * 10), "a", "a"))
    assert [Path(path).exists() for path in paths] == [False] * 4 + [True] * 8
    clock.now += 60
    uploads.sweep()
    assert list(tmp_path.iterdir()) == []


def _kept(paths: list[str]) -> list[bool]:
    return [Path(path).exists() for path in paths]


def test_who_uploads_more_than_a_message_holds_loses_their_own_oldest(tmp_path):
    uploads = Uploads(tmp_path, Limits(pictures_per_message=2, upload_bytes=10))
    first = uploads.add(io.BytesIO(b"x" * 10), "a", "other")
    mine = [uploads.add(io.BytesIO(b"x" * 10), "a", "me") for _ in range(4)]
    assert _kept([first, *mine]) == [True, False, False, True, True]


def test_where_all_together_are_too_many_whoever_has_most_loses_their_oldest(tmp_path):
    uploads = Uploads(tmp_path, Limits(upload_bytes=100, waiting_bytes=200))
    small = uploads.add(io.BytesIO(b"x" * 20), "a", "me")
    anew = [uploads.add(io.BytesIO(b"x" * 60), "a", f"cookie {n}") for n in range(5)]  # a new visitor each time
    assert _kept([small, *anew]) == [True, False, False, True, True, True]


def test_those_of_one_address_have_half_of_the_uploads(tmp_path):
    uploads = Uploads(tmp_path, Limits(upload_bytes=100, waiting_bytes=200))
    elsewhere = uploads.add(io.BytesIO(b"x" * 90), "a", "me", "192.0.2.1")
    anew = [uploads.add(io.BytesIO(b"x" * 60), "a", f"cookie {n}", "192.0.2.2") for n in range(3)]
    assert _kept([elsewhere, *anew]) == [True, False, False, True]


def test_what_was_not_sent_goes_with_the_last_page(tmp_path, clock):
    uploads = Uploads(tmp_path, Limits(), clock)
    uploads.enter("me")
    uploads.enter("me")
    kept, others = (uploads.add(io.BytesIO(b"x"), "a", visitor) for visitor in ("me", "other"))
    uploads.leave("me")
    clock.now += UPLOAD_GRACE + 1
    uploads.sweep()
    assert _kept([kept]) == [True]  # the other page is there
    uploads.leave("me")
    uploads.enter("me")  # a connection that broke comes back
    clock.now += UPLOAD_GRACE + 1
    uploads.sweep()
    assert _kept([kept]) == [True]
    uploads.leave("me")
    later = uploads.add(io.BytesIO(b"x"), "a", "me")
    clock.now += 1
    newest = uploads.add(io.BytesIO(b"x"), "a", "me")
    clock.now += UPLOAD_GRACE
    uploads.sweep()
    assert _kept([kept, later, newest, others]) == [False, False, True, True]


LEFT_BEHIND = """
import io, os, pathlib, signal, sys
from minichat.web.sessions import Limits
from minichat.web.sessions import Uploads
uploads = Uploads(pathlib.Path(sys.argv[1]), Limits())
uploads.start()
uploads.add(io.BytesIO(b"x"), "a.png", "v")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_server_left_goes_at_the_next_start_and_a_live_ones_stays(tmp_path):
    live = Uploads(tmp_path / "minichat-live", Limits())
    live.start()
    kept = live.add(io.BytesIO(b"x"), "a.png", "v")
    killed = tmp_path / "minichat-killed"
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND, str(killed)], cwd=Path(__file__).parent.parent)
    assert done.returncode == -9
    assert list(killed.rglob("a.png"))
    (tmp_path / "minichat-notes").mkdir()  # not a server's
    new = Uploads(tmp_path / "minichat-new", Limits())
    new.start()
    assert not killed.exists()
    assert Path(kept).exists()
    new.close()
    live.close()
    assert [path.name for path in tmp_path.iterdir()] == ["minichat-notes"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniChatError, match="GRADIO_TEMP_DIR"):
        Uploads(tmp_path / "file" / "minichat-x", Limits()).start()


@pytest.mark.parametrize("name", ["../../x.png", "/etc/passwd", "a\nb.png", "", "..", ".hidden", "𠀀" * 500 + ".png"])
def test_the_name_of_an_upload_leads_nowhere(name, tmp_path, clock):
    path = Path(Uploads(tmp_path, Limits(), clock).add(io.BytesIO(b"x"), name, "a"))
    assert path.parent.parent == tmp_path
    assert path.is_file()


@given(st.text())
def test_text_is_shown_exactly_as_it_is(text):
    shown = escape(text)
    assert unescape(shown) == text
    assert not re.search(r"<[A-Za-z/!?]", shown)
    assert html.unescape(shown) == text


@given(st.text(alphabet="<>&;/!?#lgtamp x1"))
def test_markup_is_shown_exactly_as_it_is(text):
    test_text_is_shown_exactly_as_it_is.hypothesis.inner_test(text)


def test_pictures_are_shown_small(clock):
    big = Image.effect_noise((3000, 1500), 90).convert("RGB")
    assert len(data_url(big)) < 200_000
    assert big.size == (3000, 1500)
    assert data_url(Image.new("RGB", (SHOWN_SIDE, 3))).startswith("data:image/png;base64,")


def test_an_id_means_something_else_for_everyone():
    assert private_id("a", "1") == private_id("a", "1")
    assert len({private_id(a, b) for a in ("a", "b") for b in ("1", "2")}) == 4


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), True, "many", None, 1.5])
def test_limits_are_numbers_above_0(bad):
    with pytest.raises(SettingsError, match="sessions"):
        Limits(sessions=bad)


def test_the_panel_offers_no_more_than_the_model_can():
    fields = panel(Limits(new_tokens=1000), context=256)
    longest = next(field for field in fields if field.name == "max_new_tokens")
    assert (longest.high, longest.default) == (128, 128)
    values = read(fields, [field.default for field in fields])
    assert values == {"temperature": 0, "top_p": 1, "max_new_tokens": 128, "repetition_penalty": 1, "seed": None}


def test_no_value_of_a_setting_is_too_strange_to_be_refused_by_name():
    strange = [10**400, -(10**400), 10**5000, float("nan"), 1e300, "\ud800", [], {}, None, True]
    for value, field in itertools.product(strange, panel(Limits())):
        if not (value is None and field.default is None):
            with pytest.raises(SettingsError, match=f"^{field.name} must be ") as caught:
                field.read(value)
            str(caught.value).encode()


def test_settings_are_those_of_generation():
    from minichat.inference.sampling import GenerationSettings

    fields = panel(Limits())
    for values in zip(*[(field.low, field.high, field.default) for field in fields], strict=True):
        GenerationSettings(**read(fields, values))


def test_examples_are_scenes_of_the_drawn_world():
    assert len({example.question for example in EXAMPLES}) == len(EXAMPLES)
    for example in EXAMPLES:
        assert example.picture().tobytes() == example.picture().tobytes()
        for thing in example.scene.things:
            margin = thing.radius
            assert margin < thing.x < 1 - margin
            assert margin < thing.y < 1 - margin
