"""What the page keeps for its visitors, its settings and its texts: no server needed."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minichat.errors import SettingsError
from minichat.web.bubbles import SHOWN_SIDE, data_url, escape, unescape
from minichat.web.examples import EXAMPLES
from minichat.web.guard import private_id
from minichat.web.limits import Limits
from minichat.web.settings import panel, read
from minichat.web.store import GRACE, BusyError, Sessions, Uploads


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
    uploads.release_all("them")
    assert [folder.name for folder in (tmp_path / "x").iterdir()] == [Path(mine).parent.name]
    uploads.close()
    assert list(tmp_path.iterdir()) == []


def test_uploads_are_bounded_in_number_size_and_time(tmp_path, clock):
    limits = Limits(pictures_per_message=2, waiting_bytes=100, session_life=50)
    uploads = Uploads(tmp_path, limits, clock)
    paths = []
    for _ in range(12):
        clock.now += 1
        paths.append(uploads.add(io.BytesIO(b"x" * 10), "a", "a"))
    assert [Path(path).exists() for path in paths] == [False] * 4 + [True] * 8
    assert uploads.has_room()
    uploads.add(io.BytesIO(b"x" * 30), "b", "b")
    assert not uploads.has_room()
    clock.now += 60
    assert uploads.has_room()
    assert list(tmp_path.iterdir()) == []


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


def test_settings_are_those_of_generation():
    from minichat.settings import GenerationSettings

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
