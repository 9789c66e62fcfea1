"""`minichat teach`: what it finds in a person's data, what it asks and holds out, and what it says came of it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import minichat
from minichat import cli
from minichat.data import formats
from minichat.data.example import Example, StoredPicture, Turn, Where
from minichat.errors import DataError
from minichat.prompt.template import CAPTION_PROMPT
from minichat.teach import run as teaching
from minichat.teach.lessons import LEAST, QUESTIONS, Material, hold_out, is_unasked, lessons, look, moved
from minichat.teach.measure import CHANCE, EXCHANGED, Surprise, common_words, exchangeable, is_named
from minichat.teach.plan import KNOWN, TAUGHT, VALIDATION, Plan
from minichat.teach.run import Measured, conclusion, teach
from minichat.train.checkpoint import LESSONS, PAGE, TEACHING
from tests.products import KINDS, write_products
from tests.training import make_desk


def example(number: int, text: str, question: str = "") -> Example:
    picture = StoredPicture(f"{number}.png", f"picture {number}".encode())
    asked = Turn("user", (picture, question) if question else (picture,))
    return Example((asked, Turn("assistant", (text,))), Where("test", number + 1))


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_products(tmp_path_factory.mktemp("own") / "products", 10)


# --- what there is


def test_a_folder_of_pictures_and_a_list_is_understood(products: Path, tmp_path: Path):
    """The list is found; what cannot be opened is left out by name, and keys that nothing reads are told."""
    folder = tmp_path / "products"
    shutil.copytree(products, folder)
    header, *rows = (folder / "products.csv").read_text().splitlines()
    damaged = folder / rows[7].split(",")[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    rows = [f"{row},{number}.90" for number, row in enumerate(rows)]
    (folder / "products.csv").write_text("\n".join([f"{header},price", *rows]) + "\n")
    material = look(folder)
    assert len(material.examples) == 59 == material.unasked
    assert set(material.kinds) == set(KINDS)
    assert material.passed_over == ["'price'"]
    assert len(material.left_out) == 1
    assert damaged.name in material.left_out[0]
    assert ":9:" in material.left_out[0]


def test_too_little_is_told_before_anything_is_done(tmp_path: Path):
    few = write_products(tmp_path / "few", 1)
    with pytest.raises(DataError, match=rf"^6 different pictures are too few .* give {LEAST} or more"):
        look(few)
    same = write_products(tmp_path / "same", 3, text="a product")
    with pytest.raises(DataError, match=r"All 18 records say the same \('a product'\)"):
        look(same)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        look(tmp_path / "empty")


def test_texts_are_names_of_kinds_where_pictures_share_them():
    named = Material([example(n, ("A cup.", "a lamp")[n % 2]) for n in range(20)])
    assert named.kinds == {"A cup": 10, "a lamp": 10}
    told = Material([example(n, f"a cup number {n}") for n in range(20)])
    assert not told.kinds


@pytest.mark.parametrize(("kinds", "each"), [(2, 20), (3, 12), (6, 10), (6, 9), (40, 5)])
def test_some_of_each_kind_are_held_out_and_enough_to_tell(kinds: int, each: int):
    material = Material([example(n, f"kind {n % kinds}") for n in range(kinds * each)])
    taught, held = hold_out(material)
    assert {one.where for one in taught}.isdisjoint(one.where for one in held)
    assert len(taught) + len(held) == kinds * each
    assert len(taught) >= 0.65 * kinds * each
    assert {one.replies[0] for one in held} == {f"kind {k}" for k in range(kinds)}
    assert Surprise.least([one.replies[0] for one in exchangeable(held)]) <= CHANCE
    assert hold_out(material) == (taught, held)


def test_records_of_one_picture_stay_on_one_side():
    material = Material([example(n // 3, f"text {n}", f"question {n % 3}?") for n in range(90)])
    taught, held = hold_out(material)
    assert held
    assert {one.pictures for one in taught}.isdisjoint(one.pictures for one in held)


# --- what is asked, and how pictures are moved


def test_what_asks_nothing_is_learnt_under_all_questions_and_none(products: Path):
    """Those of the page, of `caption` and of `chat` are among them; whoever asks is left alone."""
    taught, _ = hold_out(look(products))
    made = list(lessons(taught, len(QUESTIONS), side=48))
    assert len(made) == len(taught) * len(QUESTIONS)
    questions = {one.turns[0].text for one in made}
    assert questions == set(QUESTIONS) >= {CAPTION_PROMPT, "Describe the picture.", "What is this?", ""}
    assert {one.replies for one in made} == {one.replies for one in taught}
    asks = example(1, "a cup", "Which cup is it?")
    with_picture = Example((Turn("user", (made[0].pictures[0], "Which cup?")), asks.turns[1]), asks.where)
    assert not is_unasked(with_picture)
    assert {one.turns[0].text for one in lessons([with_picture], 3, side=48)} == {"Which cup?"}


def test_moved_pictures_are_alike_and_keep_left_and_right():
    half = Image.new("RGB", (60, 40), "black")
    half.paste("white", (30, 0, 60, 40))
    seen = set()
    for number in range(20):
        other = moved(half, random.Random(number))
        seen.add(other.tobytes())
        assert other.size == half.size
        left, right = (np.asarray(other.crop(box)).mean() for box in ((0, 0, 15, 40), (45, 0, 60, 40)))
        assert left < 40
        assert right > 200
    assert len(seen) == 20


# --- what is measured


def test_a_reply_names_a_kind_if_it_names_no_other():
    kinds = ("cup", "tea cup", "lamp")
    assert is_named("This is a tea  Cup.", "tea cup", kinds)
    assert not is_named("This is a tea cup.", "cup", kinds)
    assert not is_named("a cup or a lamp", "cup", kinds)
    assert not is_named("cupboard", "cup", kinds)
    assert common_words("a red cup", "a red cup") == 1
    assert common_words("a red cup", "two blue lamps") == 0


def test_chance_is_that_of_exchanging_the_pictures():
    """Texts that fit their pictures alone pass; of those that fit any, a share of CHANCE does."""
    assert Surprise(1 - np.eye(6)).chance == 1 / 720
    assert Surprise(np.ones((6, 6))).chance == 1
    assert Surprise(np.zeros((0, 0))).chance == 1
    assert Surprise.least(["a", "b", "c", "d", "e", "f"]) == 1 / 720
    assert Surprise.least(["a", "a", "b", "b"]) == 4 / 24
    draws = np.random.default_rng(0)
    passed = sum(Surprise(draws.normal(size=(6, 6))).chance <= CHANCE for _ in range(1000))
    assert 5 <= passed <= 45  # 20 are expected, of a binomial distribution


def test_of_many_texts_as_many_different_ones_are_exchanged():
    held = [example(n, f"kind {n % 15}") for n in range(60)]
    chosen = exchangeable(held)
    assert len(chosen) == EXCHANGED
    assert len({one.replies for one in chosen}) == EXCHANGED
    without = Example((Turn("user", ("Hello",)), Turn("assistant", ("Hi",))), Where("test"))
    assert exchangeable([without, *held[:2]]) == held[:2]


def measured(losses: np.ndarray, replies: list[str], known: float = 0.97) -> Measured:
    return Measured(replies, Surprise(losses), known, 600)


def test_what_came_of_it_is_said_plainly():
    held = [example(n, kind) for n, kind in enumerate(KINDS)]
    before = measured(np.full((6, 6), 9.0), ["A red circle."] * 6)
    learnt, said = conclusion(KINDS, held, before, measured(1 - np.eye(6), list(KINDS)))
    assert learnt
    assert said[0] == "Of 6 pictures that were held out it names 6 rightly (before: 0)."
    assert "97.0% rightly (before: 97.0%)." in said[1]

    learnt, said = conclusion(KINDS, held, before, measured(np.ones((6, 6)), ["zindle"] * 6, known=0.9))
    assert not learnt
    assert said[0].startswith("Nothing was learnt of the pictures")
    assert "Wrong: blorp (“zindle”)" in said[1]
    assert said[2].endswith("it has forgotten some of what it knew.")

    learnt, said = conclusion((), held, before, measured(9 + 1 - np.eye(6), ["x"] * 6))
    assert not learnt
    assert said[0].startswith("Nothing was learnt: ")

    learnt, said = conclusion(KINDS, held[:3], before, measured(1 - np.eye(3), list(KINDS)[:3]))
    assert not learnt
    assert "too few to tell" in said[0]


# --- from one end to the other, with a random model that learns nothing in a few steps


@pytest.fixture(scope="module")
def short() -> Plan:
    return Plan(("projection", "language_model"), None, 1e-3, passes=1, known=40, scenes=1, rows=16)


def test_what_trains_is_there_to_train() -> None:
    """Some bridges only take means, or put neighbours together."""
    assert Plan.of(10**6, 100).trainable == ("bridge", "projection", "language_model")
    assert Plan.of(10**6, 100, bridged=False).trainable == ("projection", "language_model")
    assert (
        Plan.of(10**9, 100, bridged=True).trainable == Plan.of(10**9, 100, bridged=False).trainable == ("projection",)
    )


def test_beside_an_adapter_the_projection_moves_slowly(tmp_path: Path) -> None:
    """What learned an LLM's words is not to leave them; where the LLM itself trains, both go together."""
    (tmp_path / LESSONS).mkdir()
    (tmp_path / LESSONS / TAUGHT).touch()
    rates = [Plan.of(size, 100).config("a", tmp_path, "cpu", 10).optimizer for size in (10**6, 10**9)]
    assert [rate.lr_by_part.get("projection", rate.lr) / rate.lr for rate in rates] == pytest.approx([1, 0.1])


