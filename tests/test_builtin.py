"""The built-in model as it is shipped: it sees, replies soon, and is small."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest

import minichat
from minichat.evaluate.replies import Blank
from minichat.evaluate.run import CHAT_TASKS, Plan, evaluate
from minichat.toy.asking import ALL_KINDS
from minichat.toy.captions import SYMBOLS
from minichat.toy.evaluate import DRAWINGS, accuracy, held_out
from minichat.toy.world import Background, Scene, Thing, draw, random_scene
from minichat.web.app import EXAMPLES, Example

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(str(resources.files("minichat"))) / "assets" / "minichat-tiny"


@pytest.fixture(scope="module")
def bot() -> minichat.MiniChat:
    return minichat.load("minichat-tiny", device="cpu")


@pytest.fixture
def red_star() -> Scene:
    return Scene((Thing("star", "red", "large", 0.5, 0.5, 0.18),), Background("plain", ("white",)))


def test_it_takes_at_most_40_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 40e6


def test_words_of_its_own_are_not_said(bot: minichat.MiniChat) -> None:
    """Those in which pictures were described to its LLM (`minichat.toy.captions`)."""
    spell, own = bot.processor.content_tokenizer.encode, bot.model.generation_config.suppress_tokens
    assert sorted(own) == sorted(spell(symbol)[-1] for symbol in SYMBOLS)


def test_it_sees_every_kind_of_thing(bot: minichat.MiniChat) -> None:
    seen, blank = accuracy(bot, held_out(60, seed=1)), accuracy(bot, held_out(20, seed=1), drawing=None)
    assert seen["overall"] >= 0.93, seen
    # 60 questions of a kind: one standard deviation is about 3 points. `make test-long` asks more.
    assert all(seen[kind] >= max(0.8, blank[kind] + 0.5) for kind in seen), (seen, blank)


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.answer], ids=lambda one: one.question)
def test_it_answers_what_the_page_suggests(bot: minichat.MiniChat, example: Example) -> None:
    assert str(example.answer) in bot.chat().ask(example.question, [example.picture()]).lower()


AT_LEAST = {
    "questions": {"overall": 0.95, "drawn by another program, overall": 0.9, **dict.fromkeys(ALL_KINDS, 0.88)},
    "dialogue": {"all later turns": 0.92, "turns that need earlier ones": 0.9},
    "hallucination": {"adversarial: F1": 0.95},
    "pairs": {"overall": 0.85},
    "outside": {"recognised": 0.95},
}
AT_MOST = {
    "captions": {"objects invented": 0.03},
    "stories": {"objects invented": 0.05},
    "outside": {"false alarms": 0.02},
}


@pytest.mark.long
@pytest.mark.parametrize("task", CHAT_TASKS)
def test_it_does_what_its_card_says(bot: minichat.MiniChat, task: str) -> None:
    """On 300 scenes; the goal must not lie beyond a figure's 95 % interval."""
    report = evaluate(bot, Plan(tasks=(task,), count=300, blank=False, redrawn=20))
    found = {line.name: line.seen for line in report.lines}

    def interval(name: str) -> tuple[float, float]:
        value = found[name].value
        assert value is not None
        return found[name].interval() or (value - 0.01, value + 0.01)

    for name, goal in AT_LEAST.get(task, {}).items():
        assert interval(name)[1] >= goal, (name, found[name])
    for name, goal in AT_MOST.get(task, {}).items():
        assert interval(name)[0] <= goal, (name, found[name])


@pytest.mark.long
@pytest.mark.parametrize("name", DRAWINGS)
def test_it_sees_scenes_that_are_drawn_another_way(bot: minichat.MiniChat, name: str) -> None:
    assert accuracy(bot, held_out(150, seed=2), DRAWINGS[name])["overall"] >= 0.85


def test_a_dialogue_about_one_star(bot: minichat.MiniChat, red_star: Scene) -> None:
    chat = bot.chat()
    assert "red" in chat.ask("What colour is the star?", images=[draw(red_star, 300)]).lower()
    assert "star" in chat.ask("What shape is it?").lower()
    assert chat.ask("Is there a blue circle?").lower().startswith("no")
    assert len(chat.conversation) == 6


def test_a_reply_that_goes_on_is_the_longer_reply(bot: minichat.MiniChat, red_star: Scene) -> None:
    for pictures in ([], [draw(red_star, 300)]):
        whole, parts = bot.chat(), bot.chat()
        said = whole.ask("Describe this image in detail.", pictures)
        parts.ask("Describe this image in detail.", pictures, max_new_tokens=1)
        while parts.cut:
            parts.go_on(max_new_tokens=7)
        assert parts.conversation == whole.conversation and parts.conversation.messages[-1].text == said
        assert parts.figures is not None and whole.figures is not None
        assert (parts.figures.tokens, parts.figures.used) == (whole.figures.tokens, whole.figures.used)


def test_a_second_picture_in_a_later_turn_is_seen(bot: minichat.MiniChat, red_star: Scene) -> None:
    other = Scene((Thing("ring", "blue", "large", 0.5, 0.5, 0.18),), Background("plain", ("yellow",)))
    chat = bot.chat()
    chat.ask("What is in the picture?", images=[draw(red_star)])
    assert "second" in chat.ask("Which picture has a blue ring?", images=[draw(other)]).lower()


def test_a_reply_starts_within_a_second(bot: minichat.MiniChat) -> None:
    """Of computing, whatever else the processor is at."""
    picture = draw(random_scene(random.Random(4)), 400)
    bot.chat().ask("What is this?", images=[picture], max_new_tokens=2)  # the first call of all warms up
    start = time.process_time()
    next(bot.chat().stream("What do you see in this picture?", images=[picture]))
    assert time.process_time() - start < 1


def test_a_first_reply_from_a_cold_start_is_cheap(tmp_path: Path) -> None:
    """Some seconds of computing, as `benchmarks.startup` measures; no busy machine makes so many of them."""
    Blank().open().save(tmp_path / "blank.png")
    program = "import minichat; print(minichat.load('minichat-tiny').chat().ask('What is this?', images=['blank.png']))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = computed_by_children()
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert computed_by_children() - start < 60


def computed_by_children() -> float:
    """Seconds."""
    times = os.times()
    return times.children_user + times.children_system


def test_auto_classes_give_the_same_replies(bot: minichat.MiniChat, red_star: Scene, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    bot.model.save_pretrained(tmp_path)
    bot.processor.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    picture = draw(red_star, 300)
    for question in ("What colour is the star?", "Describe this image in detail.", "How many objects are there?"):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        reply = processor.decode(ids, skip_special_tokens=True).strip()
        assert reply == bot.chat().ask(question, images=[picture], max_new_tokens=60)