@pytest.fixture(scope="module")
def taught(products: Path, short: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """The folder, what was said the first time, and what the second time."""
    desk = make_desk(tmp_path_factory.mktemp("desk"))
    said: tuple[list[str], list[str]] = ([], [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "of", classmethod(lambda cls, parameters, count, bridged: short))
        for each in said:
            teach(products, desk / "taught", str(desk / "model"), device="cpu", say=each.append)
    return desk / "taught", *said


def test_the_result_is_a_model_like_any_other(taught: tuple[Path, list[str], list[str]], products: Path):
    out, said, again = taught
    bot = minichat.load(out)
    picture = next(products.glob("*.png"))
    assert isinstance(bot.caption([picture], prompt="", max_new_tokens=4)[0], str)
    assert isinstance(bot.chat().ask("", [picture], max_new_tokens=4), str)
    facts = json.loads((out / TEACHING).read_text())
    assert len(facts["held_out"]) == 6
    assert set(facts["known"]) == {"questions", "before", "after"}
    assert "Before and after" in (out / PAGE).read_text()
    whole = "\n".join(said)
    for words in ("60 records with 60 different pictures.", "6 kinds: ", "60 of them ask nothing", "6 are held out"):
        assert words in whole
    assert "Training takes about " in whole
    assert all(line in whole for line in facts["said"])
    assert again == ["\n".join((f"{out} has been taught.", *facts["said"]))]


def test_lessons_are_data_sets_as_any_other(taught: tuple[Path, list[str], list[str]]):
    """What is learnt and what is held out have no picture in common, and each is asked about in all ways."""
    folder = taught[0] / LESSONS
    learnt, held = (formats.examples(folder / name) for name in (TAUGHT, VALIDATION))
    assert len(learnt) == 54
    asked = [one for one in held if one.replies[0] in KINDS]
    assert len(asked) == 6 * len(QUESTIONS)
    assert {picture.key() for one in learnt for picture in one.pictures}.isdisjoint(
        picture.key() for one in asked for picture in one.pictures
    )
    assert not (folder / KNOWN).exists() or formats.examples(folder / KNOWN)


def test_other_data_are_refused(taught: tuple[Path, list[str], list[str]], tmp_path: Path, short: Plan, monkeypatch):
    out = tmp_path / "begun"
    shutil.copytree(taught[0], out)
    (out / TEACHING).unlink()
    monkeypatch.setattr(Plan, "of", classmethod(lambda cls, parameters, count, bridged: short))
    other = write_products(tmp_path / "other", 10, seed=1)
    model = json.loads((out / LESSONS / "source.json").read_text())["model"]
    with pytest.raises(DataError, match="'begun' was begun with other data"):
        teach(other, out, model, device="cpu")


def test_how_it_is_read_may_be_said(products: Path, tmp_path: Path, monkeypatch):
    """As with `minichat data`: what a refusal asks to name can be named."""
    said = (products / "products.csv").read_text().replace("caption", "label", 1)
    (tmp_path / "own.csv").write_text(said)
    with pytest.raises(DataError, match=r"no column is known to be the text .*: name it \(text_column; on"):
        look(tmp_path / "own.csv")
    material = look(tmp_path / "own.csv", text_column="label", pictures=products)
    assert set(material.kinds) == set(KINDS)
    told: list[dict] = []
    monkeypatch.setattr(teaching, "look", lambda source, **options: told.append(options) or material)
    monkeypatch.setattr(teaching, "_stage", lambda model, device: (_ for _ in ()).throw(DataError("far enough")))
    options = ["--text-column", "label", "--images", str(products), "--format", "pairs"]
    done = CliRunner().invoke(cli.app, ["teach", str(tmp_path / "own.csv"), "--out", str(tmp_path / "out"), *options])
    assert done.stderr.endswith("far enough\n")
    assert told == [{"form": "pairs", "pictures": products, "text_column": "label"}]


def test_on_the_command_line(products: Path, tmp_path: Path, monkeypatch):
    """Exit codes tell what came of it; too little is one line."""
    results = iter([(True, None), (False, None), (False, 15)])

    def fake(source, out, model, device, say):
        say("said")
        learnt, signal = next(results)
        return teaching.Taught(out, learnt, (), signal)

    monkeypatch.setattr(teaching, "teach", fake)
    arguments = ["teach", str(products), "--out", str(tmp_path / "out")]
    assert [CliRunner().invoke(cli.app, arguments).exit_code for _ in range(3)] == [0, 1, 143]
    monkeypatch.undo()
    few = write_products(tmp_path / "few", 1)
    done = CliRunner().invoke(cli.app, ["teach", str(few), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "6 different pictures are too few" in done.stderr
    assert not (tmp_path / "out").exists()


# --- what it is for


@pytest.mark.long
@pytest.mark.parametrize("senseless", [False, True])
def test_sixty_pictures_of_six_new_kinds(senseless: bool, tmp_path: Path):
    """Of six kinds that no training had, five are named rightly that were held out, and little is forgotten; where the
    texts are dealt out at random, nothing was learnt."""
    products = write_products(tmp_path / "products", 10, senseless=senseless)
    done = teach(products, tmp_path / "taught", "minichat-tiny", device="cpu")
    facts = json.loads((tmp_path / "taught" / TEACHING).read_text())
    assert done.learnt != senseless
    if senseless:
        assert done.sentences[0].startswith("Nothing was learnt")
        return
    assert sum(is_named(row["after"], row["wanted"], KINDS) for row in facts["held_out"]) >= 5
    assert facts["known"]["after"] > facts["known"]["before"] - 0.03
